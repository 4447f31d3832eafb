//! The destination side of a migration: everything from the reservation to the running service.

mod arrival;
mod create;
mod restore;
mod run;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, watch};
use ums_api::agent::{Created, MigrationState, Phase, Restored, Role};
use ums_api::problem::Problem;
use ums_checkpoint::keeper::protocol as keeper;
use ums_checkpoint::memory_dir::MemoryDir;
use ums_checkpoint::store::Stored;
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_sync::Meter;

use crate::agent::{Agent, Migration, Service};
use crate::record::Arriving;
use crate::services::{self, blocking};
use ums_node::problem;

#[doc(hidden)]
pub use arrival::keep_pages;
pub use arrival::listen;
pub use create::create;
pub use restore::restore;
use run::arrived;
pub use run::run;

/// How long what has arrived may take to be written, or thrown away, when the rest is given up.
const RECEIVING_PATIENCE: Duration = Duration::from_secs(30);

/// What we hold of a migration that we receive.
pub struct Incoming {
    service: ServiceName,
    source: SystemName,
    operation: AsyncMutex<()>,
    /// Held by the data path as long as it writes.
    receiving: Arc<AsyncMutex<()>>,
    /// Set when it is given up: the data path ends.
    discarded: watch::Sender<bool>,
    view: Mutex<View>,
    delivered: tokio::sync::Notify,
    meter: Meter,
}

#[derive(Default)]
struct View {
    phase: Option<Phase>,
    error: Option<String>,
    /// BLAKE3 of the permit; taken by its first use.
    permit: Option<blake3::Hash>,
    created: Option<Created>,
    memory_bytes_max: u64,
    image_needed: bool,
    delivery: Option<Delivery>,
    restored: Option<Restored>,
    /// Whether the service has its place on the bridge already.
    has_place: bool,
    /// Whether it has been run, and found by its clients.
    has_run: bool,
}

/// Everything of a checkpoint, whole and verified.
struct Delivery {
    images: MemoryDir,
    stored: Stored,
    /// Whether pages are left to userfaultfd.
    lazy: bool,
    digest: String,
}

impl Incoming {
    fn new(service: ServiceName, source: SystemName) -> Self {
        Self {
            service,
            source,
            operation: AsyncMutex::new(()),
            receiving: Arc::default(),
            discarded: watch::Sender::new(false),
            view: Mutex::new(View::default()),
            delivered: tokio::sync::Notify::new(),
            meter: Meter::default(),
        }
    }

