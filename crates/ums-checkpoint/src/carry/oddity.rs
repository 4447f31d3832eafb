//! What sockets may be in the middle of that neither CRIU nor we carry: to be known before anything is
//! frozen, and told where it came about since.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    MsgFlags, NetlinkAddr, SockaddrIn6, SockaddrStorage, getpeername, getsockname, recv,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::descriptor::{self, Kind, Place, Reach};
use super::option::Nature;
use super::process::Process;
use super::{raw, socket};

const SO_GET_FILTER: i32 = 26;
const TCP_INFO: i32 = 11;
const TCP_ULP: i32 = 31;
const TCP_AO_INFO: i32 = 40;
const SOL_PACKET: i32 = 263;
const PACKET_FANOUT: i32 = 18;
/// `PACKET_FANOUT_CBPF`, `PACKET_FANOUT_EBPF`.
const FANOUT_BY_PROGRAM: [i32; 2] = [6, 7];
const SOL_NETLINK: i32 = 270;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
/// Where `tcp_info` has the length of a listener's queue.
const TCPI_UNACKED: usize = 24;

/// Something about a socket that a move does not keep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Oddity {
    /// A state that CRIU refuses or can't make again; in words.
    Uncarried(String),
    /// A connection in which an urgent byte has arrived that was not read (`MSG_OOB`, tcp(7)): CRIU loses
    /// it and what came after it.
    Urgent,
    /// Messages have arrived that were not read, and no copy of them can be put in again.
    Unread,
    /// A ring of packets that the process has mapped (`PACKET_RX_RING`, packet(7)) begins anew.
    Ring,
    /// A listener has connections that were not accepted.
    Unaccepted,
    /// An error has occurred that the owner has not been told (`SO_ERROR`).
    PendingError,
    /// A unix datagram that was not read, whose sender has a name (unix(7)): CRIU carries it without.
    Sender,
    /// A message without content in a unix socket: CRIU ends there.
    Empty,
    /// One of several sockets that share a port (SO_REUSEPORT): which of them is chosen a program may
    /// decide, which the kernel tells nobody.
    SharedPort,
}

impl Oddity {
    /// Whether it may be over in a moment.
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Uncarried(_) | Self::Ring | Self::SharedPort)
    }
}

/// The oddities of the sockets of a service that runs, by process id inside its PID namespace. What
/// vanishes meanwhile is passed over.
pub fn look(processes: &[Process]) -> io::Result<BTreeSet<(i32, Oddity)>> {
    let reach = Reach::new(processes);
    let (mut found, mut families) = (BTreeSet::new(), BTreeMap::new());
    let mut ports: BTreeMap<(i32, String), Vec<i32>> = BTreeMap::new();
    for (place, kind) in descriptor::all(processes)? {
        let Place { pid, .. } = place;
        let Ok(copy) = reach.get(place) else {
            continue;
        };
        // The number may be another file's by now.
        let (Kind::Socket, Ok(nature)) = (kind, socket::nature(&copy)) else {
            continue;
        };
        if let Ok(stat) = nix::sys::stat::fstat(&copy) {
            families.insert(stat.st_ino, nature.domain);
        }
        found.extend(of(&copy, nature).into_iter().map(|oddity| (pid, oddity)));
        if let Some(port) = shared_port(&copy, nature) {
            ports.entry(port).or_default().push(pid);
        }
    }
    let shared = ports.into_values().filter(|of| of.len() > 1).flatten();
    found.extend(shared.map(|pid| (pid, Oddity::SharedPort)));
    for process in processes {
        found.extend(mapped(process, &families));
    }
    Ok(found)
}

/// Sockets in the address space of a process.
fn mapped(process: &Process, families: &BTreeMap<u64, i32>) -> Option<(i32, Oddity)> {
    let maps = fs::read(format!("/proc/{}/maps", process.pid)).ok()?;
    let maps = String::from_utf8_lossy(&maps);
    let mut sockets = maps.lines().filter_map(|line| {
        let (_, rest) = line.split_once("socket:[")?;
        rest.split_once(']')?.0.parse::<u64>().ok()
    });
    let family = families.get(&sockets.next()?);
    let oddity = match family {
        Some(&libc::AF_PACKET) => Oddity::Ring,
        _ => Oddity::Uncarried("a socket that is mapped into its memory".to_owned()),
    };
    Some((process.inner, oddity))
}

