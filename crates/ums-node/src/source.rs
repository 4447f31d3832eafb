//! The source side of a migration: everything from the shut gate to the deleted source.

use std::sync::Arc;

use ums_api::agent::{CheckpointRequest, Checkpointed, Phase};
use ums_api::problem::{Effect, Fault, Problem, ProblemKind};
use ums_checkpoint::keeper::protocol as keeper;
use ums_checkpoint::memory_dir::MemoryDir;
use ums_core::budget::{Laps, Part};
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_core::report::Bytes;
use ums_sync::files;

use crate::container::netns_path;
use crate::host::{Keep, Service};
use crate::migration::{DataPath, Migration, Outgoing};
use crate::node::Node;
use crate::pager;
use crate::problem;
use crate::task::{blocking, monotonic_ns};
use crate::tunnel;

mod clients;
mod dump;
mod freeze;
mod memory;
mod open;
mod thaw;
mod trees;

pub use clients::{hold, lead, yield_to_service};
use memory::Memory;
pub use open::open;
pub use thaw::thaw;

/// Room for CRIU's metadata images, bytes: they grow with processes, mappings and deleted files.
const IMAGES_BYTES_MAX: u64 = 1 << 30;

/// Step 8: control messages are refused from now on.
pub async fn block(node: &Arc<Node>, id: MigrationId, name: ServiceName) -> Result<(), Problem> {
    node.host.leave(&name).await?;
    let this = Arc::clone(node);
    blocking(move || {
        this.host.service(&name)?;
        remember(&this, id, &name)?;
        this.host.shut_gate(&name, id)
    })
    .await
}

fn remember(node: &Node, id: MigrationId, name: &ServiceName) -> Result<Arc<Outgoing>, Problem> {
    let known = |migration: &Migration| match migration {
        Migration::Outgoing(outgoing) => Some(Arc::clone(outgoing)),
        Migration::Incoming(_) => None,
    };
    node.migrations.enter(id, known, || {
        let outgoing = Arc::new(Outgoing::new(name.clone()));
        (Arc::clone(&outgoing), Migration::Outgoing(outgoing))
    })
}

/// Compensation of [`block`]. The migration is over for this agent.
pub async fn unblock(node: &Arc<Node>, id: MigrationId, name: ServiceName) -> Result<(), Problem> {
    if let Ok(outgoing) = node.migrations.outgoing(id) {
        let path = outgoing.view().path.take();
        if let Some(path) = path {
            path.sender.abandon("the migration was abandoned").await;
        }
    }
    end_pager(node, id).await?;
    let this = Arc::clone(node);
    blocking(move || {
        match this.host.open_gate(&name, id) {
            Err(problem) if problem.status != 404 => return Err(problem),
            _ => {}
        }
        this.migrations.forget(id);
        Ok(())
    })
    .await
}

/// Steps 8 to 10: freezes the service, checkpoints it while everything streams, and returns when
/// the destination has verified that it has all of it.
pub async fn checkpoint(
    node: &Arc<Node>,
    id: MigrationId,
    request: CheckpointRequest,
) -> Result<Checkpointed, Problem> {
    let outgoing = node.migrations.outgoing(id)?;
    let _operation = outgoing.operation.lock().await;
    if let Some(done) = outgoing.view().checkpointed.clone() {
        return Ok(done);
    }
    let service = gated(node, id, &request.service)?;
    let Some(path) = outgoing.view().path.take() else {
        let detail = "the data path is not open: the agent was restarted since, or never opened it";
        return Err(problem::conflict(
            ProblemKind::NotOpen,
            "no data path",
            detail,
        ));
    };
    outgoing.enter_phase(Phase::Checkpointing);
    let decided = outgoing.view().connections;
    let connections = decided.unwrap_or(keeper::Connections::Close);
    let result = outgoing
        .unless_abandoned(freeze_and_send(node, id, &service, path, connections))
        .await;
    match &result {
        Ok(done) => {
            let mut view = outgoing.view();
            view.phase = Some(Phase::Delivered);
            view.checkpointed = Some(done.clone());
        }
        Err(problem) => outgoing.fail(problem),
    }
    result
}

