//! The moment of the freeze, seen from the network: what is held when, and which connections move.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinError;
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::handshake::NodeSide;
use ums_checkpoint::keeper::protocol::Status;
use ums_checkpoint::memory_dir::MemoryDir;

use crate::connections::{self, Moving};
use crate::host::Service;
use crate::node::Node;
use crate::packets::{Connections, Flow, PacketError, Policy, Remembered};
use crate::problem;

/// How long a service may take to accept the connections that wait for it. One that is stuck shall
/// not be waited for: what it has not accepted by then is reset.
const ACCEPT_WITHIN: Duration = Duration::from_millis(300);
/// Pause between two looks whether it has.
const ACCEPT_LOOK: Duration = Duration::from_millis(2);
/// How long a service may take to read the datagrams that wait for it. One that is busy, or never reads
/// a socket, loses them, as it would without a migration when its queue is full.
const READ_WITHIN: Duration = Duration::from_millis(30);
/// Pause between two looks whether it has.
const READ_LOOK: Duration = Duration::from_millis(1);

/// Both ends of a handshake: ours, and the keeper's.
pub(super) fn pair() -> Result<(NodeSide, OwnedFd), Problem> {
    let made = UnixStream::pair().and_then(|(ours, theirs)| {
        let node_side = NodeSide::new(ours)?;
        Ok((node_side, OwnedFd::from(theirs)))
    });
    made.map_err(|error| problem::failed(ProblemKind::Socket, "no socket can be made")(&error))
}

/// What a frozen service has to do with others.
#[derive(Debug)]
pub(super) struct Held {
    /// Its connections.
    connections: Connections,
    /// What its namespace remembers.
    remembered: Result<Remembered, PacketError>,
}

/// Holds what arrives from right before the freeze on, and what leaves from right after it, and
/// says which connections there are. `None` when the dump came to no freeze, which it tells itself.
/// Returns at the end of the dump; if that came to nothing packets pass again before the service does
/// anything.
///
/// In this order nothing is lost: what arrived before is in the service's queues, which are dumped;
/// what arrives later is held; and what the service still sends while it runs leaves, so that no
/// copy of it waits for a retransmission. New connections are held first, until the service has
/// accepted those that wait: they could not move. Nor could datagrams that it has not read.
///
/// *Cancel safety*: none; to be run in a task of its own.
pub(super) async fn attend(
    node: Arc<Node>,
    netns: PathBuf,
    node_side: NodeSide,
) -> Result<Option<Held>, Problem> {
    let mut node_side = Some(node_side);
    if ask(&mut node_side, NodeSide::wait_before).await.is_err() {
        return Ok(None);
    }
    let held = hold(&node, &netns, &mut node_side).await;
    let held = match held {
        // CRIU is at work meanwhile.
        Ok(Some(connections)) => Ok(Some(Held {
            connections,
            remembered: node.packets.remembered(&netns).await,
        })),
        other => other.map(|_| None),
    };
    let ended_well = match &held {
        Ok(Some(_)) => ask(&mut node_side, NodeSide::wait_end).await.ok() == Some(false),
        _ => false,
    };
    if !ended_well {
        if let Err(error) = node.packets.direct(&netns, Policy::Pass).await {
            // It is tried again when the migration is undone.
            tracing::warn!(%error, "the service runs on while its packets are held");
        }
        // The keeper waits for this; it may have gone.
        let _ = ask(&mut node_side, NodeSide::say_open).await;
    }
    held
}

/// Holds packets step by step while the service is being frozen.
async fn hold(
    node: &Node,
    netns: &Path,
    node_side: &mut Option<NodeSide>,
) -> Result<Option<Connections>, Problem> {
    let failed = problem::failed(ProblemKind::Network, "packets can't be held");
    let network = &node.packets;
    let held = network.direct(netns, Policy::HoldNew).await;
    held.map_err(|error| failed(&error))?;
    wait_for_acceptance(node, netns).await?;
    let held = network.direct(netns, Policy::LastMoment).await;
    held.map_err(|error| failed(&error))?;
    wait_for_itself(node, netns).await?;
    wait_for_readers(node, netns).await;
    let frozen = |node_side: &mut NodeSide| {
        node_side.give_leave()?;
        node_side.wait_frozen()
    };
    if ask(node_side, frozen).await.is_err() {
        return Ok(None);
    }
    let connections = network.connections(netns).await;
    let connections = connections.map_err(|error| failed(&error))?;
    let frozen = network.freeze(netns, &connections.closing).await;
    frozen.map_err(|error| failed(&error))?;
    can_move(&connections.stuck)?;
    let told = ask(node_side, NodeSide::say_held).await;
    Ok(told.ok().map(|()| connections))
}

