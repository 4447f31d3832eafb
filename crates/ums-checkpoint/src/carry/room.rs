//! Room for what a TCP socket receives: as much as it had.
//!
//! What has arrived and was not read takes more memory where CRIU has put it back, in pieces of other sizes, and
//! the receive buffer is as large as it was. What a peer sends within the window that it was promised would
//! then be dropped, again and again, until it tries only once in a minute or two.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;

use super::raw;

const SO_RCVBUFFORCE: i32 = 33;
/// Numbers of 32 bits, `SK_MEMINFO_…` in `linux/sock_diag.h`.
const SO_MEMINFO: i32 = 55;
const MEMINFO_LEN: usize = 64;
const SO_BUF_LOCK: i32 = 72;

/// What the data that a socket has received takes of its receive buffer (`SK_MEMINFO_RMEM_ALLOC`), bytes.
pub(super) fn unread(socket: &OwnedFd) -> io::Result<u32> {
    let mut info = [0; MEMINFO_LEN];
    raw::get(socket, libc::SOL_SOCKET, SO_MEMINFO, &mut info)?;
    let [a, b, c, d, ..] = info;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// Enlarges a receive buffer by what its content takes more than `before`, bytes.
pub(super) fn make(socket: &OwnedFd, before: u32) -> io::Result<()> {
    let more = unread(socket)?.saturating_sub(before);
    if more == 0 {
        return Ok(());
    }
    let lock = raw::get_int(socket, libc::SOL_SOCKET, SO_BUF_LOCK)?;
    let bytes = raw::get_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUF)?;
    // The kernel doubles it.
    let half = (i64::from(bytes) + i64::from(more) + 1) / 2;
    let half = i32::try_from(half).unwrap_or(i32::MAX / 2);
    set(socket, SO_RCVBUFFORCE, half)?;
    set(socket, SO_BUF_LOCK, lock)
}

fn set(socket: &OwnedFd, name: i32, value: i32) -> io::Result<()> {
    raw::set(socket, libc::SOL_SOCKET, name, &value.to_ne_bytes())
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_unread_data_takes_more_is_added() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED what_unread_data_takes_more_is_added: needs root");
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let served: OwnedFd = listener.accept().unwrap().0.into();
        client.write_all(&[7; 10_000]).unwrap();
        while unread(&served).unwrap() < 10_000 {
            std::thread::yield_now();
        }
        let state = || {
            [libc::SO_RCVBUF, SO_BUF_LOCK]
                .map(|name| raw::get_int(&served, libc::SOL_SOCKET, name).unwrap())
        };
        let [bytes, lock] = state();
        let now = unread(&served).unwrap();
        make(&served, now).unwrap();
        assert_eq!(state(), [bytes, lock]);
        make(&served, now - 4_000).unwrap();
        assert_eq!(state(), [bytes + bytes % 2 + 4_000, lock]);
    }
}
