//! The keeper's process: sets itself up, then serves requests until it is told to quit.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};

use ums_core::budget::Span;

use super::container::{self, Container};
use super::place::{self, Placement};
use super::protocol::{KeeperConfig, PROTOCOL, Phase, Reply, Request, Status};
use super::{adopted, dump, guard, ready, restore, vacate};
use crate::carry::Lost;
use crate::criu::swrk::Swrk;
use crate::criu::watch::Killer;
use crate::{keyring, message};

/// Connections served at once: the agent's requests, most of which are a look at the state. One more
/// waits until another is over.
const CONNECTIONS_MAX: usize = 32;
/// Connections that wait. Beyond that who connects waits itself, and gives up after a while.
const BACKLOG: i32 = 128;
/// Descriptors of a keeper beside those of processes: connections, pipes, CRIU's, images.
const DESCRIPTORS_ELSE: u64 = 128;
/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    /// Whether runc is at work on its first start: what it makes can't be told from outside.
    pub(super) starting: bool,
    pub(super) init_pid: Option<i32>,
    pub(super) pages_missing: u64,
    /// Whether pages are still at the source.
    pub(super) depends_on_source: bool,
    /// When the last of them came.
    pub(super) all_here_at_ns: Option<u64>,
    /// Why pages can't be had any more.
    pub(super) pages_lost: Option<String>,
    /// Places of the store whose content is wanted before the service runs.
    pub(super) wanted_first: Vec<(u64, u64)>,
    /// Processes with late pages that CRIU has not handed over yet.
    pub(super) unclaimed: usize,
    pub(super) frozen_at_ns: Option<u64>,
    pub(super) dumped_at_ns: Option<u64>,
    pub(super) resumed_at_ns: Option<u64>,
    pub(super) restore_us: Option<u64>,
    /// Parts of the last dump, or of the last restore.
    pub(super) spans: Vec<Span>,
    /// What the last restore could not set again.
    pub(super) lost: Vec<Lost>,
    /// Why the restore failed, for whoever waits for it.
    pub(super) restore_error: Option<String>,
    /// What was decided for a held container: run (true) or die (false).
    pub(super) decision: Option<bool>,
    /// What ends the CRIU of a dump that is under way.
    pub(super) dumping: Option<Killer>,
    /// The CRIU of a restore that will come.
    pub(super) ready: Option<Swrk>,
    /// The CRIU that a container runtime has placed for it.
    pub(super) placement: Option<Placement>,
    /// Whether somebody wants that dump to end.
    pub(super) cut: bool,
    /// Set once the keeper is to end.
    pub(super) quitting: bool,
}

