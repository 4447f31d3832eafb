//! Settings of a frozen service's sockets that stand in CRIU's way, changed while it dumps. What they were
//! is in [`Carry`](super::Carry), which sets it again at the destination, so it must be captured before.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;

use super::descriptor::{self, Kind, Reach};
use super::passing::{cork, is_corked};
use super::process::Process;
use super::{raw, socket};
use crate::unix_queue;

const SO_SNDBUFFORCE: i32 = 32;
const SO_BUF_LOCK: i32 = 72;
/// What the kernel takes of a buffer for itself, as CRIU reckons (its `dump_sk_queue`), bytes.
const OVERHEAD: usize = 32;

/// What was changed, until it is undone.
#[derive(Debug, Default)]
pub struct Eased(Vec<(OwnedFd, Change)>);

#[derive(Debug, Clone, Copy)]
enum Change {
    /// The room for what a socket sends was enlarged, and was so much: CRIU takes it for the length of the
    /// largest message that the socket may have received.
    Room { bytes: i32, lock: i32 },
    /// A UDP socket held data back, and had none: CRIU refuses the setting.
    Cork,
}

impl Eased {
    /// Changes what has to be changed of the sockets of a frozen service.
    ///
    /// # Errors
    /// A setting can't be changed; what was is undone.
    pub fn of(processes: &[Process]) -> io::Result<Self> {
        let reach = Reach::new(processes);
        let mut eased = Self::default();
        for (place, kind) in descriptor::all(processes)? {
            if kind != Kind::Socket {
                continue;
            }
            let copy = reach.get(place)?;
            if let Some(change) = Change::of(&copy)? {
                eased.0.push((copy, change));
            }
        }
        Ok(eased)
    }
}

impl Drop for Eased {
    fn drop(&mut self) {
        for (socket, change) in &self.0 {
            if let Err(error) = change.undo(socket) {
                tracing::warn!(%error, ?change, "a socket of the source stays changed");
            }
        }
    }
}

impl Change {
    /// Makes the change that a socket needs.
    fn of(socket: &OwnedFd) -> io::Result<Option<Self>> {
        let nature = socket::nature(socket)?;
        if nature.is_udp() && is_corked(socket) && raw::unsent(socket)? == 0 {
            cork(socket, false)?;
            return Ok(Some(Self::Cork));
        }
        // Of streams CRIU takes out what fits.
        let has_messages = nature.domain == libc::AF_UNIX && nature.kind != libc::SOCK_STREAM;
        if !has_messages || raw::get_int(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0 {
            return Ok(None);
        }
        let bytes = raw::get_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUF)?;
        let needed = unix_queue::largest(socket)? + OVERHEAD;
        if usize::try_from(bytes).is_ok_and(|bytes| needed <= bytes) {
            return Ok(None);
        }
        let lock = raw::get_int(socket, libc::SOL_SOCKET, SO_BUF_LOCK)?;
        // The kernel doubles it.
        let needed = i32::try_from(needed).unwrap_or(i32::MAX / 2);
        set(socket, SO_SNDBUFFORCE, needed)?;
        Ok(Some(Self::Room { bytes, lock }))
    }

    fn undo(self, socket: &OwnedFd) -> io::Result<()> {
        match self {
            Self::Cork => cork(socket, true),
            Self::Room { bytes, lock } => {
                set(socket, SO_SNDBUFFORCE, bytes / 2)?;
                set(socket, SO_BUF_LOCK, lock)
            }
        }
    }
}

fn set(socket: &OwnedFd, name: i32, value: i32) -> io::Result<()> {
    raw::set(socket, libc::SOL_SOCKET, name, &value.to_ne_bytes())
}

#[cfg(test)]
mod test {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn room(socket: &OwnedFd) -> [i32; 2] {
        [libc::SO_SNDBUF, SO_BUF_LOCK]
            .map(|name| raw::get_int(socket, libc::SOL_SOCKET, name).unwrap())
    }

    fn this() -> Vec<Process> {
        let pid = std::process::id().cast_signed();
        vec![Process { pid, inner: pid }]
    }

    #[test]
    fn settings_are_changed_and_undone() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let b = OwnedFd::from(b);
        set(&b, libc::SO_SNDBUF, 8192).unwrap();
        let before = room(&b);
        a.send(&[7; 60_000]).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = OwnedFd::from(udp);
        cork(&udp, true).unwrap();

        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED ease: needs root");
            return;
        }
        let eased = Eased::of(&this()).unwrap();
        assert!(room(&b)[0] >= 60_000 + 32, "{:?}", room(&b));
        assert!(!is_corked(&udp));
        drop(eased);
        assert_eq!(room(&b), before);
        assert!(is_corked(&udp));
    }
}
