//! Steps 8 and 9: the keeper has CRIU dump the container, and its pages are sent while CRIU reads them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::criu::page_server;
use ums_checkpoint::keeper::protocol::{
    CheckpointInfo, Connections, DumpRequest, INFO_NAME, Request, Status,
};
use ums_checkpoint::memory_dir::MemoryDir;
use ums_checkpoint::tree;
use ums_sync::send::{ImageWriter, PageWriter, SendError};

use super::at_peer;
use crate::host::Service;
use crate::node::Node;
use crate::problem;
use crate::task::blocking;

/// CRIU's own accounts, which stay here.
const IMAGE_NAMES_LEFT: [&str; 2] = ["dump.log", "stats-dump"];

/// Has the keeper checkpoint the container, and sends its pages while CRIU reads them.
pub(super) async fn dump(
    node: &Arc<Node>,
    service: &Service,
    images: &Arc<MemoryDir>,
    to: PageSending,
    (connections, gate): (Connections, OwnedFd),
) -> Result<Status, Problem> {
    let pair = UnixStream::pair();
    let (ours, theirs) = pair
        .map_err(|error| problem::failed(ProblemKind::Socket, "no socket can be made")(&error))?;
    let sending = tokio::task::spawn_blocking(move || send_pages(ours, to));
    let (this, of, at) = (Arc::clone(node), service.clone(), Arc::clone(images));
    let dumped = blocking(move || {
        let keeper = of.container.keeper();
        let keeper = keeper.map_err(|error| problem::keeper(&error))?;
        let fds = [at.as_fd(), theirs.as_fd(), gate.as_fd()];
        let freeze_ms = u64::try_from(this.settings.freeze.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Dump(DumpRequest {
            connections,
            freeze_ms,
        });
        keeper
            .call(&request, &fds)
            .map_err(|error| problem::keeper(&error))
    })
    .await;
    let sent = sending.await.map_err(|error| problem::panicked(&error))?;
    // Where the data path broke, CRIU only knows that its page socket did: the cause comes first.
    let owners = match (sent, &dumped) {
        (Ok(owners), _) => owners,
        (Err(PageError::Send(error)), _) => return Err(at_peer(&error)),
        (Err(PageError::Criu(_)), Err(problem)) => return Err(problem.clone()),
        (Err(PageError::Criu(error)), Ok(_)) => {
            return Err(problem::failed(ProblemKind::Pages, "pages can't be read")(
                &error,
            ));
        }
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
    Ok(status)
}

#[derive(Debug)]
enum PageError {
    Send(SendError),
    Criu(page_server::Error),
}

/// Where pages go, and whose they are.
pub(super) struct PageSending {
    pub(super) cgroup: String,
    pub(super) images: ImageWriter,
    pub(super) pages: PageWriter,
}

impl PageSending {
    /// Who is whose child goes ahead of the pages: the destination keeps what they share.
    fn tell_parents(&self) -> Result<(), SendError> {
        let Ok(cgroup) = Cgroup::at(&self.cgroup) else {
            // CRIU will not find it either.
            return Ok(());
        };
        let parents = tree::parents(&cgroup);
        if parents.is_empty() {
            return Ok(());
        }
        let text = serde_json::to_vec(&parents).unwrap_or_default();
        self.images.image(tree::TREE_NAME, &text)
    }
}

fn send_pages(
    mut stream: UnixStream,
    mut to: PageSending,
) -> Result<BTreeSet<page_server::PageOwner>, PageError> {
    let mut broken = None;
    let mut told = false;
    let served = page_server::serve(&mut stream, |run, stream| {
        let (owner, address, flags) = (run.owner.0, run.address, run.flags);
        // CRIU has stopped every process by now: there will be no other child.
        let parents = match std::mem::replace(&mut told, true) {
            false => to.tell_parents(),
            true => Ok(()),
        };
        let sent = parents.and_then(|()| {
            to.pages
                .write_from(owner, address, flags, run.pages, stream)
        });
        sent.map_err(|error| {
            let text = error.to_string();
            broken = Some(error);
            page_server::Error::Sink(text)
        })
    });
    served.map_err(|error| match broken {
        // Reading from CRIU failed, not writing to the destination.
        Some(SendError::Read { .. }) | None => PageError::Criu(error),
        Some(error) => PageError::Send(error),
    })
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
