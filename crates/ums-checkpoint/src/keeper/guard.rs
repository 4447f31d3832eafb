//! The guard: a process that holds copies of a keeper's userfaultfd descriptors, and kills the
//! container if the keeper is lost before every page was installed.
//!
//! The last close of a userfaultfd makes missing pages read as zeros. While the guard lives, the
//! keeper's death is not the last close: threads that touch a missing page go on waiting, and the
//! guard kills the container before it lets its copies go.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::freezer::Freezer;
use crate::message;

/// The most descriptors a guard holds: one for each process of the service.
pub const HELD_MAX: usize = 1 << 16;

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// Hold the descriptor beside this.
    Hold,
    /// Every page is in: let go and end.
    Dismiss,
}

/// The keeper's end.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    socket: OwnedFd,
}

impl Guard {
    /// Starts a guard for the container in `cgroup`.
    pub(super) fn spawn(program: &[String], cgroup: &str) -> io::Result<Self> {
        let (first, rest) = program.split_first().ok_or(io::ErrorKind::NotFound)?;
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let child = Command::new(first)
            .arg0(super::client::PROCESS_NAME)
            .args(rest)
            .arg(cgroup)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            child,
            socket: ours,
        })
    }

    /// Gives the guard a copy of a descriptor.
    pub(super) fn hold(&self, fd: &impl AsFd) -> io::Result<()> {
        message::send(self.socket.as_fd(), &Message::Hold, &[fd.as_fd()])
    }

    /// Ends the guard: nothing is missing any more.
    pub(super) fn dismiss(mut self) {
        let _ = message::send(self.socket.as_fd(), &Message::Dismiss, &[]);
        let _ = self.child.wait();
    }
}

/// Runs a guard: its standard input is the socket to its keeper.
pub fn run(cgroup: &str) -> io::Result<()> {
    // A session of its own: what kills the keeper's process group does not kill the guard.
    let _ = nix::unistd::setsid();
    super::server::raise_descriptor_limit();
    let socket = io::stdin();
    let mut held = Vec::new();
    loop {
        match message::receive::<Message>(socket.as_fd()) {
            Ok(Some((Message::Hold, fds))) if held.len() < HELD_MAX => held.extend(fds),
            Ok(Some((Message::Dismiss, _))) => return Ok(()),
            // The keeper is lost, or what it says makes no sense any more.
            _ => break,
        }
    }
    let killed = Freezer::of(&Cgroup::at(cgroup)?)?.kill();
    drop(held);
    killed
}