/// What is odd about a socket, of a process that may run.
pub(super) fn of(socket: &OwnedFd, nature: Nature) -> Vec<Oddity> {
    let uncarried = [
        program(socket, nature),
        upper(socket, nature),
        link_local(socket, nature),
        groups(socket, nature),
    ];
    let mut found: Vec<Oddity> = uncarried
        .into_iter()
        .flatten()
        .map(|what| Oddity::Uncarried(what.to_owned()))
        .collect();
    if nature.is_tcp() {
        found.extend(is_urgent(socket, nature).then_some(Oddity::Urgent));
        found.extend(has_unaccepted(socket, nature).then_some(Oddity::Unaccepted));
    } else if nature.is_inet() || nature.domain == libc::AF_PACKET {
        let events = events(socket);
        let unread = events.contains(PollFlags::IN) && !events.contains(PollFlags::RDHUP);
        found.extend(unread.then_some(Oddity::Unread));
        let untold = events.contains(PollFlags::ERR);
        found.extend(untold.then_some(Oddity::PendingError));
    } else if nature.domain == libc::AF_UNIX {
        found.extend(unread_message(socket));
    }
    found
}

/// Type and address of a socket that others may have too, for connections or datagrams of anybody.
fn shared_port(socket: &OwnedFd, nature: Nature) -> Option<(i32, String)> {
    let shares =
        || raw::get_int(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT).is_ok_and(|on| on != 0);
    if !nature.is_inet() || (nature.is_tcp() && !nature.is_listening()) || !shares() {
        return None;
    }
    let kind = raw::get_int(socket, libc::SOL_SOCKET, libc::SO_TYPE).ok()?;
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    Some((kind, address.to_string()))
}

/// What CRIU does not give again of the first message in a unix socket that keeps messages apart.
fn unread_message(socket: &OwnedFd) -> Option<Oddity> {
    let kind = raw::get_int(socket, libc::SOL_SOCKET, libc::SO_TYPE).ok()?;
    // With an offset to look from (SO_PEEK_OFF) a look would move it.
    let offset = raw::get_int(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(0);
    if ![libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].contains(&kind) || offset >= 0 {
        return None;
    }
    if !events(socket).contains(PollFlags::IN) || raw::is_listening(socket) {
        return None;
    }
    let (length, is_named) = raw::peek(socket, &mut [0]).ok()??;
    // What has no content looks like the end, except that nobody has ended it.
    let ended = || events(socket).contains(PollFlags::RDHUP);
    if length == 0 {
        return (!ended()).then_some(Oddity::Empty);
    }
    (kind == libc::SOCK_DGRAM && is_named).then_some(Oddity::Sender)
}

/// What the kernel would wake a waiting process for.
pub(super) fn events(socket: &OwnedFd) -> PollFlags {
    let wanted = PollFlags::IN | PollFlags::RDHUP;
    let mut asked = [PollFd::new(socket, wanted)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut asked, Some(&at_once)) {
        Ok(1) => asked[0].revents(),
        _ => PollFlags::empty(),
    }
}

/// Programs that the kernel does not give out again.
fn program(socket: &OwnedFd, nature: Nature) -> Option<&'static str> {
    let filter = raw::get(socket, libc::SOL_SOCKET, SO_GET_FILTER, &mut []);
    if filter.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES)) {
        return Some("an eBPF program as a socket's filter (SO_ATTACH_BPF)");
    }
    let fanout = match nature.domain {
        libc::AF_PACKET => raw::get_int(socket, SOL_PACKET, PACKET_FANOUT).unwrap_or(0),
        _ => 0,
    };
    let by_program = FANOUT_BY_PROGRAM.contains(&(fanout >> 16 & 0xff));
    by_program.then_some("a packet socket in a fanout group with a program (PACKET_FANOUT_DATA)")
}

/// What the kernel does with a connection beyond TCP.
fn upper(socket: &OwnedFd, nature: Nature) -> Option<&'static str> {
    if !nature.is_tcp() {
        return None;
    }
    let mut name = [0; 16];
    let len = raw::get(socket, libc::IPPROTO_TCP, TCP_ULP, &mut name).unwrap_or(0);
    if name[..len].iter().any(|byte| *byte != 0) {
        return Some(
            "a TCP socket whose content the kernel encrypts or converts (TCP_ULP: kernel TLS)",
        );
    }
    let signed = raw::get(socket, libc::IPPROTO_TCP, TCP_AO_INFO, &mut [0; 64]);
    signed
        .is_ok()
        .then_some("a TCP socket whose segments are signed (TCP-AO)")
}