    /// What a restarted agent knows: the rest is with the keeper.
    pub fn resumed(service: ServiceName, arriving: &Arriving) -> Self {
        Self::new(service, arriving.source.clone())
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is known of it. Blocks.
    pub fn state(&self, id: MigrationId, agent: &Agent) -> MigrationState {
        let service = agent.service(&self.service).ok();
        let status = service.map(|service| agent.keeper_status(&service));
        let view = self.view();
        let (phase, pending, lost) = match &status {
            Some(Ok(status)) => {
                let (phase, lost) = phase_of(status, view.phase);
                (phase, status.pages_missing, lost)
            }
            Some(Err(error)) if error.is_gone() => {
                (Phase::Failed, 0, Some("the container's keeper is lost"))
            }
            None => (Phase::Failed, 0, Some("its container is gone")),
            // It may be busy: what it holds is not known now.
            Some(Err(_)) => (
                view.phase.unwrap_or(Phase::Prepared).min(Phase::Delivered),
                0,
                None,
            ),
        };
        MigrationState {
            id,
            service: self.service.clone(),
            role: Role::Destination,
            phase,
            frozen_at_ns: None,
            bytes: self.meter.bytes(),
            pages_pending: pending,
            error: view.error.clone().or(lost.map(str::to_owned)),
        }
    }
}

/// How far an arriving service is, by what its keeper says and what this agent has seen, and why it
/// can't come any further.
fn phase_of(status: &keeper::Status, seen: Option<Phase>) -> (Phase, Option<&'static str>) {
    if status.resumed_at_ns.is_some() {
        let installing = status.pages_missing > 0;
        return match installing {
            true => (Phase::Installing, None),
            false => (Phase::Settled, None),
        };
    }
    match (&status.phase, seen) {
        (keeper::Phase::Held, _) => (Phase::Held, None),
        (keeper::Phase::Restoring, seen) => (seen.unwrap_or(Phase::Delivered), None),
        (keeper::Phase::Dead { .. }, _) | (_, Some(Phase::Held)) => (
            Phase::Failed,
            Some("what was held has died before its first instruction"),
        ),
        (_, None) => (
            Phase::Failed,
            Some("the agent was restarted while it was received"),
        ),
        (_, Some(seen)) => (seen, None),
    }
}

fn incoming(agent: &Agent, id: MigrationId) -> Result<Arc<Incoming>, Problem> {
    match agent.migration(id)? {
        Migration::Incoming(incoming) => Ok(incoming),
        Migration::Outgoing(_) => Err(problem::unknown_migration(id)),
    }
}

/// Before the commit: nothing is left of it.
pub async fn discard(agent: &Arc<Agent>, id: MigrationId) -> Result<(), Problem> {
    let Ok(incoming) = incoming(agent, id) else {
        // A `create` that this has overtaken must find that it is over.
        if agent.migration(id).is_err() {
            agent.forget_migration(id);
        }
        return Ok(());
    };
    let _made = made(&incoming).await?;
    let service = agent.service(&incoming.service).ok();
    if let Some(service) = service.filter(|service| is_arriving(service, id)) {
        let (this, of) = (Arc::clone(agent), service.clone());
        let status = blocking(move || this.keeper_if_any(&of)).await?;
        if status.is_some_and(|status| status.resumed_at_ns.is_some()) {
            let detail = format!("migration {id} was committed: the service runs here");
            return Err(problem::conflict(
                "committed",
                "too late to discard",
                detail,
            ));
        }
        stop_receiving(&incoming).await?;
        services::destroy_arriving(agent, &service).await?;
    } else if agent.service(&incoming.service).is_ok() {
        let detail = format!("migration {id} was committed: the service runs here");
        return Err(problem::conflict(
            "committed",
            "too late to discard",
            detail,
        ));
    }
    agent.forget_migration(id);
    Ok(())
}

/// Waits for a container that is still being made: what is half there can't be found, and would be
/// left behind. Nobody makes it while the answer is kept.
async fn made(incoming: &Incoming) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, Problem> {
    if incoming.view().created.is_some() {
        return Ok(None);
    }
    let made = tokio::time::timeout(RECEIVING_PATIENCE, incoming.operation.lock()).await;
    made.map(Some).map_err(|_| Problem {
        retry: true,
        ..Problem::failed(
            "creating",
            "the container is still being made",
            "it is discarded once it is there: try again",
        )
    })
}

/// Ends the data path and waits until it writes nothing more.
async fn stop_receiving(incoming: &Incoming) -> Result<(), Problem> {
    incoming.discarded.send_replace(true);
    let ended = tokio::time::timeout(RECEIVING_PATIENCE, incoming.receiving.lock()).await;
    ended.map(drop).map_err(|_| Problem {
        retry: true,
        ..Problem::failed(
            "receiving",
            "what arrives is still being written",
            "the disk does not take what it was given",
        )
    })
}

fn is_arriving(service: &Service, id: MigrationId) -> bool {
    service
        .record
        .arriving
        .as_ref()
        .is_some_and(|arriving| arriving.migration == id)
}

/// After the last page is in: the working state goes, the service stays.
pub async fn settle(agent: &Arc<Agent>, id: MigrationId) -> Result<(), Problem> {
    let Ok(incoming) = incoming(agent, id) else {
        return Ok(());
    };
    let (this, of) = (Arc::clone(agent), Arc::clone(&incoming));
    let state = blocking(move || Ok(of.state(id, &this))).await?;
    if state.phase == Phase::Installing {
        let detail = format!("{} pages are still to be installed", state.pages_pending);
        return Err(Problem {
            retry: true,
            ..problem::conflict("installing", "not settled yet", detail)
        });
    }
    let service = agent.service(&incoming.service);
    if service.is_ok_and(|service| is_arriving(&service, id)) {
        arrived(agent, &incoming.service).await?;
    }
    agent.forget_migration(id);
    Ok(())
}
