//! The restore: CRIU builds the processes, waits before their first instruction until the commit
//! is known, and pages are installed while the service already runs.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::container::{mount_root, raw, unmount_root, watch};
use super::dump::{GHOST_LIMIT, LOG_LINES, NETNS_KEY};
use super::guard::Guard;
use super::protocol::{CheckpointInfo, Connections, INDEX_NAME, INFO_NAME, Phase, RestoreRequest};
use super::server::{Shared, monotonic_ns};
use crate::carry::{self, Carry, Lost};
use crate::criu::rpc::{CGROUPS_IGNORE, InheritFd, NETWORK_LOCK_SKIP, Opts, RequestType};
use crate::criu::swrk::{Criu, log_tail};
use crate::memory_dir::MemoryDir;
use crate::message;
use crate::store::{Index, Mapped};
use crate::uffd::{Progress, Server};

/// CRIU's log during a restore, in the images directory.
const LOG_NAME: &str = "restore.log";
/// Where CRIU looks for the userfaultfd server, in its work directory.
const SOCKET_NAME: &str = "lazy-pages.socket";
/// How long CRIU may be silent during a restore.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// CRIU's word that no more processes come (`LAZY_PAGES_RESTORE_FINISHED`).
const RESTORE_FINISHED: u32 = 0x5253_5446;
/// How long to wait for a fault when nothing is left to do but new processes may come.
const IDLE_MS: u16 = 100;

/// Restores the container and returns when it is held.
pub(super) fn restore(
    shared: &Arc<Shared>,
    request: &RestoreRequest,
    fds: Vec<OwnedFd>,
) -> Result<(), String> {
    let begin = shared.update(|state| match state.phase {
        Phase::Created => {
            state.phase = Phase::Restoring;
            state.lost.clear();
            state.restore_error = None;
            state.decision = None;
            Ok(true)
        }
        Phase::Restoring | Phase::Held | Phase::Running => Ok(false),
        ref phase => Err(format!("a container that is {phase:?} can't be restored")),
    })?;
    if begin {
        let [images, pages] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| {
            shared.update(|state| state.phase = Phase::Created);
            "a restore takes the images directory and the stored pages".to_owned()
        })?;
        let (shared, request) = (Arc::clone(shared), request.clone());
        std::thread::spawn(move || {
            let result = Restore::new(&shared, request, images, pages).and_then(Restore::run);
            if let Err(reason) = result {
                shared.update(|state| {
                    state.restore_error = Some(reason);
                    if !matches!(state.phase, Phase::Dead { .. }) {
                        state.phase = Phase::Created;
                    }
                });
            }
        });
    }
    shared.wait_for(|state| match (&state.phase, &state.restore_error) {
        (_, Some(reason)) => Some(Err(reason.clone())),
        (Phase::Restoring, None) => None,
        _ => Some(Ok(())),
    })
}

/// Lets a held container execute, and returns when it does.
pub(super) fn resume(shared: &Arc<Shared>) -> Result<(), String> {
    shared.update(|state| match state.phase {
        Phase::Held => {
            state.decision = Some(true);
            Ok(())
        }
        Phase::Running | Phase::Dead { .. } if state.resumed_at_ns.is_some() => Ok(()),
        ref phase => Err(format!("a container that is {phase:?} can't be resumed")),
    })?;
    shared.wait_for(|state| match (&state.phase, &state.restore_error) {
        (_, Some(reason)) => Some(Err(reason.clone())),
        (Phase::Held, None) => None,
        _ => Some(Ok(())),
    })
}

struct Restore {
    shared: Arc<Shared>,
    images: MemoryDir,
    info: CheckpointInfo,
    carry: Carry,
    lazy: bool,
    connections: Connections,
    begun_ns: u64,
}

