//! The peer API's server (see [`ums_api::peer`]).

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::Uri;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use ums_api::client::Permission;
use ums_api::peer::{
    BODY_BYTES_MAX, CloseRequest, Decision, DecisionAnswer, Empty, Hello, HelloQuery,
    ReserveRequest, RestoreRequest, paths,
};
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::{MigrationId, SystemName};
use ums_core::report::Outcome;
use ums_core::saga::SagaState;

use crate::client_server::parse_query;
use crate::destination;
use crate::journal::Journal;
use crate::listen::PeerIdentity;
use crate::policy;
use crate::problem::{Refused, Reply, body, ending, ok, parse, unknown};
use crate::shared::Shared;

/// The routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(paths::HELLO, get(hello))
        .route(paths::OPERATION_ROUTE, post(operation))
        .route(paths::MIGRATION_ROUTE, get(view))
        .route(paths::DECISION_ROUTE, get(decision))
        .fallback(nowhere)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

/// Operations that version 1 has no word for.
const SINCE_VERSION_2: [&str; 3] = ["losses", "spans", "pages"];

type Caller = Extension<PeerIdentity>;

async fn nowhere() -> Refused {
    unknown(
        ProblemKind::PathUnknown,
        "there is no such path",
        "this system speaks versions 1 and 2 of the peer API",
    )
}

/// The version that a path names.
async fn spoken(shared: &Shared, part: &str) -> Reply<u32> {
    match paths::version(part) {
        Some(version) if shared.config.peer_versions.contains(&version) => Ok(version),
        _ => Err(nowhere().await),
    }
}

/// A message that says more than its version has words for.
fn foreign(version: u32) -> Refused {
    Refused(Problem::refused(
        400,
        ProblemKind::RequestMalformed,
        "the request is malformed",
        format!("version {version} of the peer API has no word for what it asks"),
    ))
}

