//! The moment of the freeze, seen from the network: what is held when, and which connections move.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use ums_api::problem::Problem;
use ums_checkpoint::keeper::gate::Attendant;
use ums_checkpoint::keeper::protocol::Status;
use ums_checkpoint::memory_dir::MemoryDir;

use super::{ACCEPT_LOOK, ACCEPT_WITHIN, READ_LOOK, READ_WITHIN};
use crate::agent::{Agent, Service};
use crate::connections::{self, Moving};
use crate::container::netns_path;
use crate::network::{Connections, Packets};
use crate::problem;
use crate::services::blocking;

/// Both ends of a gate: ours, and the keeper's.
pub(super) fn pair() -> Result<(Attendant, OwnedFd), Problem> {
    let made = UnixStream::pair().and_then(|(ours, theirs)| {
        let attendant = Attendant::new(ours)?;
        Ok((attendant, OwnedFd::from(theirs)))
    });
    made.map_err(|error| problem::failed("socket", "no socket")(&error))
}

/// Holds what arrives from right before the freeze on, and what leaves from right after it, and
/// says which connections there are. `None` when the dump came to no freeze, which it tells itself.
///
/// In this order nothing is lost: what arrived before is in the service's queues, which are dumped;
/// what arrives later is held; and what the service still sends while it runs leaves, so that no
/// copy of it waits for a retransmission. New connections are held first, until the service has
/// accepted those that wait: they could not move. Nor could datagrams that it has not read.
pub(super) async fn attend(
    agent: &Arc<Agent>,
    netns: PathBuf,
    mut attendant: Attendant,
) -> Result<Option<Connections>, Problem> {
    let failed = problem::failed("network", "packets can't be held");
    let (mut attendant, comes) = blocking(move || {
        let comes = attendant.wait_before();
        Ok((attendant, comes))
    })
    .await?;
    if comes.is_err() {
        return Ok(None);
    }
    let network = &agent.network;
    let held = network.direct(&netns, Packets::HoldNew).await;
    held.map_err(|error| failed(&error))?;
    wait_for_acceptance(agent, &netns).await?;
    let held = network.direct(&netns, Packets::Hold).await;
    held.map_err(|error| failed(&error))?;
    wait_for_readers(agent, &netns).await;
    let frozen = blocking(move || {
        let frozen = attendant
            .give_leave()
            .and_then(|()| attendant.wait_frozen());
        Ok(frozen)
    });
    if frozen.await?.is_err() {
        return Ok(None);
    }
    let connections = network.connections(&netns).await;
    let connections = connections.map_err(|error| failed(&error))?;
    let frozen = network.freeze(&netns, &connections.closing).await;
    frozen.map_err(|error| failed(&error))?;
    Ok(Some(connections))
}

async fn wait_for_acceptance(agent: &Agent, netns: &std::path::Path) -> Result<(), Problem> {
    let end = Instant::now() + ACCEPT_WITHIN;
    loop {
        let connections = agent.network.connections(netns).await;
        let connections = connections
            .map_err(|error| problem::failed("network", "connections can't be listed")(&error))?;
        let waiting = connections.unaccepted.len();
        if waiting == 0 {
            return Ok(());
        }
        if Instant::now() > end {
            tracing::warn!(
                waiting,
                "connections that the service does not accept are given up"
            );
            return Ok(());
        }
        tokio::time::sleep(ACCEPT_LOOK).await;
    }
}

/// Waits, for a moment, until the service has read its datagrams.
async fn wait_for_readers(agent: &Agent, netns: &std::path::Path) {
    let end = Instant::now() + READ_WITHIN;
    loop {
        match agent.network.has_unread_datagrams(netns).await {
            Ok(true) if Instant::now() < end => tokio::time::sleep(READ_LOOK).await,
            Ok(true) => {
                tracing::warn!("datagrams that the service does not read are given up");
                return;
            }
            Ok(false) => return,
            Err(error) => {
                // A kernel without `udp_diag`: they can't be seen, and what they are is unreliable.
                tracing::debug!(%error, "unread datagrams can't be seen");
                return;
            }
        }
    }
}

/// What came of the dump and of attending it.
pub(super) fn both(
    dumped: Result<Status, Problem>,
    attended: Result<Option<Connections>, Problem>,
) -> Result<(Status, Connections), Problem> {
    // Where packets could not be held the keeper got no leave: the cause comes first.
    let attended = attended?;
    let status = dumped?;
    let connections = attended.ok_or_else(|| {
        let detail = "the service was frozen while nobody held its packets: migrate again";
        Problem::failed("network", "packets were not held", detail)
    })?;
    Ok((status, connections))
}

/// Puts into the checkpoint which connections move, and which way their answers go.
pub(super) async fn tell_destination(
    agent: &Arc<Agent>,
    service: &Service,
    status: &Status,
    images: &MemoryDir,
    connections: &Connections,
) -> Result<(), Problem> {
    let remembered = agent.network.remembered(&netns_path(status)).await;
    let remembered = remembered
        .map_err(|error| problem::failed("network", "connections can't be listed")(&error))?;
    let inbound = service.record.inbound.as_ref();
    let carried_from = inbound.map(|inbound| inbound.source.clone());
    let moving = Moving::new(connections, &remembered, carried_from);
    let text = serde_json::to_vec(&moving).unwrap_or_default();
    images
        .write(connections::NAME, &text)
        .map_err(|error| problem::failed("images", "no memory")(&error))
}