impl Restore {
    fn new(
        shared: &Arc<Shared>,
        request: RestoreRequest,
        images: OwnedFd,
        pages: OwnedFd,
    ) -> Result<Self, String> {
        let images = MemoryDir::from_fd(images);
        let read = |name: &str| {
            std::fs::read(images.path().join(name))
                .map_err(|error| format!("the checkpoint lacks `{name}`: {error}"))
        };
        let info = serde_json::from_slice(&read(INFO_NAME)?)
            .map_err(|error| format!("`{INFO_NAME}` of the checkpoint is malformed: {error}"))?;
        let carry = Carry::read(&images)
            .map_err(|error| format!("`{}` of the checkpoint: {error}", carry::NAME))?;
        if request.lazy {
            let index = serde_json::from_slice(&read(INDEX_NAME)?)
                .map_err(|error| format!("the index of pages is malformed: {error}"))?;
            let mapped = Mapped::new(pages, request.lazy_bytes)
                .map_err(|error| format!("stored pages can't be mapped: {error}"))?;
            serve_pages(shared, &images, index, mapped)?;
        }
        let shared = Arc::clone(shared);
        Ok(Self {
            shared,
            images,
            info,
            carry,
            lazy: request.lazy,
            connections: request.connections,
            begun_ns: monotonic_ns(),
        })
    }

    fn run(self) -> Result<(), String> {
        let shared = &self.shared;
        mount_root(&shared.config)?;
        let criu = Criu {
            bin: shared.config.bundle_bin.clone(),
            patience: SILENCE_MAX,
        };
        // CRIU's children are born in CRIU's control groups, so CRIU goes into the container's.
        let mut swrk = criu
            .spawn(
                |pid| shared.container.cgroup.enter(pid),
                &self.inherit(),
                None,
            )
            .map_err(|error| error.to_string())?;
        let opts = self.options(swrk.inherited());
        let log = || log_tail(&self.images.path(), LOG_NAME, LOG_LINES);
        let mut init = None;
        let result = swrk.run(RequestType::Restore, opts, &log, |_, notify| {
            match notify.script.as_deref() {
                Some("setup-namespaces") | Some("post-setup-namespaces") => {
                    init = notify.pid.or(init);
                    Ok(())
                }
                Some("post-restore") => {
                    self.tell(self.carry.hold(&self.processes()));
                    self.hold()
                }
                // Every task is stopped at the end of CRIU's own code in it.
                Some("pre-resume") => {
                    self.tell(self.carry.resume(&self.processes()));
                    Ok(())
                }
                Some("post-resume") => {
                    self.shared
                        .update(|state| state.resumed_at_ns = Some(monotonic_ns()));
                    Ok(())
                }
                _ => Ok(()),
            }
        });
        swrk.end();
        match result {
            Ok(response) => {
                let pid = response.restore.map(|restore| restore.pid).or(init);
                let pid = pid.ok_or_else(|| "CRIU named no init".to_owned())?;
                watch(shared, pid);
                shared.update(|state| state.phase = Phase::Running);
                Ok(())
            }
            Err(error) => {
                // As if it had never been attempted: what CRIU left of the tree is killed.
                let _ = shared.container.freezer().map(|freezer| freezer.kill());
                unmount_root(&shared.config);
                Err(error.to_string())
            }
        }
    }

    fn processes(&self) -> Vec<carry::Process> {
        carry::processes(&self.shared.container.cgroup)
    }

    /// Keeps what could not be set again for whoever asks for the status.
    fn tell(&self, lost: Vec<Lost>) {
        for Lost { pid, detail } in &lost {
            let service = &self.shared.config.service;
            tracing::warn!(
                service,
                pid,
                detail,
                "could not be set again after the move"
            );
        }
        self.shared.update(|state| state.lost.extend(lost));
    }

    /// Waits at `post-restore`, the one notification that can veto, until the decision is known.
    fn hold(&self) -> Result<(), String> {
        let took = (monotonic_ns() - self.begun_ns) / 1000;
        self.shared.update(|state| {
            state.restore_us = Some(took);
            state.phase = Phase::Held;
        });
        match self.shared.wait_for(|state| state.decision) {
            true => Ok(()),
            false => Err("the migration was abandoned before its commit".to_owned()),
        }
    }

