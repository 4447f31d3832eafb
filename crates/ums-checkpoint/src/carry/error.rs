//! Errors of connections that their owners have not been told yet (`SO_ERROR`, socket(7)).
//!
//! CRIU restores a connection that an error has ended as one that both ends have closed: reading says
//! that there is no more, and a `connect(2)` that has failed looks as if it had succeeded. The kernel
//! tells that there is an error, and which one only once, to whoever asks: that shall be the owner. He is
//! told after a move that the connection was aborted (ECONNABORTED).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Shutdown, getsockopt, setsockopt, shutdown, sockopt::TcpRepair};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::descriptor::{Place, Reach};
use super::option::Nature;
use super::{Lost, oddity, raw};

/// A connection that is over by an error that was not told yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failed {
    place: Place,
    /// Bytes that came before the error and were not read.
    unread: i32,
}

/// Looks at a socket; `None` when nothing has failed.
pub(super) fn capture(
    socket: &OwnedFd,
    place: Place,
    nature: Nature,
) -> io::Result<Option<Failed>> {
    let over = nature.is_tcp() && nature.is_closed();
    if !over || !oddity::events(socket).contains(PollFlags::ERR) {
        return Ok(None);
    }
    let unread = raw::unread(socket)?;
    Ok(Some(Failed { place, unread }))
}

impl Failed {
    /// What is not as it was.
    fn told(&self) -> String {
        let fd = self.place.fd;
        match self.unread {
            0 => format!("the connection behind descriptor {fd} has failed: as ECONNABORTED"),
            unread => format!(
                "the connection behind descriptor {fd} has failed: not at all, it ends after the \
                 {unread} bytes that were not read"
            ),
        }
    }

    /// Lets a restored socket tell of an error.
    fn set(&self, socket: &OwnedFd) -> io::Result<()> {
        if self.unread > 0 {
            // What has arrived would go with the connection.
            return Ok(());
        }
        // In repair mode a connection is over without a word to the other end, and with this error
        // (kernel `tcp_disconnect`). CRIU leaves the mode later.
        let repaired = getsockopt(socket, TcpRepair)? != 0;
        let name = libc::SO_REUSEADDR;
        let reuse = raw::get_int(socket, libc::SOL_SOCKET, name)?;
        if !repaired {
            setsockopt(socket, TcpRepair, &1)?;
        }
        let over = raw::disconnect(socket);
        if !repaired {
            setsockopt(socket, TcpRepair, &0)?;
            raw::set(socket, libc::SOL_SOCKET, name, &reuse.to_ne_bytes())?;
        }
        over?;
        // It says that it is not connected, and does so all the same.
        match shutdown(socket.as_raw_fd(), Shutdown::Both) {
            Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Lets restored sockets tell of errors, and says how they are told.
pub(super) fn apply(all: &[Failed], reach: &Reach) -> Vec<Lost> {
    let set = |failed: &Failed| {
        let done = reach.get(failed.place).and_then(|copy| failed.set(&copy));
        Lost {
            kind: LossKind::PendingError,
            pid: failed.place.pid,
            detail: match done {
                Ok(()) => failed.told(),
                Err(error) => format!("the socket behind descriptor {}: {error}", failed.place.fd),
            },
        }
    };
    all.iter().map(set).collect()
}

#[cfg(test)]
mod test {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::super::socket::nature;
    use super::*;

    const PLACE: Place = Place::behind(1, 3);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// A connection that the other end has reset, after so many bytes.
    fn reset(bytes: &[u8]) -> OwnedFd {
        let (mut client, mut served) = pair();
        client.write_all(b"never read").unwrap();
        served.write_all(bytes).unwrap();
        // All that was written is there at once, on the loopback device.
        served.peek(&mut [0]).unwrap();
        // It has not read all: its kernel resets.
        drop(served);
        let client = OwnedFd::from(client);
        while !oddity::events(&client).contains(PollFlags::ERR) {
            std::thread::yield_now();
        }
        client
    }

    fn seen(socket: &OwnedFd) -> Option<Failed> {
        capture(socket, PLACE, nature(socket).unwrap()).unwrap()
    }

    #[test]
    fn an_error_is_told_by_a_socket_that_was_closed_in_order() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED an_error_is_told: needs root");
            return;
        }
        let failed = seen(&reset(b"")).unwrap();
        assert_eq!(failed.unread, 0);
        let (restored, other) = pair();
        drop(other);
        let restored = OwnedFd::from(restored);
        assert_eq!(seen(&restored), None, "what is open has no error");
        failed.set(&restored).unwrap();
        assert_eq!(seen(&restored), Some(failed), "still to be told");
        let error = TcpStream::from(restored).read(&mut [0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
    }

    #[test]
    fn what_arrived_before_an_error_is_kept() {
        let failed = seen(&reset(b"12345"));
        assert_eq!(failed.as_ref().map(|failed| failed.unread), Some(5));
        assert!(failed.unwrap().told().contains("after the 5 bytes"));
        let fresh = OwnedFd::from(pair().0);
        assert_eq!(seen(&fresh), None);
    }
}
