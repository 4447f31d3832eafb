//! Steps 8 and 9: the keeper has CRIU dump the container, and its memory is sent meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::{
    CheckpointInfo, Connections, DumpRequest, INFO_NAME, Request, Status,
};
use ums_checkpoint::memory_dir::MemoryDir;
use ums_sync::send::ImageWriter;

use super::at_peer;
use super::memory::{self, Memory};
use crate::host::Service;
use crate::node::Node;
use crate::problem;
use crate::task::blocking;

/// CRIU's own accounts, which stay here.
const IMAGE_NAMES_LEFT: [&str; 2] = ["dump.log", "stats-dump"];

/// Has the keeper checkpoint the container, and sends its memory meanwhile.
pub(super) async fn dump(
    node: &Arc<Node>,
    service: &Service,
    images: &Arc<MemoryDir>,
    mut memory: Memory,
    (connections, handshake): (Connections, OwnedFd),
) -> Result<Status, Problem> {
    let pair = UnixStream::pair();
    let (ours, theirs) = pair
        .map_err(|error| problem::failed(ProblemKind::Socket, "no socket can be made")(&error))?;
    let memory_by = memory.by();
    let sending = tokio::task::spawn_blocking(move || {
        let sent = memory.send(ours);
        // To take back what tracks the memory is not done in the freeze.
        (sent, memory.into_copied())
    });
    let (this, of, at) = (Arc::clone(node), service.clone(), Arc::clone(images));
    let dumped = blocking(move || {
        let keeper = of.container.keeper();
        let keeper = keeper.map_err(|error| problem::keeper(&error))?;
        let fds = [at.as_fd(), theirs.as_fd(), handshake.as_fd()];
        let freeze_ms = u64::try_from(this.settings.freeze.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Dump(DumpRequest {
            connections,
            freeze_ms,
            memory: memory_by,
        });
        keeper
            .call(&request, &fds)
            .map_err(|error| problem::keeper(&error))
    })
    .await;
    let sending = sending.await.map_err(|error| problem::panicked(&error))?;
    let (sent, copied) = sending;
    // Where the data path broke, CRIU only knows that its page socket did: the cause comes first.
    let owners = match (sent, &dumped) {
        (Ok(owners), _) => owners,
        (Err(memory::Error::Send(error)), _) => return Err(at_peer(&error)),
        (Err(_), Err(problem)) => return Err(problem.clone()),
        (Err(memory::Error::Criu(error)), Ok(_)) => return Err(unreadable(&error)),
        (Err(memory::Error::Memory(error)), Ok(_)) => return Err(unreadable(&error)),
    };
    let status = dumped?;
    let info = std::fs::read(images.path().join(INFO_NAME)).map_err(|error| error.to_string());
    let info = info.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
    let info: CheckpointInfo = info.map_err(|error| {
        Problem::failed(ProblemKind::Images, "the checkpoint is not whole", error)
    })?;
    let info = serde_json::to_vec(&CheckpointInfo { owners, ..info }).unwrap_or_default();
    images.write(INFO_NAME, &info).map_err(|e| {
        problem::failed(
            ProblemKind::Images,
            "there is no memory for the checkpoint's images",
        )(&e)
    })?;
    // In a thread of its own, because it takes as long as there is memory, and nobody waits for it.
    drop(tokio::task::spawn_blocking(move || drop(copied)));
    Ok(status)
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> Problem {
    problem::failed(ProblemKind::Pages, "pages can't be read")(error)
}

/// Sends what CRIU wrote besides pages, each image as a whole: ghost files are the largest of them,
/// and are bounded by CRIU's `ghost_limit`.
pub(super) fn send_images(images: &MemoryDir, writer: &ImageWriter) -> Result<(), Problem> {
    let failed = problem::failed(ProblemKind::Images, "the checkpoint can't be read");
    for (name, _) in images.files().map_err(|error| failed(&error))? {
        if IMAGE_NAMES_LEFT.contains(&name.as_str()) {
            continue;
        }
        let bytes = std::fs::read(images.path().join(&name)).map_err(|error| failed(&error))?;
        writer
            .image(&name, &bytes)
            .map_err(|error| at_peer(&error))?;
    }
    Ok(())
}
