//! Step 13: the service executes, and clients reach it.

use std::sync::Arc;

use ums_api::agent::Running;
use ums_api::problem::Problem;
use ums_checkpoint::keeper::protocol::{Request, Status};
use ums_core::facts::Loss;
use ums_core::id::{MigrationId, ServiceName};

use super::{incoming, is_arriving};
use crate::agent::{Agent, Service};
use crate::frontman::{self, YIELD_DRAIN};
use crate::services::{self, blocking};
use crate::source::monotonic_ns;
use ums_node::packets::Policy;
use ums_node::problem;

/// Step 13, after the commit: the service executes.
pub async fn run(agent: &Arc<Agent>, id: MigrationId) -> Result<Running, Problem> {
    let asked_at = monotonic_ns();
    let incoming = incoming(agent, id)?;
    let _operation = incoming.operation.lock().await;
    let service = agent.service(&incoming.service);
    let arrived_before = |service: &Service| !is_arriving(service, id);
    if incoming.view().has_run || service.as_ref().is_ok_and(arrived_before) {
        // Whatever became of it since: the answer to that was lost.
        return Ok(Running {
            resume_us: 0,
            losses: known_losses(agent, service.ok()).await?,
        });
    }
    let service = service?;
    let (this, of) = (Arc::clone(agent), service.clone());
    let resuming = blocking(move || {
        this.ask_keeper(&of, &Request::Resume)
            .map_err(|error| problem::keeper(&error))
    });
    let has_place = incoming.view().has_place;
    let resumed = if has_place {
        let (resumed, opened) = tokio::join!(resuming, open_to_clients(agent, &service));
        opened.and(resumed)
    } else {
        // One that comes home: no packet of the clients that it finds again may be lost between
        // its Frontman and itself. From the commit on its kernel may answer for it.
        open_to_clients(agent, &service).await?;
        services::join(agent, &service).await?;
        let (resumed, published) = tokio::join!(resuming, services::publish(agent, &service));
        published.and(resumed)
    };
    let status = resumed?;
    let resume_ns = status
        .resumed_at_ns
        .unwrap_or(asked_at)
        .saturating_sub(asked_at);
    incoming.view().has_run = true;
    if let Err(problem) = arrived(agent, &incoming.service).await {
        // It runs, and clients wait for that to be told. It is written before the migration is settled.
        tracing::warn!(migration = %id, ?problem, "that the service has arrived can't be written yet");
    }
    retire_frontman(agent, id, &incoming.service);
    Ok(Running {
        resume_us: resume_ns / 1000,
        losses: losses([status]),
    })
}

/// What could not be set again of a service that has been let run before.
async fn known_losses(agent: &Arc<Agent>, service: Option<Service>) -> Result<Vec<Loss>, Problem> {
    let Some(service) = service else {
        return Ok(Vec::new());
    };
    let this = Arc::clone(agent);
    let status = blocking(move || this.keeper_if_any(&service)).await?;
    Ok(losses(status))
}

fn losses(status: impl IntoIterator<Item = Status>) -> Vec<Loss> {
    let lost = status.into_iter().flat_map(|status| status.lost);
    lost.map(Loss::from).collect()
}

/// The service has its endpoint back; whoever stood in for it here has only old connections left. It
/// sends what it has first, for which nobody waits.
fn retire_frontman(agent: &Arc<Agent>, id: MigrationId, name: &ServiceName) {
    let (agent, name) = (Arc::clone(agent), name.clone());
    tokio::spawn(async move {
        if let Err(error) = frontman::retire(&agent, &name, YIELD_DRAIN).await {
            tracing::warn!(migration = %id, %error, "an old Frontman did not retire");
        }
    });
}

/// Writes down that a service is not on its way here any more.
pub(super) async fn arrived(agent: &Arc<Agent>, name: &ServiceName) -> Result<(), Problem> {
    let (this, name) = (Arc::clone(agent), name.clone());
    let update = move || {
        this.update_record(&name, |record| {
            record.arriving = None;
            Ok(())
        })
    };
    blocking(update).await.map(drop)
}

/// Lets packets reach the service.
async fn open_to_clients(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    let netns = services::netns(agent, service).await?;
    let opened = agent.packets.direct(&netns, Policy::Pass).await;
    opened.map_err(|error| problem::failed("network", "clients can't reach the service")(&error))
}
