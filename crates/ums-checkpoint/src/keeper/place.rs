//! A restore into a container that a container runtime has made: its CRIU is placed by that runtime, and
//! driven from here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socketpair, sockopt,
};
use nix::sys::time::TimeVal;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::container::Given;
use super::placing::{FromKeeper, FromRuntime, RUNTIME_PATIENCE};
use super::protocol::{ExternalMount, Phase, PlaceRequest};
use super::ready::STILL_MAX;
use super::server::Shared;
use crate::cgroup::Cgroup;
use crate::criu::patience::Patience;
use crate::criu::swrk::Swrk;
use crate::criu::watch;
use crate::message;

/// How long a restore waits for the container that an engine is still making. Whoever asks for the restore has seen it
/// placed: the service is frozen by now.
const PLACED_PATIENCE: Duration = Duration::from_secs(5);

/// A CRIU that a container runtime has placed.
pub(super) struct Placement {
    pub(super) swrk: Swrk,
    pub(super) link: Link,
}

/// The way to the program in CRIU's place.
pub(super) struct Link {
    socket: OwnedFd,
    request: PlaceRequest,
}

/// Serves the program in CRIU's place until it waits for the images.
pub(super) fn place(
    connection: &OwnedFd,
    request: &PlaceRequest,
    fds: Vec<OwnedFd>,
    shared: &Arc<Shared>,
) {
    let placed = begin(connection, request, fds, shared);
    let refused = placed.and_then(|placement| keep(shared, placement)).err();
    if let Some(reason) = refused {
        let service = &shared.config.service;
        tracing::warn!(service, reason, "no container was made by the engine");
        let _ = say(connection, &FromKeeper::Failed { reason }, &[]);
    }
}

fn begin(
    connection: &OwnedFd,
    request: &PlaceRequest,
    fds: Vec<OwnedFd>,
    shared: &Arc<Shared>,
) -> Result<Placement, String> {
    if !shared.config.placed {
        return Err("this keeper makes its container itself".to_owned());
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let socket = connection
        .try_clone()
        .map_err(|error| failed("no connection", &error))?;
    within(&socket, RUNTIME_PATIENCE)?;
    let runtime = getsockopt(&socket, sockopt::PeerCredentials)
        .map_err(|error| failed("who asks is not known", &error))?;
    let cgroup = Cgroup::of(runtime.pid().unsigned_abs())
        .map_err(|error| failed("the container's control groups", &error))?;
    let netns = fds.into_iter().next();
    shared.container.give(Given { cgroup, netns })?;
    let pair = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    );
    let (ours, theirs) = pair.map_err(|error| failed("no socket for CRIU", &error))?;
    let criu = FromKeeper::Criu {
        program: shared.config.bundle_bin.join("criu"),
    };
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let shm = open_tree(CWD, &shared.config.shm, clone)
        .map_err(|error| failed("the tmpfs for /dev/shm can't be handed on", &error))?;
    let netns = shared.container.netns();
    let sent = [theirs.as_fd(), netns.as_fd(), shm.as_fd()];
    say(&socket, &criu, &sent)?;
    drop(theirs);
    let (pid, inherited) = match hear(&socket)? {
        FromRuntime::Started { pid, inherited } => (pid, inherited),
        FromRuntime::Failed { reason } => return Err(reason),
        _ => return Err(out_of_turn()),
    };
    let group = shared.container.cgroup().clone();
    let patience = Patience::new(STILL_MAX).with_helpers(Box::new(move || group.processes()));
    let swrk = Swrk::of_another(ours, pid.unsigned_abs(), inherited, patience);
    let swrk = swrk.map_err(|error| failed("CRIU has ended", &error))?;
    let request = request.clone();
    let link = Link { socket, request };
    Ok(Placement { swrk, link })
}

fn keep(shared: &Arc<Shared>, placement: Placement) -> Result<(), String> {
    shared.update(|state| match state.phase {
        Phase::Created => {
            state.placement = Some(placement);
            Ok(())
        }
        ref phase => Err(format!(
            "the service does not wait for a container: it is {phase:?}"
        )),
    })
}

/// The placed CRIU, once it is there.
pub(super) fn take(shared: &Shared) -> Result<Placement, String> {
    let placed = shared.wait_at_most(PLACED_PATIENCE, |state| state.placement.take());
    placed.ok_or_else(|| {
        let within = PLACED_PATIENCE.as_secs();
        format!("the engine has made no container within {within} s: see its log")
    })
}