/// Speaks to the keeper from a thread that may wait.
async fn ask<T: Send + 'static>(
    node_side: &mut Option<NodeSide>,
    what: impl FnOnce(&mut NodeSide) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let mut taken = node_side.take().ok_or_else(gone)?;
    let asking = tokio::task::spawn_blocking(move || {
        let answer = what(&mut taken);
        (taken, answer)
    });
    let (taken, answer) = asking.await.map_err(|_| gone())?;
    *node_side = Some(taken);
    answer
}

async fn listed(node: &Node, netns: &Path) -> Result<Connections, Problem> {
    let connections = node.packets.connections(netns).await;
    connections.map_err(|error| {
        problem::failed(ProblemKind::Network, "connections can't be listed")(&error)
    })
}

/// Waits until the service has accepted all connections to itself, and has read what was written to
/// it on those that are closed.
async fn wait_for_itself(node: &Node, netns: &Path) -> Result<(), Problem> {
    let end = Instant::now() + ACCEPT_WITHIN;
    loop {
        let connections = listed(node, netns).await?;
        match can_move(&connections.stuck) {
            Err(_) if Instant::now() < end => tokio::time::sleep(ACCEPT_LOOK).await,
            done => return done,
        }
    }
}

/// Refuses what would wait for ever at the destination: one end alone of a connection can't move.
fn can_move(stuck: &BTreeSet<Flow>) -> Result<(), Problem> {
    let Some(flow) = stuck.first() else {
        return Ok(());
    };
    let detail = format!(
        "the service has {} connections to itself that it has not accepted, or has closed before \
         all was read ({} from {}): such a connection can't move; migrate again when it has gone on \
         with them",
        stuck.len(),
        flow.service,
        flow.peer
    );
    let title = "the service does not go on with a connection to itself";
    Err(Problem::failed(ProblemKind::Connections, title, detail))
}

async fn wait_for_acceptance(node: &Node, netns: &Path) -> Result<(), Problem> {
    let end = Instant::now() + ACCEPT_WITHIN;
    loop {
        let connections = listed(node, netns).await?;
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
async fn wait_for_readers(node: &Node, netns: &Path) {
    let end = Instant::now() + READ_WITHIN;
    loop {
        match node.packets.has_unread_datagrams(netns).await {
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
    attended: Result<Result<Option<Held>, Problem>, JoinError>,
) -> Result<(Status, Held), Problem> {
    let attended = attended.map_err(|error| problem::panicked(&error))?;
    // Where packets could not be held the keeper got no leave: the cause comes first.
    let attended = attended?;
    let status = dumped?;
    let held = attended.ok_or_else(|| {
        let detail = "the service was frozen while nobody held its packets: migrate again";
        Problem::failed(ProblemKind::Network, "packets were not held", detail)
    })?;
    Ok((status, held))
}

/// Puts into the checkpoint which connections move, and which way their answers go.
pub(super) fn tell_destination(
    service: &Service,
    images: &MemoryDir,
    held: &Held,
) -> Result<(), Problem> {
    let remembered = held.remembered.as_ref().map_err(|error| {
        problem::failed(ProblemKind::Network, "connections can't be listed")(error)
    })?;
    let inbound = service.inbound.as_ref();
    let carried_from = inbound.map(|inbound| inbound.source.clone());
    let moving = Moving::new(&held.connections, remembered, carried_from);
    let text = serde_json::to_vec(&moving).unwrap_or_default();
    images.write(connections::NAME, &text).map_err(|error| {
        problem::failed(
            ProblemKind::Images,
            "there is no memory for the checkpoint's images",
        )(&error)
    })
}
