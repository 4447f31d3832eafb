//! A Coordinator that answers by script, over the real paths and types.

use std::path::Path as FilePath;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use ums_api::client::{
    AbortRequest, Attendant, Hello, MigrateRequest, MigrationView, Offer, Progress, Resolution,
    ResolveRequest, ResolveView, SOCKET_NAME, ServiceView, paths,
};
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::MigrationId;
use ums_core::preflight::{Refusal, RefusalKind};
use ums_core::report::{Bytes, MigrationReport, Outcome};

use crate::PATIENCE;

const ID: &str = "0190f0f0-0000-7000-8000-000000000001";

/// What becomes of the migration that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    /// It ends so, at the second look.
    Ends(Outcome),
    /// The preflight refuses it.
    Refuses,
    /// There is no such service.
    Unknown,
    /// It is cut off at the first look, and completed at the next.
    RestartsOnce,
    /// It goes on until it is aborted.
    UntilAborted,
    /// It is cut off at the commit, until it is taken back.
    CutOff,
}

impl Script {
    pub(crate) fn ends(outcome: Outcome) -> Self {
        Self::Ends(outcome)
    }
}

/// What has been asked so far.
#[derive(Debug, Default)]
struct Seen {
    watches: u32,
    aborts: u32,
    decisions: Vec<ResolveRequest>,
}

#[derive(Debug)]
struct Shared {
    script: Script,
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// The running server; it ends when it is dropped.
pub(crate) struct Fake {
    directory: TempDir,
    shared: Arc<Shared>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// Listens when this returns.
    pub(crate) fn start(script: Script) -> Self {
        let directory = TempDir::new().expect("a directory");
        let shared = Arc::new(Shared {
            script,
            seen: Mutex::default(),
            changed: Condvar::new(),
        });
        let (end, ended) = oneshot::channel();
        let socket = directory.path().join(SOCKET_NAME);
        let listener = std::os::unix::net::UnixListener::bind(socket).expect("a socket");
        listener.set_nonblocking(true).expect("a socket of tokio's");
        let router = router(Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runs");
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).expect("a socket");
                tokio::select! {
                    served = axum::serve(listener, router).into_future() => {
                        served.expect("serves");
                    }
                    _ = ended => {}
                }
            });
        });
        Self {
            directory,
            shared,
            end: Some(end),
            thread: Some(thread),
        }
    }

    pub(crate) fn run_dir(&self) -> &FilePath {
        self.directory.path()
    }

    /// Until somebody watches the migration.
    pub(crate) fn wait_for_watch(&self) {
        let seen = self.shared.seen.lock().expect("not poisoned");
        let nobody = |seen: &mut Seen| seen.watches == 0;
        let (_seen, waited) = self
            .shared
            .changed
            .wait_timeout_while(seen, PATIENCE, nobody)
            .expect("not poisoned");
        assert!(!waited.timed_out(), "nobody watches");
    }

    pub(crate) fn decisions(&self) -> Vec<ResolveRequest> {
        self.shared
            .seen
            .lock()
            .expect("not poisoned")
            .decisions
            .clone()
    }

    pub(crate) fn aborts(&self) -> u32 {
        self.shared.seen.lock().expect("not poisoned").aborts
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends");
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(paths::HELLO, get(hello))
        .route(
            paths::SERVICES,
            get(|| async { Json(Vec::<ServiceView>::new()) }),
        )
        .route(paths::SERVICE_ROUTE, get(|| async { unknown() }))
        .route(paths::ATTENDANTS, get(|| async { Json(vec![frontman()]) }))
        .route(paths::MIGRATIONS, post(migrate).get(history))
        .route(paths::MIGRATION_ROUTE, get(watch))
        .route(paths::ABORT_ROUTE, post(abort))
        .route(paths::RESOLVE_ROUTE, get(resolution).post(resolve))
        .with_state(shared)
}

fn frontman() -> Attendant {
    Attendant {
        kind: "frontman".to_owned(),
        service: "redis".parse().expect("a name"),
        owner: ID.to_owned(),
        state: "leading".to_owned(),
        leads: vec!["6379 → 192.0.2.20:6379".to_owned()],
        ends_at_ms: 1_800_000_000_000,
        pid: 42,
    }
}

async fn hello() -> Json<Hello> {
    let system = "a".parse().expect("a name");
    Json(Hello {
        system,
        version: "9.9.9".to_owned(),
        api: 1,
    })
}

fn unknown() -> Response {
    let detail = "`redis` is not on this system; see `ums list`";
    let problem = Problem::refused(404, ProblemKind::ServiceUnknown, "no such service", detail);
    (StatusCode::NOT_FOUND, Json(problem)).into_response()
}

