//! What CRIU can't take out of the queue of a unix socket, asked on a copy of its descriptor while its
//! owner runs: nothing is read, and nothing is changed.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// What a socket is whose queue is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Queue {
    /// Its reader is told who has sent each message (SO_PASSCRED): CRIU refuses to take such messages out
    /// (its `dump_packet_cmsg`).
    pub tells_senders: bool,
    /// There is an urgent byte (MSG_OOB), which CRIU takes for an ordinary one.
    pub urgent: bool,
}

/// What is in the queue of the socket behind a descriptor of a process; nothing once that is gone.
pub fn queue(pid: i32, fd: i32) -> Queue {
    copy(pid, fd).map_or_else(Queue::default, |socket| of(&socket))
}

fn copy(pid: i32, fd: i32) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()
}

fn of(socket: &OwnedFd) -> Queue {
    let flags = MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Queue {
        tells_senders: getsockopt(socket, sockopt::PassCred).unwrap_or(false),
        urgent: recv(socket.as_raw_fd(), &mut [0], flags) == Ok(1),
    }
}

#[cfg(test)]
mod test {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use nix::sys::socket::{send, setsockopt};

    use super::*;

    #[test]
    fn who_asks_for_senders() {
        let socket = OwnedFd::from(UnixDatagram::unbound().unwrap());
        assert_eq!(of(&socket), Queue::default());
        setsockopt(&socket, sockopt::PassCred, &true).unwrap();
        assert!(of(&socket).tells_senders);
        let (pid, fd) = (std::process::id().cast_signed(), socket.as_raw_fd());
        assert!(queue(pid, fd).tells_senders);
        assert_eq!(queue(pid, i32::MAX), Queue::default());
    }

    #[test]
    fn an_urgent_byte_stays_where_it_is() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"one").unwrap();
        let b = OwnedFd::from(b);
        assert_eq!(of(&b), Queue::default());
        send(a.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
        assert!(of(&b).urgent && of(&b).urgent);
        let mut got = [0; 3];
        UnixStream::from(b).read_exact(&mut got).unwrap();
        assert_eq!(&got, b"one");
    }
}
