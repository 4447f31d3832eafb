//! Questions to the kernel about the sockets of a network namespace (`sock_diag(7)`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub(crate) const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(crate) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(crate) const HEADER_LEN: usize = 16;
/// Longest wait for an answer of the kernel, which comes at once.
const PATIENCE_S: i64 = 2;
/// Most answers that are read; each holds dozens of sockets.
const ANSWERS_MAX: u32 = 65_536;

/// Asks in this network namespace; `socket` is called with what is told of each.
///
/// # Errors
/// When the namespace can't be entered (CAP_SYS_ADMIN), or the kernel does not answer.
pub(crate) fn ask_in(
    namespace: File,
    question: Vec<u8>,
    socket: impl FnMut(&[u8]) + Send,
) -> io::Result<()> {
    // A thread of its own, which ends with the namespace it has entered.
    thread::scope(|scope| {
        let asking = scope.spawn(move || -> io::Result<()> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            ask(&question, socket)
        });
        asking
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the asking thread panicked")))
    })
}

fn ask(question: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let protocol = SockProtocol::NetlinkSockDiag;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    setsockopt(
        &netlink,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(PATIENCE_S),
    )?;
    send(netlink.as_raw_fd(), question, MsgFlags::empty())?;
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..ANSWERS_MAX {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if read_answer(&buffer[..length], &mut each)? {
            return Ok(());
        }
    }
    Err(io::Error::other("the kernel's answer has no end"))
}

/// `struct nlmsghdr`, then the request of a family, for all of its sockets.
pub(crate) fn question(request: &[u8]) -> Vec<u8> {
    const REQUEST_AND_DUMP: u16 = 0x301;
    let length = HEADER_LEN + request.len();
    let mut question = Vec::with_capacity(length);
    question.extend((length as u32).to_ne_bytes());
    question.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    question.extend(REQUEST_AND_DUMP.to_ne_bytes());
    question.extend([0; 8]); // sequence number, port
    question.extend(request);
    question
}

/// Reads the messages of one answer; true when it was the last.
pub(crate) fn read_answer(answer: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<bool> {
    let mut rest = answer;
    while rest.len() >= HEADER_LEN {
        let length = u32_at(rest, 0) as usize;
        if !(HEADER_LEN..=rest.len()).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let body = &rest[HEADER_LEN..length];
        match u16_at(rest, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = if body.len() >= 4 {
                    u32_at(body, 0) as i32
                } else {
                    0
                };
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            SOCK_DIAG_BY_FAMILY => each(body),
            _ => {}
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// The attributes of a socket, by their numbers. What is malformed ends it.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if rest.len() < 4 {
            return None;
        }
        let length = usize::from(u16_at(rest, 0));
        if !(4..=rest.len()).contains(&length) {
            return None;
        }
        let attribute = (u16_at(rest, 2), &rest[4..length]);
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(attribute)
    })
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn broken_answers_are_errors() {
        let mut sockets = 0;
        let mut each = |_: &[u8]| sockets += 1;
        let mut message = vec![0; 40];
        message[0] = 200;
        let longer = read_answer(&message, &mut each);
        assert!(longer.is_err(), "longer than what came");
        message[..4].copy_from_slice(&3_u32.to_ne_bytes());
        let shorter = read_answer(&message, &mut each);
        assert!(shorter.is_err(), "shorter than its header");
        message[..4].copy_from_slice(&20_u32.to_ne_bytes());
        message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        message[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        let error = read_answer(&message, &mut each).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(1));
        assert!(!read_answer(&[], &mut each).unwrap());
        assert_eq!(sockets, 0);
        for broken in [&[0, 0, 2, 0][..], &[9, 0, 2, 0]] {
            assert_eq!(attributes(broken).count(), 0);
        }
    }
}
