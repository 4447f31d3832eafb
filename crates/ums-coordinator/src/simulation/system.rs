//! A Coordinator in the simulation: the production one, on a simulated disk and network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use ums_api::client::{HISTORY_MAX, MigrationView, Permission, paths};
use ums_api::http::AgentClient;
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_core::specification::{PublishedPort, Specification, Transport};
use ums_tls::Identity;

use super::disk::Fate;
use super::fault::Side;
use super::wire;
use super::world::{Process, World};
use crate::config::{Config, Limits, PeerConfig};
use crate::journal::{Journal, JournalError};
use crate::peer::Peers;
use crate::shared::Shared;
use crate::{client_server, destination, peer_server, reconciler, shared, status};

/// Longest wait for a Coordinator's own answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running Coordinator.
#[derive(Clone)]
pub(super) struct Coordinator {
    pub(super) shared: Arc<Shared>,
    pub(super) process: Arc<Process>,
    /// The servers.
    pub(super) peers: Router,
    clients: Router,
}

/// Where a simulated Coordinator's journal is used: at once, unless it dies of it.
pub(crate) struct Desk {
    world: Arc<World>,
    side: Side,
    process: Arc<Process>,
}

impl Desk {
    /// Uses the journal.
    pub(crate) async fn journal<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.process.is_doomed() {
            return std::future::pending().await;
        }
        let (world, side) = (Arc::clone(&self.world), self.side);
        let disk = self.world.disk(self.side);
        disk.begin(Box::new(move || world.fate(side)));
        let done = work();
        if let Some(Fate::DiesBefore | Fate::DiesAfter) = disk.end() {
            drop(done);
            self.world.die(self.side, &self.process).await;
            return std::future::pending().await;
        }
        done
    }
}

/// Periods: short, so that little happens while something is waited for.
fn limits() -> Limits {
    Limits {
        lease: Duration::from_secs(6),
        doubt_after: Duration::from_secs(1),
        reconcile_every: Duration::from_millis(500),
        retry_first: Duration::from_millis(50),
        retry_max: Duration::from_secs(1),
        request_timeout: Duration::from_secs(4),
        copy_timeout: Duration::from_secs(8),
        progress_every: Duration::from_secs(1),
        ..Limits::default()
    }
}

pub(super) fn system_name(side: Side) -> SystemName {
    name(side.name())
}

pub(super) fn service_name() -> ServiceName {
    name("redis")
}

fn name<T: TryFrom<String>>(text: &str) -> T {
    T::try_from(text.to_owned()).unwrap_or_else(|_| panic!("{text} is a name"))
}

/// Where the service answers on a side.
pub(super) fn endpoint(side: Side) -> SocketAddr {
    ([10, 0, 0, 1 + side as u8], 6379).into()
}

pub(super) fn specification() -> Specification {
    Specification {
        name: service_name(),
        image: name(&"0".repeat(64)),
        command: vec!["/bin/redis".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        memory_limit_bytes: None,
        volumes: Vec::new(),
        address: [10, 88, 0, 2].into(),
        prefix_len: 16,
        ports: vec![PublishedPort {
            transport: Transport::Tcp,
            system_port: 6379,
            service_port: 6379,
        }],
        mounts: Vec::new(),
        creation: None,
        engine: None,
        capabilities: Vec::new(),
        hostname: "redis".to_owned(),
    }
}

fn config(side: Side) -> Config {
    let other = PeerConfig {
        address: ([127, 0, 0, 1], 7000 + side.other() as u16).into(),
        allow: [Permission::Send, Permission::Receive].into(),
    };
    Config {
        system: system_name(side),
        state_dir: std::env::temp_dir(),
        run_dir: std::env::temp_dir(),
        listen: ([127, 0, 0, 1], 7000 + side as u16).into(),
        identity: Identity {
            ca_pem: String::new(),
            cert_pem: String::new(),
            key_pem: String::new(),
        },
        peers: BTreeMap::from([(system_name(side.other()), other)]),
        agent_socket: "agent.sock".into(),
        agent_command: None,
        peer_versions: ums_api::peer::VERSIONS.to_vec(),
        limits: limits(),
    }
}

impl Coordinator {
    /// Opens the journal.
    pub(super) fn open(world: &Arc<World>, side: Side) -> Result<Self, JournalError> {
        let config = config(side);
        let limits = &config.limits;
        let store = world.disk(side).store();
        let journal = Journal::open_without_file(&config.system, limits.history_max, store)?;
        let process = Arc::<Process>::default();
        let desk = Desk {
            world: Arc::clone(world),
            side,
            process: Arc::clone(&process),
        };
        let agent = AgentClient::over(
            wire::ToAgent::new(world, side),
            limits.request_timeout,
            limits.copy_timeout,
        );
        let shared = Arc::new(Shared {
            peers: Peers::new(wire::dial(world, side), limits.request_timeout),
            settings: crate::settings::InForce::new(&config),
            config,
            journal: Arc::new(journal),
            desk: shared::Desk::Simulated(desk),
            agents: crate::agents::Agents::only(agent),
            registry: status::Registry::default(),
            arrivals: destination::Arrivals::default(),
            tasks: Arc::clone(&process.tasks),
        });
        Ok(Self {
            peers: peer_server::router(Arc::clone(&shared)),
            clients: client_server::router(Arc::clone(&shared)),
            shared,
            process,
        })
    }

    /// Takes up what was interrupted.
    pub(super) async fn begin(&self) -> Result<(), JournalError> {
        reconciler::take_up(&self.shared).await?;
        let tasks = &self.shared.tasks;
        tasks.spawn(reconciler::run(Arc::clone(&self.shared)));
        Ok(())
    }

    /// Whether nothing is left to do by its journal.
    pub(super) fn is_done(&self) -> bool {
        let journal = &self.shared.journal;
        let outgoing = journal.outgoing().unwrap_or_default();
        let incoming = journal.all_incoming(true);
        outgoing.iter().all(|(_, _, open)| !open) && incoming.is_ok_and(|open| open.is_empty())
    }

    /// Asks it as a client does. `None`: it gives no answer.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Option<Result<T, StatusCode>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(body))
            .ok()?;
        let answer = tokio::time::timeout(PATIENCE, wire::serve(&self.clients, request)).await;
        let response = answer.ok()?;
        if self.process.is_doomed() {
            return None;
        }
        let status = response.status();
        if !status.is_success() {
            return Some(Err(status));
        }
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
        Some(Ok(serde_json::from_slice(&body.ok()?).ok()?))
    }

    /// All migrations that it knows.
    pub(super) async fn history(&self) -> Option<Vec<MigrationView>> {
        let path = format!("{}?limit={HISTORY_MAX}", paths::MIGRATIONS);
        self.ask(Method::GET, &path, String::new()).await?.ok()
    }

    /// What it tells of a migration.
    pub(super) async fn view(&self, id: MigrationId) -> Option<MigrationView> {
        let path = format!("{}/{id}", paths::MIGRATIONS);
        self.ask(Method::GET, &path, String::new()).await?.ok()
    }
}

/// A person asks for an abort of whatever is under way.
pub(super) async fn abort(world: &Arc<World>) {
    let Some(source) = world.coordinator(Side::A) else {
        return;
    };
    for view in source.history().await.unwrap_or_default() {
        let path = format!("{}/{}/abort", paths::MIGRATIONS, view.report.migration_id);
        let answer: Option<Result<MigrationView, StatusCode>> =
            source.ask(Method::POST, &path, "{}".to_owned()).await;
        let answer = answer.map(|answer| answer.map(|_| ()));
        world.truth().note(format!("abort: {answer:?}"));
    }
}
