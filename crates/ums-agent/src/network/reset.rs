//! Resetting every TCP connection of a network namespace, by the kernel's socket diagnostics
//! (`sock_diag(7)`, `SOCK_DESTROY`): the kernel alone knows the sequence numbers that the other end
//! accepts a reset with.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::NetworkError;
use super::tool::within;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const IPPROTO_TCP: u8 = 6;

/// Length of `nlmsghdr`.
const HEADER: usize = 16;

/// Length of `inet_diag_sockid`.
const SOCKET_ID: usize = 48;

/// All states but those without a peer that waits: closed, listening, and over (TIME_WAIT).
const STATES: u32 = 0xfff & !((1 << 0) | (1 << 6) | (1 << 7) | (1 << 10));

/// A netlink message is never longer in a dump.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The kernel answers at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// While some are reset others may still come out of the listeners' queues: look again, so often.
const ROUNDS_MAX: usize = 8;

/// More connections than a service's namespace can have with the usual limits of open files.
const CONNECTIONS_MAX: usize = 1 << 20;

type SocketId = [u8; SOCKET_ID];

/// Resets all connections of the namespace, and returns how many there were.
pub(super) async fn all_connections(netns: &Path) -> Result<usize, NetworkError> {
    within(netns, reset_all).await?.map_err(NetworkError::Reset)
}

fn reset_all() -> io::Result<usize> {
    let netlink = open()?;
    let mut count = 0;
    for _ in 0..ROUNDS_MAX {
        let before = count;
        for family in [
            libc_family(AddressFamily::Inet),
            libc_family(AddressFamily::Inet6),
        ] {
            for id in connections(&netlink, family)? {
                count += usize::from(destroy(&netlink, family, &id)?);
            }
        }
        if count == before {
            break;
        }
    }
    Ok(count)
}

fn libc_family(family: AddressFamily) -> u8 {
    // Both are below 256 on every Linux.
    u8::try_from(family as i32).unwrap_or_default()
}

fn open() -> io::Result<OwnedFd> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let seconds = i64::try_from(ANSWER_WITHIN.as_secs()).unwrap_or(i64::MAX);
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
    Ok(netlink)
}

/// A request about sockets: `nlmsghdr` and `inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, id: &SocketId) -> Vec<u8> {
    let length = u32::try_from(HEADER + 8 + SOCKET_ID).unwrap_or_default();
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, IPPROTO_TCP, 0, 0]);
    message.extend(STATES.to_ne_bytes());
    message.extend(id);
    message
}

fn connections(netlink: &OwnedFd, family: u8) -> io::Result<Vec<SocketId>> {
    ask(
        netlink,
        &request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; SOCKET_ID]),
    )
}

/// Whether the connection was there to be reset.
fn destroy(netlink: &OwnedFd, family: u8, id: &SocketId) -> io::Result<bool> {
    match ask(netlink, &request(SOCK_DESTROY, NLM_F_ACK, family, id)) {
        Ok(_) => Ok(true),
        // It ended by itself meanwhile.
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends a request and reads the answer to its end.
fn ask(netlink: &OwnedFd, message: &[u8]) -> io::Result<Vec<SocketId>> {
    send(netlink.as_raw_fd(), message, MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if read(&buffer[..length], &mut found)? {
            return Ok(found);
        }
        if found.len() > CONNECTIONS_MAX {
            return Err(io::Error::other(
                "more connections than one service can have",
            ));
        }
    }
}

/// Reads one datagram; true when it was the last.
fn read(mut rest: &[u8], found: &mut Vec<SocketId>) -> io::Result<bool> {
    while rest.len() >= HEADER {
        let length = usize::try_from(number(rest, 0)?).unwrap_or(usize::MAX);
        let body = rest.get(HEADER..length).ok_or_else(cut_short)?;
        match u16::from_ne_bytes([rest[4], rest[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = number(body, 0)?.cast_signed();
                if code == 0 {
                    return Ok(true);
                }
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            SOCK_DIAG_BY_FAMILY => {
                let id = body.get(4..4 + SOCKET_ID).ok_or_else(cut_short)?;
                found.push(id.try_into().map_err(|_| cut_short())?);
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn number(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_ne_bytes).ok_or_else(cut_short)
}

fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer is cut short",
    )
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn answers_are_read_and_broken_ones_refused() {
        let mut message = request(SOCK_DIAG_BY_FAMILY, 0, 2, &[7; SOCKET_ID]);
        // In an answer four bytes come before the socket's identity.
        message.drain(HEADER..HEADER + 4);
        let length = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&length.to_ne_bytes());
        let mut found = Vec::new();
        assert!(!read(&message, &mut found).unwrap());
        assert_eq!(found, [[7; SOCKET_ID]]);
        for end in [HEADER, HEADER + 4, message.len() - 1] {
            assert!(read(&message[..end], &mut found).is_err(), "{end}");
        }
        let mut endless = message.clone();
        endless[..4].copy_from_slice(&[0; 4]);
        assert!(read(&endless, &mut found).is_err());
        let mut done = vec![0; HEADER];
        done[0] = 16;
        done[4] = 3;
        assert!(read(&done, &mut found).unwrap());
    }
}