async fn freeze_and_send(
    node: &Arc<Node>,
    id: MigrationId,
    service: &Service,
    path: DataPath,
    connections: keeper::Connections,
) -> Result<Checkpointed, Problem> {
    let DataPath {
        sender,
        manifest,
        copied,
        destination,
        leave,
    } = path;
    let rounds = copied.as_ref().map_or(0, |copied| copied.count);
    let wire_before = sender.meter().bytes().wire;
    let status = service.container.status_async().await?;
    if let keeper::Phase::Dead { code } = status.phase {
        return Err(problem::exited(&service.specification.name, code));
    }
    let images = MemoryDir::new(IMAGES_BYTES_MAX);
    let images = Arc::new(images.map_err(|e| {
        problem::failed(
            ProblemKind::Images,
            "there is no memory for the checkpoint's images",
        )(&e)
    })?);
    let (node_side, keeper_side) = freeze::pair()?;
    // In a task of its own: whatever becomes of this, packets pass again before the service runs on.
    let attending = freeze::attend(Arc::clone(node), netns_path(&status), node_side);
    let attending = tokio::spawn(attending);
    let by = match status.protocol >= keeper::PROTOCOL_OF_MEMORY_BY_AGENT {
        true => keeper::MemoryBy::Agent,
        false => keeper::MemoryBy::Criu,
    };
    if leave {
        leave_memory(node, id, service, (&status, &destination), &images).await?;
    }
    let memory = Memory::new(&service.container.cgroup, &sender, (by, leave), copied);
    let dumping = dump::dump(node, service, &images, memory, (connections, keeper_side));
    let (attended, dumped) = tokio::join!(attending, dumping);
    let (status, held) = freeze::both(dumped, attended)?;
    let mut laps = Laps::begin(status.dumped_at_ns.unwrap_or_else(monotonic_ns));
    if connections == keeper::Connections::Carry {
        freeze::tell_destination(service, &images, &held)?;
    }
    let (this, of) = (Arc::clone(node), service.clone());
    let (mut files, metadata) = (sender.files(), sender.images());
    let at = status.clone();
    let mut laps = blocking(move || {
        dump::send_images(&images, &metadata)?;
        laps.lap(Part::Images, monotonic_ns());
        let tree = trees::all(&this, &of, &at, false);
        let always = trees::changing_files(&of, &at)?;
        files::second_pass(&tree, &manifest, &always, &mut files).map_err(|e| at_files(&e))?;
        Ok(laps)
    })
    .await?;
    laps.lap(Part::Files, monotonic_ns());
    // Nothing was promised to anybody yet.
    node.host.is_undisturbed(service).await?;
    let delivered = sender.finish().await.map_err(|error| at_peer(&error))?;
    let delivered_at_ns = monotonic_ns();
    laps.lap(Part::Deliver, delivered_at_ns);
    Ok(Checkpointed {
        frozen_at_ns: status.frozen_at_ns.unwrap_or(0),
        dumped_at_ns: status.dumped_at_ns.unwrap_or(0),
        delivered_at_ns,
        digest: hex(&delivered.digest),
        bytes: Bytes {
            frozen: delivered.bytes.wire.saturating_sub(wire_before),
            ..delivered.bytes
        },
        rounds,
        spans: [status.spans, laps.into_spans()].concat(),
    })
}

/// Has what pages stay here until the service runs there be served, and tells the destination where.
async fn leave_memory(
    node: &Arc<Node>,
    id: MigrationId,
    service: &Service,
    (status, destination): (&keeper::Status, &SystemName),
    images: &MemoryDir,
) -> Result<(), Problem> {
    if status.protocol < keeper::PROTOCOL_OF_MEMORY_BY_AGENT {
        let detail = "the service's keeper is of an earlier release, which reads all memory itself: migrate by \
                      stop-and-copy, or start the service again";
        let title = "technique not available";
        return Err(Problem::refused(400, ProblemKind::Technique, title, detail));
    }
    let (this, to, cgroup) = (
        Arc::clone(node),
        destination.clone(),
        service.container.cgroup.clone(),
    );
    let stayed = blocking(move || pager::serve(&this, id, &to, &cgroup)).await?;
    let text = serde_json::to_vec(&stayed).unwrap_or_default();
    images.write(pager::NAME, &text).map_err(|error| {
        problem::failed(
            ProblemKind::Images,
            "there is no memory for the checkpoint's images",
        )(&error)
    })
}

