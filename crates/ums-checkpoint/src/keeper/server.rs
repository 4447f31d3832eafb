//! The keeper's process: sets itself up, then serves requests until it is told to quit.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};

use super::container::{self, Container};
use super::protocol::{KeeperConfig, Phase, Reply, Request, Status};
use super::{dump, restore};
use crate::carry::Lost;
use crate::message;

/// Connections served at once: the agent's, one of a restarted agent, and a look by hand.
const CONNECTIONS_MAX: usize = 8;

/// What all threads of a keeper share.
pub(super) struct Shared {
    pub(super) config: KeeperConfig,
    pub(super) container: Container,
    state: Mutex<State>,
    /// Signals every change of `state`.
    changed: Condvar,
}

/// What changes while a keeper lives.
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) init_pid: Option<i32>,
    pub(super) pages_missing: u64,
    /// Processes with late pages that CRIU has not handed over yet.
    pub(super) unclaimed: usize,
    pub(super) frozen_at_ns: Option<u64>,
    pub(super) dumped_at_ns: Option<u64>,
    pub(super) resumed_at_ns: Option<u64>,
    pub(super) restore_us: Option<u64>,
    /// What the last restore could not set again.
    pub(super) lost: Vec<Lost>,
    /// Why the restore failed, for whoever waits for it.
    pub(super) restore_error: Option<String>,
    /// What was decided for a held container: run (true) or die (false).
    pub(super) decision: Option<bool>,
    /// Set once the keeper is to end.
    pub(super) quitting: bool,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while holding the lock leaves plain values, each valid.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the state and tells every waiter.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` gives something.
    pub(super) fn wait_for<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut state = self.state();
        loop {
            if let Some(value) = ready(&mut state) {
                return value;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Waits until `ready` gives something, but no longer than `patience`.
    pub(super) fn wait_at_most<T>(
        &self,
        patience: Duration,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = end.checked_duration_since(Instant::now())?;
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    pub(super) fn status(&self) -> Status {
        let state = self.state();
        Status {
            phase: state.phase.clone(),
            keeper_pid: std::process::id() as i32,
            netns_fd: self.container.netns.as_raw_fd(),
            init_pid: state.init_pid,
            pages_missing: state.pages_missing,
            frozen_at_ns: state.frozen_at_ns,
            dumped_at_ns: state.dumped_at_ns,
            resumed_at_ns: state.resumed_at_ns,
            restore_us: state.restore_us,
            lost: state.lost.clone(),
        }
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, which both ends of one host agree on.
pub(super) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Runs a keeper: returns when it was told to quit, and nothing of the container is left.
pub fn run(config: KeeperConfig) -> io::Result<()> {
    // A session of its own: signals to the agent's process group or terminal don't reach it.
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let container = Container::prepare(&config)?;
    let listener = bind_socket(&config)?;
    let shared = Arc::new(Shared {
        config,
        container,
        state: Mutex::new(State {
            phase: Phase::Created,
            init_pid: None,
            pages_missing: 0,
            unclaimed: 0,
            frozen_at_ns: None,
            dumped_at_ns: None,
            resumed_at_ns: None,
            restore_us: None,
            lost: Vec::new(),
            restore_error: None,
            decision: None,
            quitting: false,
        }),
        changed: Condvar::new(),
    });
    let accepting = Arc::clone(&shared);
    std::thread::spawn(move || accept_connections(&listener, &accepting));
    shared.wait_for(|state| state.quitting.then_some(()));
    let _ = std::fs::remove_file(&shared.config.socket);
    Ok(())
}

fn bind_socket(config: &KeeperConfig) -> io::Result<OwnedFd> {
    let _ = std::fs::remove_file(&config.socket);
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    // Only root may speak to it: the socket's directory is the agent's, mode 0700.
    bind(listener.as_raw_fd(), &UnixAddr::new(&config.socket)?)?;
    listen(&listener, Backlog::new(4)?)?;
    Ok(listener)
}

fn accept_connections(listener: &OwnedFd, shared: &Arc<Shared>) {
    let served = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok(raw) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else {
            continue;
        };
        let connection = message::own(raw);
        if served.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            served.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (shared, served) = (Arc::clone(shared), Arc::clone(&served));
        std::thread::spawn(move || {
            serve_connection(&connection, &shared);
            served.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn serve_connection(connection: &OwnedFd, shared: &Arc<Shared>) {
    while let Ok(Some((request, fds))) = message::receive::<Request>(connection.as_fd()) {
        let quit = request == Request::Quit;
        let reply = match serve(request, fds, shared) {
            Ok(()) => Reply::Done(shared.status()),
            Err(reason) => Reply::Failed {
                reason,
                status: shared.status(),
            },
        };
        let end = quit && matches!(reply, Reply::Done(_));
        let sent = message::send(connection.as_fd(), &reply, &[]);
        if end {
            shared.update(|state| state.quitting = true);
        }
        if sent.is_err() {
            break;
        }
    }
}

fn serve(request: Request, fds: Vec<OwnedFd>, shared: &Arc<Shared>) -> Result<(), String> {
    match request {
        Request::Status => Ok(()),
        Request::Start { bundle } => container::start(shared, &bundle),
        Request::Dump(request) => dump::dump(shared, request, fds),
        Request::Thaw => dump::thaw(shared),
        Request::Kill => container::kill(shared),
        Request::Restore(request) => restore::restore(shared, &request, fds),
        Request::Resume => restore::resume(shared),
        Request::Quit => container::kill(shared).and_then(|()| shared.container.remove()),
    }
}
