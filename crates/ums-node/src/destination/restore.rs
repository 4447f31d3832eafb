//! Steps 11 and 12: the service is restored, and held before its first instruction.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ums_api::agent::{Phase, Restored};
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::{Connections, Request, RestoreRequest};
use ums_checkpoint::memory_dir::MemoryDir;
use ums_core::budget::{Laps, Part};
use ums_core::id::MigrationId;

use crate::connections::{self, Moving};
use crate::host::Service;
use crate::migration::{Delivery, Incoming};
use crate::node::Node;
use crate::packets::Policy;
use crate::task::{blocking, monotonic_ns};
use crate::{frontman, pager, place, problem, tunnel};

/// How long a `restore` waits for the end of a delivery that the source believes complete.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);

/// Steps 11 and 12: restores the service and holds it before its first instruction.
pub async fn restore(node: &Arc<Node>, id: MigrationId) -> Result<Restored, Problem> {
    let incoming = node.migrations.incoming(id)?;
    let _operation = incoming.operation.lock().await;
    if let Some(restored) = incoming.view().restored.clone() {
        return Ok(restored);
    }
    let delivery = wait_for_delivery(&incoming).await?;
    let service = node.host.service(&incoming.service)?;
    let moving = moving_connections(&delivery.images)?;
    let connections = moving
        .as_ref()
        .map_or(Connections::Close, |_| Connections::Carry);
    let of = service.clone();
    let digest = delivery.digest.clone();
    let this = Arc::clone(node);
    let restoring = blocking(move || {
        let supply = supply(&this, id, &delivery.images)?;
        let keeper = of.container.keeper();
        let keeper = keeper.map_err(|error| problem::keeper(&error))?;
        let request = RestoreRequest {
            lazy_bytes: delivery.stored.lazy_bytes,
            lazy: delivery.lazy,
            connections,
        };
        let fds = [delivery.images.as_fd(), delivery.stored.lazy.as_fd()];
        let fds: Vec<_> = fds
            .into_iter()
            .chain(supply.as_ref().map(AsFd::as_fd))
            .collect();
        let status = keeper.call(&Request::Restore(request), &fds);
        let status = status.map_err(|error| problem::keeper(&error))?;
        this.host.is_made(&of)?;
        Ok(Restored {
            restore_us: status.restore_us.unwrap_or(0),
            digest,
            spans: status.spans,
        })
    });
    // Its network is made ready meanwhile, so that none of that is left for after the commit.
    let restoring = async { (restoring.await, monotonic_ns()) };
    let stood_by = incoming.view().stood_by;
    let readying = stand_ready(node, &service, moving, stood_by);
    let ((restored, restored_at_ns), ready) = tokio::join!(restoring, readying);
    let mut waited = Laps::begin(restored_at_ns);
    waited.lap(Part::StandReady, monotonic_ns());
    let mut view = incoming.view();
    let restored = restored.and_then(|mut restored| {
        view.has_place = ready?;
        restored.spans.extend(waited.into_spans());
        Ok(restored)
    });
    match &restored {
        Ok(restored) => {
            view.phase = Some(Phase::Held);
            view.restored = Some(restored.clone());
        }
        Err(problem) => {
            view.phase = Some(Phase::Failed);
            view.error = Some(problem.to_string());
        }
    }
    restored
}

/// Whence pages come that have stayed at the source, where any have. Blocks.
fn supply(node: &Node, id: MigrationId, images: &MemoryDir) -> Result<Option<OwnedFd>, Problem> {
    let failed = problem::failed(ProblemKind::Images, "the checkpoint can't be read");
    let text = match std::fs::read(images.path().join(pager::NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let stayed = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    pager::bring(node, id, stayed).map(Some)
}

/// Which connections move along; `None` when they don't.
fn moving_connections(images: &MemoryDir) -> Result<Option<Moving>, Problem> {
    let text = match std::fs::read(images.path().join(connections::NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let failed = problem::failed(ProblemKind::Images, "the checkpoint can't be read");
            return Err(failed(&error));
        }
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let title = "the checkpoint's list of connections is malformed";
        let detail = format!("{error}; are both systems of the same version?");
        Problem::failed(ProblemKind::Images, title, detail)
    })
}

/// Has the network of a service that is to come stand by, while it still runs elsewhere, and says whether it
/// has its place: on the bridge, with its ports. Nothing reaches it: its kernel would answer for a copy that may
/// never run.
pub(super) async fn stand_by(node: &Arc<Node>, service: &Service) -> Result<bool, Problem> {
    let netns = service.container.netns().await?;
    let held = node.packets.direct(&netns, Policy::Hold).await;
    held.map_err(|error| not_ready(&error))?;
    take_place(node, service).await
}

async fn take_place(node: &Arc<Node>, service: &Service) -> Result<bool, Problem> {
    if frontman::is_there(&node.frontmen, service.name()).await? {
        // It has been here before, and its Frontman has its place until the commit.
        return Ok(false);
    }
    place::join(&*node.route, service).await?;
    place::publish(&*node.route, service).await.map(|()| true)
}

/// Makes the service's network ready for its first instruction, and says whether it has its place
/// on the bridge; `stood_by` is what was said when it stood by.
async fn stand_ready(
    node: &Arc<Node>,
    service: &Service,
    moving: Option<Moving>,
    stood_by: Option<bool>,
) -> Result<bool, Problem> {
    let netns = service.container.netns().await?;
    let has_place = match stood_by {
        Some(true) => true,
        Some(false) => take_place(node, service).await?,
        None => stand_by(node, service).await?,
    };
    match moving {
        Some(moving) => {
            let sorted = moving.sort(&node.settings.system);
            let (carried, home) = (&sorted.carried, &sorted.home);
            let carried = node.packets.carry(&netns, carried, home).await;
            carried.map_err(|error| not_ready(&error))?;
        }
        // The source works on connections: the tunnel that it was offered is of no use.
        None => tunnel::end_inbound(&node.frontmen, service).await?,
    }
    Ok(has_place)
}

fn not_ready(error: &crate::packets::PacketError) -> Problem {
    let title = "the service's network can't be made ready";
    problem::failed(ProblemKind::Network, title)(error)
}

/// The delivery, which may be a moment behind what the source was told.
async fn wait_for_delivery(incoming: &Incoming) -> Result<Delivery, Problem> {
    let wait = async {
        loop {
            let notified = incoming.delivered.notified();
            {
                let mut view = incoming.view();
                if let Some(delivery) = view.delivery.take() {
                    return Ok(delivery);
                }
                if let Some(error) = &view.error {
                    return Err(Problem::failed(
                        ProblemKind::Delivery,
                        "the checkpoint did not arrive",
                        error,
                    ));
                }
            }
            notified.await;
        }
    };
    tokio::time::timeout(DELIVERY_PATIENCE, wait).await.unwrap_or_else(|_| {
        let detail = "the checkpoint has not arrived whole: this agent was restarted meanwhile, or \
                      the source was not finished; migrate again";
        Err(problem::conflict(ProblemKind::NotDelivered, "nothing to restore", detail))
    })
}
