//! Messages of netlink about our own devices: before and after a move devices come and go in a service's
//! network namespace, and a service that listens to such changes (rtnetlink(7)) is told. It may not have
//! read that when it is frozen, and CRIU carries no such queue. Nobody misses these messages: at the
//! destination the devices are not there.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::option::Nature;
use super::{oddity, raw, socket};

/// The devices that whoever moves services makes in their network namespaces.
pub const OWN_DEVICES: [&str; 2] = ["ums-out", "ums-in"];

/// Longest message that is looked at, bytes: those about one device are some hundred.
const MESSAGE_MAX: usize = 32 * 1024;
/// Most messages that are taken out.
const MESSAGES_MAX: usize = 4096;

/// Whether what a socket of a process that runs has not read may be about our own devices alone: whether
/// the next message is. False where the descriptor has gone, or is no such socket.
pub fn is_only_ours(pid: i32, fd: i32) -> bool {
    let copy = || {
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()
    };
    let ours = copy().and_then(|copy| next_is_ours(&copy, socket::nature(&copy).ok()?).ok());
    ours.unwrap_or(false)
}

/// Whether the next message is about a device of ours.
pub(super) fn next_is_ours(socket: &OwnedFd, nature: Nature) -> io::Result<bool> {
    // To look would tell the error that waits to us, and not to the socket's owner.
    if !nature.is_route() || oddity::events(socket).contains(PollFlags::ERR) {
        return Ok(false);
    }
    let mut ours = Ours::of(socket);
    let next = peek(socket)?;
    Ok(next.is_none_or(|message| ours.are_all(&message)))
}

/// Takes out the messages about our devices that come first; true when nothing is left then. The socket's
/// owner must be frozen.
pub(super) fn take_ours(socket: &OwnedFd, nature: Nature) -> io::Result<bool> {
    if !nature.is_route() {
        return Ok(false);
    }
    let mut ours = Ours::of(socket);
    for _ in 0..MESSAGES_MAX {
        match peek(socket)? {
            None => return Ok(true),
            Some(message) if !ours.are_all(&message) => return Ok(false),
            Some(_) => drop(recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_DONTWAIT)?),
        }
    }
    Ok(false)
}

/// The next message; `None` when there is none. What is too long comes shortened.
fn peek(socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut message = vec![0; MESSAGE_MAX];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut message, flags) {
        Ok(length) => {
            message.truncate(length);
            Ok(Some(message))
        }
        Err(Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Our devices, by their numbers.
#[derive(Debug, Default)]
struct Ours(BTreeSet<u32>);

impl Ours {
    /// In the namespace of a socket.
    fn of(socket: &OwnedFd) -> Self {
        let index = |name: &&str| raw::device_index(socket, name).ok();
        let indices = OWN_DEVICES.iter().filter_map(index);
        Self(indices.map(i32::cast_unsigned).collect())
    }

    /// Whether all of the messages that come together (`struct nlmsghdr`) are about them.
    fn are_all(&mut self, messages: &[u8]) -> bool {
        const HEADER: usize = 16;
        let mut rest = messages;
        while let Some(length) = u32_at(rest, 0) {
            let (Ok(length), Some(kind)) = (usize::try_from(length), u16_at(rest, 4)) else {
                return false;
            };
            let Some(body) = rest.get(HEADER..length) else {
                return false;
            };
            if !self.is_about(kind, body) {
                return false;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        rest.is_empty() && !messages.is_empty()
    }

    fn is_about(&mut self, kind: u16, body: &[u8]) -> bool {
        match kind {
            // RTM_NEWLINK, RTM_DELLINK: struct ifinfomsg. The number of one that has gone is learned here.
            16 | 17 => {
                let name = attribute(body, 16, 3); // IFLA_IFNAME
                let name = name.map(|name| name.strip_suffix(b"\0").unwrap_or(name));
                let is_ours = OWN_DEVICES.iter().any(|own| name == Some(own.as_bytes()));
                let index = u32_at(body, 4);
                self.0.extend(index.filter(|_| is_ours));
                is_ours || index.is_some_and(|index| self.0.contains(&index))
            }
            // RTM_NEWADDR, RTM_NEWNEIGH, RTM_NEWQDISC, RTM_NEWPREFIX and their ends: the number comes at
            // the same place.
            20 | 21 | 28 | 29 | 36 | 37 | 52 => self.has(u32_at(body, 4)),
            // RTM_NEWROUTE, RTM_DELROUTE: struct rtmsg; RTA_OIF.
            24 | 25 => self.has(attribute(body, 12, 4).and_then(|index| u32_at(index, 0))),
            // RTM_NEWNETCONF, RTM_DELNETCONF: struct netconfmsg; NETCONFA_IFINDEX.
            80 | 81 => self.has(attribute(body, 4, 1).and_then(|index| u32_at(index, 0))),
            _ => false,
        }
    }

    fn has(&self, index: Option<u32>) -> bool {
        index.is_some_and(|index| self.0.contains(&index))
    }
}

/// The attribute of a kind (`struct rtattr`) among those from `at` on.
fn attribute(body: &[u8], at: usize, kind: u16) -> Option<&[u8]> {
    const NESTED_AND_ORDER: u16 = 0xc000;
    let mut rest = body.get(at..)?;
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        if u16_at(rest, 2)? & !NESTED_AND_ORDER == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    two.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    four.try_into().ok().map(u32::from_ne_bytes)
}

impl Nature {
    /// Whether it speaks NETLINK_ROUTE.
    fn is_route(self) -> bool {
        self.domain == libc::AF_NETLINK && self.protocol == libc::NETLINK_ROUTE
    }
}

#[cfg(test)]
mod test;
