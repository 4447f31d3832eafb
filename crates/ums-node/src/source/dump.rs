//! Steps 8 and 9: the keeper has CRIU dump the container, and its pages are sent while CRIU reads them.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::criu::page_server::{self, PAGE_LEN, Run};
use ums_checkpoint::dirty::Unchanged;
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
use crate::rounds::Copied;
use crate::task::blocking;

/// CRIU's own accounts, which stay here.
const IMAGE_NAMES_LEFT: [&str; 2] = ["dump.log", "stats-dump"];

/// Has the keeper checkpoint the container, and sends its pages while CRIU reads them.
pub(super) async fn dump(
    node: &Arc<Node>,
    service: &Service,
    images: &Arc<MemoryDir>,
    mut to: PageSending,
    (connections, handshake): (Connections, OwnedFd),
) -> Result<Status, Problem> {
    let pair = UnixStream::pair();
    let (ours, theirs) = pair
        .map_err(|error| problem::failed(ProblemKind::Socket, "no socket can be made")(&error))?;
    let sending = tokio::task::spawn_blocking(move || {
        let sent = send_pages(ours, &mut to);
        // To take back what tracks the memory is not done in the freeze.
        (sent, to.copied.take())
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
    // In a thread of its own, because it takes as long as there is memory, and nobody waits for it.
    drop(tokio::task::spawn_blocking(move || drop(copied)));
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
    /// What the destination has already.
    pub(super) copied: Option<Copied>,
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

    /// Sends a run of pages; of those that the destination has only where they are.
    fn send_run(
        &mut self,
        run: Run,
        unchanged: &Unchanged,
        stream: &mut UnixStream,
    ) -> Result<(), SendError> {
        let (owner, flags) = (run.owner.0, run.flags);
        for (at, pages, is_right) in unchanged.split(run.owner, run.address, run.pages) {
            if !is_right {
                self.pages.write_from(owner, at, flags, pages, stream)?;
                continue;
            }
            skip(stream, pages)?;
            let pages = u32::try_from(pages).unwrap_or(u32::MAX);
            self.pages.absent(owner, at, flags, pages)?;
        }
        Ok(())
    }
}

fn send_pages(
    mut stream: UnixStream,
    to: &mut PageSending,
) -> Result<BTreeSet<page_server::PageOwner>, PageError> {
    let mut broken = None;
    let mut unchanged = None;
    let served = page_server::serve(&mut stream, |run, stream| {
        // CRIU has stopped every process by now: there will be no other child, and nothing changes.
        let parents = match unchanged {
            None => to.tell_parents(),
            Some(_) => Ok(()),
        };
        let unchanged = unchanged.get_or_insert_with(|| {
            let copied = to.copied.as_mut();
            copied.map(Copied::unchanged).unwrap_or_default()
        });
        let sent = parents.and_then(|()| to.send_run(run, unchanged, stream));
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

/// Takes pages from CRIU that nobody needs.
fn skip(stream: &mut UnixStream, pages: u64) -> Result<(), SendError> {
    let wanted = pages * PAGE_LEN as u64;
    let skipped = io::copy(&mut stream.take(wanted), &mut io::sink());
    let whole = skipped.and_then(|skipped| match skipped == wanted {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    });
    whole.map_err(|source| SendError::Read {
        what: format!("{pages} pages that have not changed"),
        source: Arc::new(source),
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
