//! Step 13: the service executes, and clients reach it.

use std::sync::Arc;

use ums_api::agent::Running;
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::{Request, Status};
use ums_core::facts::Loss;
use ums_core::id::{MigrationId, ServiceName};

use crate::frontman::{self, YIELD_DRAIN};
use crate::host::Service;
use crate::node::Node;
use crate::packets::Policy;
use crate::task::{blocking, monotonic_ns};
use crate::{place, problem};

/// Step 13, after the commit: the service executes.
pub async fn run(node: &Arc<Node>, id: MigrationId) -> Result<Running, Problem> {
    let asked_at = monotonic_ns();
    let incoming = node.migrations.incoming(id)?;
    let _operation = incoming.operation.lock().await;
    let service = node.host.service(&incoming.service);
    let arrived_before = |service: &Service| !service.is_arriving(id);
    if incoming.view().has_run || service.as_ref().is_ok_and(arrived_before) {
        // Whatever became of it since: the answer to that was lost.
        return Ok(Running {
            resume_us: 0,
            losses: known_losses(service.ok()).await?,
        });
    }
    let service = service?;
    let container = service.container.clone();
    let resuming = blocking(move || {
        let resumed = container.ask(&Request::Resume);
        resumed.map_err(|error| problem::keeper(&error))
    });
    let has_place = incoming.view().has_place;
    let resumed = if has_place {
        // Not both at once: who changes rules of a namespace waits for others who do, and its keeper has one to lift.
        let resumed = resuming.await?;
        open_to_clients(node, &service).await.map(|()| resumed)
    } else {
        // One that comes home: no packet of the clients that it finds again may be lost between
        // its Frontman and itself. From the commit on its kernel may answer for it.
        open_to_clients(node, &service).await?;
        place::join(&*node.route, &service).await?;
        let (resumed, published) = tokio::join!(resuming, place::publish(&*node.route, &service));
        published.and(resumed)
    };
    let status = resumed?;
    let resume_ns = status
        .resumed_at_ns
        .unwrap_or(asked_at)
        .saturating_sub(asked_at);
    incoming.view().has_run = true;
    if let Err(problem) = arrived(node, &incoming.service).await {
        // It runs, and clients wait for that to be told. It is written before the migration is settled.
        tracing::warn!(migration = %id, ?problem, "that the service has arrived can't be written yet");
    }
    retire_frontman(node, id, &incoming.service);
    Ok(Running {
        resume_us: resume_ns / 1000,
        losses: losses([status]),
    })
}

/// What could not be set again of a service that has been let run before.
async fn known_losses(service: Option<Service>) -> Result<Vec<Loss>, Problem> {
    let Some(service) = service else {
        return Ok(Vec::new());
    };
    let status = service.container.status_if_any_async().await?;
    Ok(losses(status))
}

fn losses(status: impl IntoIterator<Item = Status>) -> Vec<Loss> {
    let lost = status.into_iter().flat_map(|status| status.lost);
    lost.map(Loss::from).collect()
}

/// The service has its endpoint back; whoever stood in for it here has only old connections left. It
/// sends what it has first, for which nobody waits.
fn retire_frontman(node: &Arc<Node>, id: MigrationId, name: &ServiceName) {
    let (node, name) = (Arc::clone(node), name.clone());
    tokio::spawn(async move {
        let inbound = node
            .host
            .service(&name)
            .ok()
            .and_then(|service| service.inbound);
        let kept = inbound.map(|inbound| inbound.migration);
        if let Err(error) = frontman::retire(&node.frontmen, &name, kept, YIELD_DRAIN).await {
            tracing::warn!(migration = %id, %error, "an old Frontman did not retire");
        }
    });
}

/// Writes down that a service is not on its way here any more.
pub(super) async fn arrived(node: &Arc<Node>, name: &ServiceName) -> Result<(), Problem> {
    let (this, name) = (Arc::clone(node), name.clone());
    blocking(move || this.host.arrived(&name)).await
}

/// Lets packets reach the service.
async fn open_to_clients(node: &Arc<Node>, service: &Service) -> Result<(), Problem> {
    let netns = service.container.netns().await?;
    let opened = node.packets.direct(&netns, Policy::Pass).await;
    opened.map_err(|error| {
        problem::failed(ProblemKind::Network, "clients can't reach the service")(&error)
    })
}