async fn hello(
    State(shared): State<Arc<Shared>>,
    Extension(PeerIdentity(peer)): Caller,
    uri: Uri,
) -> Reply<Response> {
    policy::peer(&shared, &peer)?;
    let query: HelloQuery = parse_query(&uri)?;
    let you_may_send = policy::allowed(&shared, &peer, Permission::Send).is_ok();
    // Facts are for those who may use them.
    let facts = if you_may_send {
        shared
            .agents
            .of_any(query.service.as_ref())
            .facts()
            .await
            .ok()
    } else {
        None
    };
    Ok(ok(&Hello {
        versions: shared.config.peer_versions.clone(),
        system: shared.config.system.clone(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        you_may_send,
        facts,
    }))
}

/// Lets in peers, and whoever has a part in this migration already: one that was forgotten while it is
/// under way is heard until that is over, and about nothing else. The migration's id.
async fn concerned(shared: &Shared, system: &SystemName, id: &str) -> Reply<MigrationId> {
    let Err(denied) = policy::peer(shared, system) else {
        return parse_id(id);
    };
    let Ok(id) = parse_id(id) else {
        return Err(denied.into());
    };
    let known = move |journal: &Journal| Ok((journal.incoming(id)?, journal.saga(id)?));
    let (incoming, saga) = shared.journal(known).await?;
    let comes = incoming.is_some_and(|incoming| incoming.source == *system);
    let goes = saga.is_some_and(|(saga, _)| saga.request().destination == *system);
    match comes || goes {
        true => Ok(id),
        false => Err(denied.into()),
    }
}

/// Runs an operation to its end, whatever becomes of the connection.
async fn operation(
    State(shared): State<Arc<Shared>>,
    Extension(PeerIdentity(peer)): Caller,
    Path((version, id, operation)): Path<(String, String, String)>,
    request: Request,
) -> Reply<Response> {
    let id = concerned(&shared, &peer, &id).await?;
    let version = spoken(&shared, &version).await?;
    let body = body(request, shared.config.limits.arrival_timeout).await?;
    let tasks = Arc::clone(&shared.tasks);
    let done = tasks
        .detached(async move { dispatch(&shared, (peer, version), id, &operation, &body).await });
    done.await.ok_or_else(ending)?
}

async fn dispatch(
    shared: &Shared,
    (peer, version): (SystemName, u32),
    id: MigrationId,
    operation: &str,
    body: &[u8],
) -> Reply<Response> {
    if operation == "reserve" {
        let request: ReserveRequest = parse(body)?;
        if !request.is_of(version) {
            return Err(foreign(version));
        }
        let from = (peer, version);
        return Ok(ok(&destination::reserve(shared, from, id, request).await?));
    }
    if operation == "restore" {
        let request: RestoreRequest = parse(body)?;
        return Ok(ok(
            &destination::restore(shared, peer, id, request.digest).await?
        ));
    }
    if operation == "close" && version > 1 {
        let account: CloseRequest = parse(body)?;
        destination::close(shared, peer, id, account).await?;
        return Ok(ok(&Empty {}));
    }
    let Empty {} = parse(body)?;
    if version == 1 && SINCE_VERSION_2.contains(&operation) {
        return Err(nowhere().await);
    }
    match operation {
        "close" => {
            destination::close(shared, peer, id, CloseRequest::default()).await?;
            Ok(ok(&Empty {}))
        }
        "renew" => Ok(ok(&destination::renew(shared, peer, id).await?)),
        "create" => Ok(ok(&destination::create(shared, peer, id).await?)),
        "losses" => Ok(ok(&destination::losses(shared, peer, id).await?)),
        "spans" => Ok(ok(&destination::spans(shared, peer, id).await?)),
        "pages" => Ok(ok(&destination::pages(shared, peer, id).await?)),
        "commit" => Ok(ok(&destination::commit(shared, peer, id).await?)),
        "abort" => destination::abort(shared, peer, id)
            .await
            .map(|()| ok(&Empty {})),
        _ => Err(nowhere().await),
    }
}

async fn view(
    State(shared): State<Arc<Shared>>,
    Extension(PeerIdentity(peer)): Caller,
    Path((version, id)): Path<(String, String)>,
) -> Reply<Response> {
    let id = concerned(&shared, &peer, &id).await?;
    spoken(&shared, &version).await?;
    match destination::view(&shared, peer, id).await {
        Ok(view) => Ok(ok(&view)),
        Err(Refused(problem)) if problem.kind == ProblemKind::Aborted => Err(no_migration()),
        Err(refused) => Err(refused),
    }
}

/// Answers for the source. An id that it does not know was never committed: it is presumed abandoned.
async fn decision(
    State(shared): State<Arc<Shared>>,
    Extension(PeerIdentity(peer)): Caller,
    Path((version, id)): Path<(String, String)>,
) -> Reply<Response> {
    let id = concerned(&shared, &peer, &id).await?;
    spoken(&shared, &version).await?;
    let saga = shared.journal(move |journal| journal.saga(id)).await?;
    let decision = match saga {
        Some((saga, _)) if saga.request().destination != peer => return Err(no_migration()),
        Some((saga, _)) => match saga.phase() {
            SagaState::Forward => Decision::Undecided,
            SagaState::Abandoning(_) => Decision::Abandoned,
            SagaState::Committed => Decision::Committed,
            SagaState::Ended(report) if report.outcome == Outcome::Completed => Decision::Committed,
            SagaState::Ended(_) => Decision::Abandoned,
        },
        None => Decision::Abandoned,
    };
    Ok(ok(&DecisionAnswer { decision }))
}

fn no_migration() -> Refused {
    unknown(
        ProblemKind::MigrationUnknown,
        "no such migration",
        "no migration of yours has this id here",
    )
}

fn parse_id(text: &str) -> Reply<MigrationId> {
    text.parse().map_err(|_| {
        unknown(
            ProblemKind::MigrationUnknown,
            "no such migration",
            "this is no id",
        )
    })
}
