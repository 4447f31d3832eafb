//! What a migration that is given up needs at the source: the service runs on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::client;
use ums_checkpoint::keeper::protocol::{self as keeper, Request, Status};
use ums_core::id::{MigrationId, ServiceName};

use crate::container::{ContainerPlan, netns_path};
use crate::node::Node;
use crate::packets::Policy;
use crate::problem;
use crate::task::blocking;

/// How long a dump may take to end after its page socket was closed.
const DUMP_END_PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two looks whether it has.
const DUMP_END_LOOK: Duration = Duration::from_millis(5);

/// Compensation of [`checkpoint`](super::checkpoint) and [`open`](super::open): what is under way ends, and the service runs on as
/// if nothing had been asked.
pub async fn thaw(node: &Arc<Node>, id: MigrationId, name: ServiceName) -> Result<(), Problem> {
    if let Ok(outgoing) = node.migrations.outgoing(id) {
        outgoing.abandoned.send_replace(true);
        let _operation = outgoing.operation.lock().await;
        let path = outgoing.view().path.take();
        if let Some(path) = path {
            path.sender.abandon("the migration was abandoned").await;
        }
    }
    // Before the memory changes that it reads.
    super::end_pager(node, id).await?;
    let service = match node.host.service(&name) {
        Ok(service) if service.gate.is_none_or(|gate| gate == id) => service,
        Ok(_) | Err(_) => return Ok(()),
    };
    if service
        .container
        .thaw_without_keeper(&*node.packets)
        .await?
    {
        return Ok(());
    }
    let container = service.container.clone();
    let status = blocking(move || after_dump(&container)).await?;
    if !matches!(status.phase, keeper::Phase::Frozen | keeper::Phase::Running) {
        return Ok(());
    }
    // First, or the service would begin with packets lost; but it must run whatever comes of it.
    let netns = netns_path(&status);
    let released = node.packets.direct(&netns, Policy::Pass).await;
    blocking(move || {
        let thawed = service.container.ask(&Request::Thaw);
        thawed.map_err(|error| problem::keeper(&error))
    })
    .await?;
    released
        .map_err(|error| problem::failed(ProblemKind::Network, "packets can't be released")(&error))
}

/// The keeper's status once no dump is under way: one that is is ended.
fn after_dump(container: &ContainerPlan) -> Result<Status, Problem> {
    // A keeper of an earlier version does not know the request, and closes the connection: its dump
    // ends by itself, because nobody takes its pages any more.
    if let Err(error @ client::Error::Failed { .. }) = container.ask(&Request::Cut) {
        return Err(problem::keeper(&error));
    }
    let end = Instant::now() + DUMP_END_PATIENCE;
    loop {
        let status = container.status();
        let status = status.map_err(|error| problem::keeper(&error))?;
        if status.phase != keeper::Phase::Dumping {
            return Ok(status);
        }
        if Instant::now() > end {
            let detail = "CRIU does not end although nobody takes its pages: try again";
            return Err(Problem::failed(
                ProblemKind::Dump,
                "the checkpoint does not end",
                detail,
            ));
        }
        std::thread::sleep(DUMP_END_LOOK);
    }
}