/// Nothing is read any more of what has stayed here.
async fn end_pager(node: &Arc<Node>, id: MigrationId) -> Result<(), Problem> {
    let this = Arc::clone(node);
    let ended = blocking(move || Ok(pager::end(&this, id))).await?;
    ended.map_err(|error| problem::failed(ProblemKind::Pages, "the pager can't be ended")(&error))
}

/// Before step 13: whether nobody has told the frozen service anything that it will never hear.
pub async fn confirm(node: &Arc<Node>, id: MigrationId, name: ServiceName) -> Result<(), Problem> {
    let service = gated(node, id, &name)?;
    node.host.confirm(&service).await
}

/// Step 15: the frozen source is destroyed without executing another instruction.
pub async fn delete_source(
    node: &Arc<Node>,
    id: MigrationId,
    name: ServiceName,
) -> Result<(), Problem> {
    end_pager(node, id).await?;
    let Ok(service) = node.host.service(&name) else {
        node.migrations.forget(id);
        return Ok(());
    };
    if service.gate != Some(id) {
        // It was deleted, and another service has its name since.
        return Ok(());
    }
    if tunnel::is_there(&node.frontmen, &name).await? {
        if let Some(netns) = service.container.remaining_netns().await
            && let Err(error) = node.packets.forget_connections(&netns).await
        {
            tracing::warn!(migration = %id, %error, "the old namespace will stay for minutes");
        }
        node.host.destroy(&service, Keep::Network).await?;
        node.migrations.forget(id);
        return Ok(());
    }
    // An engine gives the address to another container: nothing of ours may be said of it.
    if service.engine.is_none() {
        let status = service.container.status_if_any_async().await?;
        let netns = status.as_ref().map(netns_path);
        // Clients with a connection from before learn that it is over; else they would wait.
        let reset = node.route.reset_clients(&service, netns.as_deref()).await;
        reset.map_err(|error| {
            problem::failed(ProblemKind::Network, "connections can't be reset")(&*error)
        })?;
    }
    node.host.destroy(&service, Keep::Endpoints).await?;
    node.migrations.forget(id);
    Ok(())
}

fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// The service of a migration, which must have its gate shut by it.
fn gated(node: &Node, id: MigrationId, name: &ServiceName) -> Result<Service, Problem> {
    let service = node.host.service(name)?;
    if service.gate == Some(id) {
        return Ok(service);
    }
    let detail = format!("the gate of `{name}` is not shut by migration {id}");
    Err(problem::conflict(
        ProblemKind::NotBlocked,
        "the service is not blocked",
        detail,
    ))
}

fn at_peer(error: &(dyn std::error::Error + 'static)) -> Problem {
    let detail = problem::chain(error);
    Problem {
        fault: Fault::Peer,
        effect: Effect::None,
        status: 502,
        ..Problem::failed(
            ProblemKind::DataPath,
            "the data path to the destination failed",
            detail,
        )
    }
}

fn not_connected(error: &ums_tls::TlsError) -> Problem {
    let problem = at_peer(error);
    let detail = format!(
        "{}; see whether its agent runs there (`ums doctor`), and whether a firewall lets its data \
         port through; then migrate again",
        problem.detail
    );
    Problem { detail, ..problem }
}

fn at_files(error: &files::FileError) -> Problem {
    match error {
        files::FileError::Send(error) => at_peer(error),
        other => problem::failed(ProblemKind::Files, "the service's files can't be sent")(other),
    }
}