    /// What stands for resources of the image: the network namespace and the output pipes.
    fn inherit(&self) -> Vec<BorrowedFd<'_>> {
        let container = &self.shared.container;
        std::iter::once(&container.netns)
            .chain(&container.stdio)
            .map(AsFd::as_fd)
            .collect()
    }

    fn options(&self, inherited: &[i32]) -> Opts {
        let names = std::iter::once(NETNS_KEY).chain(self.info.stdio.iter().map(String::as_str));
        let inherit_fd = names.zip(inherited);
        let inherit_fd = inherit_fd.map(|(key, fd)| InheritFd {
            key: key.to_owned(),
            fd: *fd,
        });
        let mounts = &self.shared.config.mounts;
        let external = mounts
            .iter()
            .map(|mount| format!("mnt[{}]:{}", mount.key, mount.source.display()));
        Opts {
            images_dir_fd: raw(&self.images),
            work_dir_fd: Some(raw(&self.images)),
            ext_unix_sk: Some(true),
            tcp_established: Some(self.connections == Connections::Carry),
            tcp_close: Some(self.connections == Connections::Close),
            file_locks: Some(true),
            log_level: Some(2),
            log_file: Some(LOG_NAME.to_owned()),
            notify_scripts: Some(true),
            root: Some(self.shared.config.merged.display().to_string()),
            rst_sibling: Some(true),
            inherit_fd: inherit_fd.collect(),
            manage_cgroups_mode: Some(CGROUPS_IGNORE),
            ghost_limit: Some(GHOST_LIMIT),
            external: external.collect(),
            lazy_pages: Some(self.lazy),
            network_lock: Some(NETWORK_LOCK_SKIP),
            ..Opts::default()
        }
    }
}

/// Listens where CRIU will look, and serves pages in a thread of its own until all are in.
fn serve_pages(
    shared: &Arc<Shared>,
    images: &MemoryDir,
    index: Index,
    mapped: Mapped,
) -> Result<(), String> {
    let path = images.path().join(SOCKET_NAME);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .map_err(|error| format!("no socket for CRIU's userfaultfd descriptors: {error}"))?;
    let guard = Guard::spawn(&shared.config.guard, &shared.config.cgroup)
        .map_err(|error| format!("the guard can't be started: {error}"))?;
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let pages = Pages {
            shared: Arc::clone(&shared),
            index,
            server: Server::new(mapped),
            guard,
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
}

impl Pages {
    fn serve(mut self, listener: &UnixListener) -> Result<(), String> {
        let (mut criu, _) = listener.accept().map_err(|error| error.to_string())?;
        let mut complete = false;
        loop {
            let resumed = self.shared.state().resumed_at_ns.is_some();
            // In the background only once the service runs: until then the restore has the CPU.
            let busy = match complete && resumed {
                true => self
                    .server
                    .install_chunk()
                    .map_err(|error| error.to_string())?,
                false => Progress::Busy,
            };
            let missing = self.server.pages_missing();
            self.shared.update(|state| state.pages_missing = missing);
            if busy == Progress::Done {
                self.guard.dismiss();
                return Ok(());
            }
            let busy = self.server.is_waiting() || complete && resumed;
            let wait = if busy { 0 } else { IDLE_MS };
            if self.wait(&criu, complete, wait)? {
                match self.receive(&mut criu)? {
                    true => {}
                    false if complete => {}
                    false => complete = true,
                }
            }
            let forks = self
                .server
                .serve_events()
                .map_err(|error| error.to_string())?;
            for fork in forks {
                self.guard.hold(&fork).map_err(|error| error.to_string())?;
            }
        }
    }

    /// Waits for a fault or for CRIU; true when CRIU has something to say.
    fn wait(
        &self,
        criu: &std::os::unix::net::UnixStream,
        complete: bool,
        wait_ms: u16,
    ) -> Result<bool, String> {
        let mut fds: Vec<PollFd> = Vec::new();
        if !complete {
            fds.push(PollFd::new(criu.as_fd(), PollFlags::POLLIN));
        }
        let uffds = self.server.descriptors();
        fds.extend(
            uffds
                .into_iter()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        match poll(&mut fds, PollTimeout::from(wait_ms)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.to_string()),
        }
        Ok(!complete && fds[0].any() == Some(true))
    }

    /// Takes one process from CRIU; false when no more come.
    fn receive(&mut self, criu: &mut std::os::unix::net::UnixStream) -> Result<bool, String> {
        let mut word = [0; 4];
        if criu.read_exact(&mut word).is_err() {
            // CRIU is gone: it has failed, which its own answer tells, or it has finished.
            return Ok(false);
        }
        match u32::from_ne_bytes(word) {
            RESTORE_FINISHED => Ok(false),
            // A zombie has no memory; CRIU sends its id negated.
            zombie if (zombie as i32) < 0 => Ok(true),
            process => {
                let uffd = message::receive_fd(criu.as_fd()).map_err(|error| error.to_string())?;
                self.guard.hold(&uffd).map_err(|error| error.to_string())?;
                let extents = self
                    .index
                    .get(&process)
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                self.server.add(uffd, extents);
                Ok(true)
            }
        }
    }
}
