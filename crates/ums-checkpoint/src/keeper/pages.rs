//! Pages that come late: taken over from CRIU's restore process by process, and installed in a
//! thread of its own until all are in.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::guard::Guard;
use super::protocol::Phase;
use super::server::{Shared, monotonic_ns};
use super::supplied::Supplied;
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
    (index, away): (Index, Index),
    mapped: Mapped,
    supply: Option<OwnedFd>,
) -> Result<(), String> {
    let supply = Supplied::new(supply, &away)?;
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
        state.depends_on_source = !away.is_empty();
    });
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let mut server = Server::new(mapped, index::has_shared_places(&index));
        server.leave_away(&away);
        let pages = Pages {
            shared: Arc::clone(&shared),
            server,
            supply,
            index,
            guard,
            criu: None,
        };
        if let Err(reason) = pages.serve(&listener) {
            tracing::error!(
                service = shared.config.service,
                reason = reason.as_str(),
                "pages can't be installed"
            );
            shared.update(|state| state.pages_lost = Some(reason));
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
    /// Whence what is still at the source comes.
    supply: Option<Supplied>,
    guard: Guard,
    /// CRIU, until it has told of every process.
    criu: Option<UnixStream>,
}

impl Pages {
    fn serve(mut self, listener: &UnixListener) -> Result<(), String> {
        self.criu = self.accept(listener)?;
        while !self.is_over() {
            let progress = self.install()?;
            self.ask()?;
            self.tell();
            if progress == Progress::Done {
                self.all_in();
                break;
            }
            let wait = match progress {
                Progress::Busy if self.may_install() => 0,
                Progress::Away if !self.server.is_waiting() => IDLE_MS,
                _ if self.supply.is_some() && !self.may_install() => RETRY_MS,
                _ if self.server.is_waiting() || self.may_install() => RETRY_MS,
                _ => IDLE_MS,
            };
            let (criu, source) = self.wait(wait)?;
            if criu {
                self.receive()?;
            }
            if source {
                self.take()?;
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

    /// What is still at the source nobody can miss any more: its processes have dropped it.
    fn all_in(&self) {
        self.shared.update(|state| {
            if std::mem::take(&mut state.depends_on_source) {
                state.all_here_at_ns = Some(monotonic_ns());
            }
        });
    }

    /// Asks the source for what is wanted.
    fn ask(&mut self) -> Result<(), String> {
        let Some(supply) = &mut self.supply else {
            return Ok(());
        };
        let first = self.shared.state().wanted_first.clone();
        let mut left = first.clone();
        left.retain(|(place, len)| !self.server.bring(*place, *len));
        if left.len() < first.len() {
            self.shared.update(|state| state.wanted_first = left);
        }
        supply.ask(&self.server.take_wanted())?;
        supply.must_go_on(self.server.awaits())?;
        if !self.server.has_away() {
            // From here on the source is not needed.
            self.supply = None;
            self.shared.update(|state| {
                state.depends_on_source = false;
                state.all_here_at_ns = Some(monotonic_ns());
            });
        }
        Ok(())
    }

    /// Takes what has come from the source.
    fn take(&mut self) -> Result<(), String> {
        if let Some(supply) = &mut self.supply {
            let (place, bytes) = supply.take()?;
            let kept = self.server.arrived(place, &bytes);
            kept.map_err(|error| told(&error))?;
        }
        Ok(())
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

    /// Waits for a fault, for the source or for CRIU; tells whether CRIU has something to say, and whether the
    /// source has.
    fn wait(&self, wait_ms: u16) -> Result<(bool, bool), String> {
        let criu = self.criu.iter().map(AsFd::as_fd);
        let supply = self.supply.iter().map(Supplied::fd);
        let uffds = self.server.descriptors();
        let all: Vec<BorrowedFd<'_>> = criu.chain(supply).chain(uffds).collect();
        let mut fds: Vec<PollFd> = all
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::from(wait_ms)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.to_string()),
        }
        let (criu, supply) = (self.criu.is_some(), self.supply.is_some());
        let says = |at: usize| fds[at].any() == Some(true);
        Ok((criu && says(0), supply && says(usize::from(criu))))
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