/// Addresses that mean something on one link alone: CRIU does not know on which.
fn link_local(socket: &OwnedFd, nature: Nature) -> Option<&'static str> {
    if !nature.is_inet6() || nature.is_raw() {
        return None;
    }
    let local = getsockname::<SockaddrIn6>(socket.as_raw_fd()).ok();
    let peer = getpeername::<SockaddrIn6>(socket.as_raw_fd()).ok();
    let mut device = [0; libc::IFNAMSIZ];
    let device = raw::get(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &mut device);
    let local = local.filter(|local| local.port() != 0 && device.is_ok_and(|len| len == 0));
    let addresses = [local, peer];
    let mut addresses = addresses.iter().flatten().map(SockaddrIn6::ip);
    addresses
        .any(is_link_local)
        .then_some("a socket with an IPv6 address of one link (fe80::…)")
}

fn is_link_local(address: Ipv6Addr) -> bool {
    let first = address.segments()[0];
    // Of groups, those of an interface and of a link.
    first & 0xffc0 == 0xfe80 || matches!(first & 0xff0f, 0xff01 | 0xff02)
}

/// Memberships of a netlink socket beyond what CRIU can put into one address.
fn groups(socket: &OwnedFd, nature: Nature) -> Option<&'static str> {
    if nature.domain != libc::AF_NETLINK {
        return None;
    }
    // 65,536 groups: the kernel has some hundred.
    let mut bits = vec![0; 8192];
    let len = raw::get(socket, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, &mut bits).ok()?;
    let (first, rest) = bits[..len].split_at(len.min(4));
    let is_member = |bits: &[u8]| bits.iter().any(|byte| *byte != 0);
    // Of a protocol with more than 64 groups CRIU carries no membership at all.
    if is_member(rest) || rest.len() > 4 && is_member(first) {
        return Some("a netlink socket that is a member of groups beyond the 32nd");
    }
    let bound = getsockname::<NetlinkAddr>(socket.as_raw_fd()).ok()?;
    (bound.pid() == 0 && is_member(first))
        .then_some("a netlink socket that is a member of groups and was never bound")
}

/// Whether a listener has connections that were not accepted.
fn has_unaccepted(socket: &OwnedFd, nature: Nature) -> bool {
    let mut info = [0; TCPI_UNACKED + 4];
    let read = raw::get(socket, libc::IPPROTO_TCP, TCP_INFO, &mut info);
    let whole = read.is_ok_and(|len| len == info.len());
    nature.is_listening() && whole && info[TCPI_UNACKED..] != [0; 4]
}

/// Whether an urgent byte has been announced or has come, and was not read; or, where urgent bytes are
/// read among the others (`SO_OOBINLINE`), whether its mark is still ahead.
pub(super) fn is_urgent(socket: &OwnedFd, nature: Nature) -> bool {
    if nature.is_listening() || nature.is_closed() {
        return false;
    }
    let flags = MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut [0], flags) {
        Ok(1) | Err(Errno::EAGAIN) => return true,
        _ => {}
    }
    if raw::is_at_mark(socket).unwrap_or(false) {
        return true;
    }
    let inline = raw::get_int(socket, libc::SOL_SOCKET, libc::SO_OOBINLINE).is_ok_and(|on| on != 0);
    // Reading ends at the mark. What arrives in between is counted by neither.
    inline && raw::readable(socket) < raw::unread(socket).unwrap_or(0)
}

/// Whether something lies behind the mark of an urgent byte that was read before what came before it:
/// what the kernel says can be read ends there. The socket's owner must be frozen.
pub(super) fn hides_more(socket: &OwnedFd, nature: Nature) -> io::Result<bool> {
    let name = libc::SO_OOBINLINE;
    if nature.is_listening()
        || nature.is_closed()
        || raw::get_int(socket, libc::SOL_SOCKET, name)? != 0
    {
        return Ok(false);
    }
    let shown = raw::unread(socket)?;
    raw::set(socket, libc::SOL_SOCKET, name, &1_i32.to_ne_bytes())?;
    let all = raw::unread(socket);
    raw::set(socket, libc::SOL_SOCKET, name, &0_i32.to_ne_bytes())?;
    // The byte itself has been read.
    Ok(all? > shown + 1)
}

#[cfg(test)]
mod test;
