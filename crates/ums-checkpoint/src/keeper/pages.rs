//! Pages that come late: taken over from CRIU's restore process by process, and installed in a
//! thread of its own until all are in.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::guard::Guard;
use super::protocol::Phase;
use super::server::Shared;
use crate::memory_dir::MemoryDir;
use crate::message;
use crate::store::{Index, Mapped, index};
use crate::uffd::{Progress, Server};

/// Where CRIU looks for the userfaultfd server, in its work directory.
const SOCKET_NAME: &str = "lazy-pages.socket";
/// CRIU's word that no more processes come (`LAZY_PAGES_RESTORE_FINISHED`).
const RESTORE_FINISHED: u32 = 0x5253_5446;
/// How long to wait for a fault, milliseconds, when nothing is left to do but new processes may come.
const IDLE_MS: u16 = 100;
/// How long to wait, milliseconds, when the kernel would not take a page yet: for an event, which ends
/// the wait, or for memory.
const RETRY_MS: u16 = 1;

/// Listens where CRIU will look, and serves pages in a thread of its own until all are in.
pub(super) fn serve(
    shared: &Arc<Shared>,
    images: &MemoryDir,
    index: Index,
    mapped: Mapped,
) -> Result<(), String> {
    let path = images.path().join(SOCKET_NAME);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .map_err(|error| format!("no socket for CRIU's userfaultfd descriptors: {error}"))?;
    let guard = Guard::spawn(&shared.config.guard, shared.container.cgroup().path())
        .map_err(|error| format!("the guard can't be started: {error}"))?;
    // Before the service can run: until every page is in, it says so.
    let all = index.values().flatten().map(|extent| extent.pages).sum();
    let mut index = index;
    index.retain(|_, extents| !extents.is_empty());
    shared.update(|state| {
        state.pages_missing = all;
        state.unclaimed = index.len();
    });
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let pages = Pages {
            shared: Arc::clone(&shared),
            server: Server::new(mapped, index::has_shared_places(&index)),
            index,
            guard,
            criu: None,
        };
        if let Err(reason) = pages.serve(&listener) {
            tracing::error!(
                service = shared.config.service,
                reason,
                "pages can't be installed"
            );
            // Going on would mean wrong memory.
            let _ = shared.container.freezer().map(|freezer| freezer.kill());
        }
    });
    Ok(())
}

struct Pages {
    shared: Arc<Shared>,
    index: Index,
    server: Server,
    guard: Guard,
    /// CRIU, until it has told of every process.
    criu: Option<UnixStream>,
}

impl Pages {
    fn serve(mut self, listener: &UnixListener) -> Result<(), String> {
        self.criu = self.accept(listener)?;
        while !self.is_over() {
            let progress = self.install()?;
            self.tell();
            if progress == Progress::Done {
                break;
            }
            let wait = match progress {
                Progress::Busy if self.may_install() => 0,
                _ if self.server.is_waiting() || self.may_install() => RETRY_MS,
                _ => IDLE_MS,
            };
            if self.wait(wait)? {
                self.receive()?;
            }
            let forks = self.server.serve_events();
            for fork in forks.map_err(|error| told(&error))? {
                self.guard.hold(&fork).map_err(|error| error.to_string())?;
            }
        }
        self.guard.dismiss();
        Ok(())
    }

    /// In the background only once the service runs: until then the restore has the processors.
    fn may_install(&self) -> bool {
        self.criu.is_none() && self.shared.state().resumed_at_ns.is_some()
    }

    fn install(&mut self) -> Result<Progress, String> {
        match self.may_install() {
            true => self.server.install_chunk().map_err(|error| told(&error)),
            false => Ok(Progress::Waiting),
        }
    }

    /// How many pages are missing is known by the server once it has every process.
    fn tell(&self) {
        if self.criu.is_none() {
            let missing = self.server.pages_missing();
            self.shared.update(|state| state.pages_missing = missing);
        }
    }

    /// A restore that came to nothing needs no pages, once nothing is left that could read them.
    fn is_over(&self) -> bool {
        let state = self.shared.state();
        let failed = matches!(state.phase, Phase::Created | Phase::Dead { .. });
        let never_ran = state.resumed_at_ns.is_none();
        drop(state);
        failed && never_ran && self.shared.container.cgroup().processes().is_empty()
    }

    /// CRIU's connection; `None` when the restore failed before it made one.
    fn accept(&self, listener: &UnixListener) -> Result<Option<UnixStream>, String> {
        loop {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(IDLE_MS)) {
                Ok(0) if self.is_over() => return Ok(None),
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => {
                    let (criu, _) = listener.accept().map_err(|error| error.to_string())?;
                    return Ok(Some(criu));
                }
                Err(errno) => return Err(errno.to_string()),
            }
        }
    }

    /// Waits for a fault or for CRIU; true when CRIU has something to say.
    fn wait(&self, wait_ms: u16) -> Result<bool, String> {
        let criu = self.criu.iter().map(AsFd::as_fd);
        let uffds = self.server.descriptors();
        let all: Vec<BorrowedFd<'_>> = criu.chain(uffds).collect();
        let mut fds: Vec<PollFd> = all
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::from(wait_ms)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.to_string()),
        }
        Ok(self.criu.is_some() && fds[0].any() == Some(true))
    }

    /// Takes one process from CRIU, or its word that no more come.
    fn receive(&mut self) -> Result<(), String> {
        let Some(criu) = &mut self.criu else {
            return Ok(());
        };
        let mut word = [0; 4];
        if criu.read_exact(&mut word).is_err() {
            // CRIU is gone: it has failed, which its own answer tells, or it has finished.
            self.criu = None;
            return Ok(());
        }
        match u32::from_ne_bytes(word) {
            RESTORE_FINISHED => self.criu = None,
            // A zombie has no memory; CRIU sends its id negated.
            zombie if (zombie as i32) < 0 => {}
            process => {
                let uffd = message::receive_fd(criu.as_fd()).map_err(|error| error.to_string())?;
                self.guard.hold(&uffd).map_err(|error| error.to_string())?;
                // Taken out: what stays is of processes that CRIU did not make.
                let extents = self.index.remove(&process).unwrap_or_default();
                self.server.add(uffd, &extents);
                let unclaimed = self.index.len();
                self.shared.update(|state| state.unclaimed = unclaimed);
            }
        }
        Ok(())
    }
}

/// An error with its cause.
fn told(error: &crate::uffd::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