/// Tells a container runtime that waits that nothing will come.
pub(super) fn give_up(shared: &Shared, reason: &str) {
    let placement = shared.update(|state| state.placement.take());
    if let Some(Placement { swrk, link }) = placement {
        swrk.end();
        link.failed(reason);
    }
}

/// Decides for the end of a held container when its engine has ended it: CRIU would wait for a process that is gone.
pub(super) fn watch_held(shared: &Arc<Shared>, init: i32) {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        if watch::wait(init).is_ok() {
            shared.update(|state| {
                if matches!(state.phase, Phase::Restoring | Phase::Held) {
                    state.decision.get_or_insert(false);
                }
            });
        }
    });
}

/// Leaves a running container to the runtime that has made it.
pub(super) fn leave(shared: &Shared) -> Result<(), String> {
    if !shared.config.placed && shared.config.adopted.is_none() {
        return Err(
            "the container was not made by a container runtime: nobody else would keep it"
                .to_owned(),
        );
    }
    let state = shared.state();
    match state.phase {
        Phase::Running if state.pages_missing > 0 => {
            Err(format!("{} pages are still missing", state.pages_missing))
        }
        Phase::Running | Phase::Dead { .. } => Ok(()),
        ref phase => Err(format!("a container that is {phase:?} can't be left alone")),
    }
}

impl Link {
    /// The root filesystem.
    pub(super) fn root(&self) -> &str {
        &self.request.root
    }

    /// What CRIU mounts for one of our mounts: the tmpfs for `/dev/shm` where it finds that, what the runtime itself
    /// mounts there, or else what we have for it.
    pub(super) fn source<'a>(&'a self, of: &'a ExternalMount, shm: &Path) -> &'a Path {
        if of.source == shm {
            return &self.request.shm;
        }
        let mut mounts = self.request.mounts.iter();
        let theirs = mounts.find(|(at, _)| *at == of.mountpoint);
        theirs.map_or(&of.source, |(_, source)| Path::new(source))
    }

    /// What the runtime mounts, by names.
    pub(super) fn mounts(&self) -> &[(String, String)] {
        &self.request.mounts
    }

    /// Tells that the service's files are there. The root filesystem was mounted before they came.
    pub(super) fn complete(&self) -> Result<(), String> {
        say(&self.socket, &FromKeeper::Complete, &[])?;
        match hear(&self.socket)? {
            FromRuntime::Ready => Ok(()),
            FromRuntime::Failed { reason } => Err(reason),
            _ => Err(out_of_turn()),
        }
    }

    /// Has the runtime write down its container, whose processes are there.
    pub(super) fn restored(&self, pid: i32) -> Result<(), String> {
        say(&self.socket, &FromKeeper::Restored { pid }, &[])?;
        match hear(&self.socket)? {
            FromRuntime::Taken => Ok(()),
            FromRuntime::Failed { reason } => Err(reason),
            _ => Err(out_of_turn()),
        }
    }

    /// Tells the runtime why there are no processes.
    pub(super) fn failed(self, reason: &str) {
        let reason = reason.to_owned();
        // Who has gone need not be told.
        let _ = say(&self.socket, &FromKeeper::Failed { reason }, &[]);
    }
}

fn say(socket: &OwnedFd, word: &FromKeeper, fds: &[BorrowedFd<'_>]) -> Result<(), String> {
    message::send(socket.as_fd(), word, fds).map_err(|error| gone(&error))
}

fn hear(socket: &OwnedFd) -> Result<FromRuntime, String> {
    match message::receive(socket.as_fd()) {
        Ok(Some((word, _))) => Ok(word),
        Ok(None) => Err(gone(&std::io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Err(gone(&error)),
    }
}

fn out_of_turn() -> String {
    "the container runtime spoke out of turn: is it of another release?".to_owned()
}

fn gone(error: &std::io::Error) -> String {
    format!("the container runtime has gone, or does not answer ({error}): see the engine's log")
}

fn within(socket: &OwnedFd, patience: Duration) -> Result<(), String> {
    let time = TimeVal::new(patience.as_secs() as i64, 0);
    setsockopt(socket, sockopt::ReceiveTimeout, &time)
        .and_then(|()| setsockopt(socket, sockopt::SendTimeout, &time))
        .map_err(|error| error.to_string())
}