impl State {
    /// How long the service has run while pages were at the source, microseconds.
    fn at_risk_us(&self) -> Option<u64> {
        let until = match self.all_here_at_ns {
            Some(at) => at,
            None if self.depends_on_source => monotonic_ns(),
            None => return None,
        };
        Some(until.saturating_sub(self.resumed_at_ns?) / 1000)
    }
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
            protocol: PROTOCOL,
            phase: state.phase.clone(),
            keeper_pid: std::process::id() as i32,
            netns_fd: self.container.netns().as_raw_fd(),
            init_pid: state.init_pid,
            pages_missing: state.pages_missing,
            depends_on_source: state.depends_on_source,
            at_risk_us: state.at_risk_us(),
            pages_lost: state.pages_lost.clone(),
            frozen_at_ns: state.frozen_at_ns,
            dumped_at_ns: state.dumped_at_ns,
            resumed_at_ns: state.resumed_at_ns,
            restore_us: state.restore_us,
            spans: state.spans.clone(),
            lost: state.lost.clone(),
            placed: state.placement.is_some(),
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
    raise_descriptor_limit();
    if let Err(error) = keyring::leave() {
        // A kernel without keys has none to keep from the service.
        tracing::warn!(%error, "no session keyring of its own");
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    let container = Container::prepare(&config)?;
    let listener = bind_socket(&config).inspect_err(|_| {
        // The cause is what counts.
        let _ = container.remove();
    })?;
    let shared = Arc::new(Shared {
        config,
        container,
        state: Mutex::new(State {
            phase: Phase::Created,
            starting: false,
            init_pid: None,
            pages_missing: 0,
            depends_on_source: false,
            all_here_at_ns: None,
            pages_lost: None,
            wanted_first: Vec::new(),
            unclaimed: 0,
            frozen_at_ns: None,
            dumped_at_ns: None,
            resumed_at_ns: None,
            restore_us: None,
            spans: Vec::new(),
            lost: Vec::new(),
            restore_error: None,
            decision: None,
            dumping: None,
            ready: None,
            placement: None,
            cut: false,
            quitting: false,
        }),
        changed: Condvar::new(),
    });
    if let Some(of) = &shared.config.adopted {
        adopted::copy_files(&of.files).map_err(io::Error::other)?;
        adopted::take_over(&shared, of)?;
    }
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
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Processes whose pages a keeper that is started from here can install: it and its guard hold a
/// userfaultfd of each.
pub fn processes_max() -> u64 {
    // Failing is impossible for a resource that exists.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let held = hard.saturating_sub(DESCRIPTORS_ELSE);
    held.min(guard::HELD_MAX as u64)
}

/// Lets this process hold as many descriptors as it may: at a restore there is one for each process
/// of the service.
pub(super) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn accept_connections(listener: &OwnedFd, shared: &Arc<Shared>) {
    let places = Arc::new(Places::default());
    loop {
        // Before one is accepted: who waits is served later, and not turned away.
        let place = Places::take(&places);
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(raw) => {
                let (connection, shared) = (message::own(raw), Arc::clone(shared));
                std::thread::spawn(move || {
                    serve_connection(&connection, &shared);
                    drop(place);
                });
            }
            Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
            Err(error) => {
                // Out of descriptors, most likely: others will be closed.
                tracing::warn!(%error, "a connection can't be accepted");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// How many connections are served.
#[derive(Default)]
struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// A connection's place, which it gives back when it is over.
struct Place(Arc<Places>);

impl Places {
    fn take(places: &Arc<Self>) -> Place {
        let taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut usize| *taken >= CONNECTIONS_MAX;
        let waited = places.freed.wait_while(taken, full);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        Place(Arc::clone(places))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &self.0.taken;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

fn serve_connection(connection: &OwnedFd, shared: &Arc<Shared>) {
    while let Ok(Some((request, fds))) = message::receive_any::<Request>(connection.as_fd()) {
        let quit = matches!(
            request,
            Ok(Request::Quit | Request::Leave | Request::Vacate)
        );
        let request = match request {
            // From now on the connection is about nothing else.
            Ok(Request::Place(request)) => return place::place(connection, &request, fds, shared),
            request => request,
        };
        let served = request
            .map_err(|error| not_understood(&error))
            .and_then(|request| serve(request, fds, shared));
        let reply = match served {
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

/// An agent of a later release asks for what there was not when this keeper was started.
fn not_understood(error: &serde_json::Error) -> String {
    format!(
        "the service's keeper is of an earlier release (version {PROTOCOL} of its protocol) and does not \
         know what is asked of it ({error}): the service goes on, and gets a new keeper when it is \
         started again"
    )
}

fn serve(request: Request, fds: Vec<OwnedFd>, shared: &Arc<Shared>) -> Result<(), String> {
    match request {
        Request::Status => Ok(()),
        Request::Start { bundle } => container::start(shared, &bundle),
        Request::Dump(request) => dump::dump(shared, request, fds),
        Request::Cut => dump::cut(shared),
        Request::Thaw => dump::thaw(shared),
        Request::Kill => container::kill(shared),
        Request::Prepare => ready::prepare(shared),
        // Never comes here: it takes a connection of its own.
        Request::Place(_) => Err("a container is placed over a connection of its own".to_owned()),
        Request::Leave => place::leave(shared),
        Request::Vacate => vacate::vacate(shared),
        Request::Restore(request) => restore::restore(shared, &request, fds),
        Request::Resume => restore::resume(shared),
        Request::Quit => container::kill(shared).and_then(|()| shared.container.remove()),
    }
}
