//! What a service may be in the middle of that CRIU refuses, and that is mostly over in a moment: a
//! message that is about to be read, a connection that is about to be accepted.
//!
//! Whoever freezes looks for it before, while the service runs, and once more when it is frozen: then it
//! is let run and frozen at another moment, instead of failing in CRIU.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::libc;
use rustix::event::PollFlags;

use super::descriptor::{self, Kind, Place, Reach};
use super::option::Nature;
use super::process::Process;
use super::{netlink, oddity, raw, socket};
use crate::unix_diag::{self, UnixSocket};
use crate::unix_queue;

/// `UDP_CORK`.
const CORK: i32 = 1;

/// When it is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The service runs: nothing of it is touched.
    Running,
    /// It is frozen: queues are looked at to their ends, and messages about devices of ours are taken out.
    Frozen,
}

/// What the service is in the middle of, in words, each once; empty where it can be dumped.
///
/// # Errors
/// The kernel does not tell of its sockets.
pub fn passing(processes: &[Process], moment: Moment) -> io::Result<BTreeSet<String>> {
    let Some(first) = processes.first() else {
        return Ok(BTreeSet::new());
    };
    let reach = Reach::new(processes);
    let mut unix = None;
    let mut found = BTreeSet::new();
    let mut held = BTreeMap::new();
    for (place, kind) in descriptor::all(processes)? {
        // It may have gone, or be another file's number by now.
        let (Kind::Socket, Ok(copy)) = (kind, reach.get(place)) else {
            continue;
        };
        let Ok(nature) = socket::nature(&copy) else {
            continue;
        };
        let what = match nature.domain {
            libc::AF_UNIX => {
                if unix.is_none() {
                    unix = Some(unix_sockets(first.pid)?);
                }
                let inode = nix::sys::stat::fstat(&copy).map(|stat| stat.st_ino)?;
                held.insert(inode, place);
                let this = unix.as_ref().and_then(|all| all.get(&inode));
                this.and_then(|this| queued(&copy, this, moment).transpose())
                    .transpose()?
            }
            libc::AF_NETLINK => unread(&copy, nature, moment)?,
            _ if nature.is_tcp() => urgent(&copy, nature, moment)?,
            _ => corked(&copy, nature),
        };
        found.extend(what.map(|what| told(place, &what)));
    }
    for (listener, _, why) in unix.iter().flat_map(unix_diag::waiting) {
        if let Some(place) = held.get(&listener) {
            let what = format!("a connection that waits to be accepted, {}", why.told());
            found.insert(told(*place, &what));
        }
    }
    Ok(found)
}

fn told(Place { pid, fd, .. }: Place, what: &str) -> String {
    format!("process {pid} has, at the socket behind descriptor {fd}, {what}")
}

/// All unix sockets of the namespace that a process is in.
fn unix_sockets(pid: i32) -> io::Result<BTreeMap<u64, UnixSocket>> {
    unix_diag::sockets_in(File::open(format!("/proc/{pid}/ns/net"))?)
}

/// What is in the queue of a unix socket.
fn queued(copy: &OwnedFd, this: &UnixSocket, moment: Moment) -> io::Result<Option<String>> {
    if this.listens() || this.unread == 0 {
        return Ok(None);
    }
    if unix_queue::tells_senders(copy) {
        let what = "unread messages of which it is told who has sent them, or when (SO_PASSCRED, \
                    SO_PASSPIDFD, SO_TIMESTAMP)";
        return Ok(Some(what.to_owned()));
    }
    let flight = match moment {
        Moment::Running => None,
        Moment::Frozen => unix_queue::flight_anywhere(copy)?,
    };
    Ok(flight.map(|flight| format!("{} on its way to it (SCM_RIGHTS)", flight.told())))
}

/// What of a netlink socket was not read.
fn unread(copy: &OwnedFd, nature: Nature, moment: Moment) -> io::Result<Option<String>> {
    let events = oddity::events(copy);
    if events.contains(PollFlags::ERR) {
        let what = "an error that it has not been told: the kernel had no room for its messages";
        return Ok(Some(what.to_owned()));
    }
    if !events.contains(PollFlags::IN) {
        return Ok(None);
    }
    let is_free = match moment {
        Moment::Running => netlink::next_is_ours(copy, nature)?,
        Moment::Frozen => netlink::take_ours(copy, nature)?,
    };
    Ok((!is_free).then(|| "messages of netlink that it has not read".to_owned()))
}

/// An urgent byte of a connection that was not read, or was read before what is in front of it; the second
/// can be seen of a frozen service alone.
fn urgent(copy: &OwnedFd, nature: Nature, moment: Moment) -> io::Result<Option<String>> {
    let is_urgent = oddity::is_urgent(copy, nature)
        || moment == Moment::Frozen && oddity::hides_more(copy, nature)?;
    Ok(is_urgent.then(|| "an urgent byte (MSG_OOB) that it has not read".to_owned()))
}

/// Data that a UDP socket holds back. (What it holds back by MSG_MORE alone looks like any packet that
/// is under way.)
fn corked(copy: &OwnedFd, nature: Nature) -> Option<String> {
    let holds = nature.is_udp() && is_corked(copy) && raw::unsent(copy).unwrap_or(0) > 0;
    holds.then(|| "data that it holds back (UDP_CORK)".to_owned())
}

/// Whether a UDP socket holds data back, once it has some.
pub(super) fn is_corked(copy: &OwnedFd) -> bool {
    raw::get_int(copy, libc::IPPROTO_UDP, CORK).is_ok_and(|on| on != 0)
}

/// Has it do so, or not; with data, that is sent now.
pub(super) fn cork(copy: &OwnedFd, on: bool) -> io::Result<()> {
    raw::set(copy, libc::IPPROTO_UDP, CORK, &i32::from(on).to_ne_bytes())
}

#[cfg(test)]
mod test;