async fn migrate(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<MigrateRequest>,
) -> Response {
    assert_eq!(
        (request.service.as_str(), request.destination.as_str()),
        ("redis", "b")
    );
    match shared.script {
        Script::Unknown => unknown(),
        _ => (StatusCode::ACCEPTED, Json(running())).into_response(),
    }
}

async fn history(State(shared): State<Arc<Shared>>) -> Json<Vec<MigrationView>> {
    Json(vec![match shared.script {
        Script::CutOff => stuck(),
        _ => ended(Outcome::Completed),
    }])
}

fn stuck() -> MigrationView {
    let mut view = ended(Outcome::Stuck);
    view.report.error = Some("it is gone, and may have executed".to_owned());
    view.resolvable = true;
    view
}

async fn resolution(State(shared): State<Arc<Shared>>) -> Response {
    let view = running().report;
    if shared.script != Script::CutOff {
        let problem = Problem::refused(
            409,
            ProblemKind::NotNeeded,
            "there is nothing to decide",
            "it is over",
        );
        return (StatusCode::CONFLICT, Json(problem)).into_response();
    }
    Json(ResolveView {
        migration_id: view.migration_id,
        service: view.service,
        system: view.source.clone(),
        source: view.source,
        destination: view.destination,
        known: "committed".to_owned(),
        since_ms: 61_000,
        other: "it holds the service, or runs it".to_owned(),
        offers: vec![Offer {
            choice: Resolution::TakeBack,
            effect: "it goes on here".to_owned(),
            risk: "two copies execute".to_owned(),
        }],
    })
    .into_response()
}

async fn resolve(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<ResolveRequest>,
) -> Response {
    shared
        .seen
        .lock()
        .expect("not poisoned")
        .decisions
        .push(request);
    let mut view = running();
    view.resolvable = true;
    (StatusCode::ACCEPTED, Json(view)).into_response()
}

async fn watch(State(shared): State<Arc<Shared>>, Path(id): Path<MigrationId>) -> Response {
    assert_eq!(id.to_string(), ID);
    let (watches, aborts) = {
        let mut seen = shared.seen.lock().expect("not poisoned");
        seen.watches += 1;
        shared.changed.notify_all();
        (seen.watches, seen.aborts)
    };
    let view = match (shared.script, watches) {
        (Script::Ends(_), 1) => running(),
        (Script::Ends(outcome), _) => ended(outcome),
        (Script::Refuses, _) => refused(),
        (Script::RestartsOnce, 1) => return cut_off(),
        (Script::RestartsOnce, _) => ended(Outcome::Completed),
        (Script::UntilAborted, _) if aborts > 0 => ended(Outcome::Abandoned),
        (Script::UntilAborted, _) => {
            // As a real one does: nothing changes for a while.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            running()
        }
        (Script::CutOff, _) => ended(Outcome::Abandoned),
        (Script::Unknown, _) => return unknown(),
    };
    Json(view).into_response()
}

/// An answer that breaks off: the body is shorter than its head says.
fn cut_off() -> Response {
    ([("content-length", "1000")], "{").into_response()
}

async fn abort(State(shared): State<Arc<Shared>>, Json(_): Json<AbortRequest>) -> Response {
    shared.seen.lock().expect("not poisoned").aborts += 1;
    (StatusCode::ACCEPTED, Json(running())).into_response()
}

fn running() -> MigrationView {
    let name = |text: &str| text.parse().expect("a name");
    MigrationView {
        report: MigrationReport {
            migration_id: ID.parse().expect("an id"),
            service: "redis".parse().expect("a name"),
            source: name("a"),
            destination: name("b"),
            approach: None,
            technique: None,
            outcome: Outcome::Running,
            total_ms: 10,
            downtime_ms: None,
            freeze_ms: None,
            at_risk_ms: None,
            downtime_parts: Vec::new(),
            steps: Vec::new(),
            bytes: Bytes {
                memory: 4096,
                wire: 5000,
                filesystem: 0,
                frozen: 0,
            },
            rounds: 0,
            endpoint: None,
            error: None,
            losses: Vec::new(),
            predicted: None,
        },
        progress: Progress {
            generation: 1,
            phase: "streaming memory".to_owned(),
            step: Some(9),
            bytes: 2048,
            elapsed_ms: 10,
            ..Progress::default()
        },
        refusals: Vec::new(),
        resolvable: false,
        asked_at_ms: 1_700_000_000_000,
    }
}

fn ended(outcome: Outcome) -> MigrationView {
    let mut view = running();
    view.report.outcome = outcome;
    view
}

fn refused() -> MigrationView {
    let mut view = ended(Outcome::Refused);
    view.refusals = vec![Refusal::new(
        RefusalKind::PortTaken,
        "port 6379 is taken",
        "end it",
    )];
    view
}
