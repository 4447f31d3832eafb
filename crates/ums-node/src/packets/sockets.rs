//! The TCP sockets of a network namespace, by the kernel's socket diagnostics (`sock_diag(7)`): what
//! there is, and resetting all of it (`SOCK_DESTROY`): the kernel alone knows the sequence numbers
//! that the other end accepts a reset with.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use serde::{Deserialize, Serialize};
use ums_core::specification::Transport;

use super::PacketError;
use super::tool::within;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Length of `nlmsghdr`.
const HEADER: usize = 16;

/// Length of `inet_diag_sockid`.
const SOCKET_ID: usize = 48;

/// All states but those without a peer that waits: closed, listening, and over (TIME_WAIT).
const STATES: u32 = 0xfff & !((1 << 0) | (1 << 6) | (1 << 7) | (1 << 10));

/// All states.
const ALL_STATES: u32 = 0x1fff;

/// A netlink message is never longer in a dump.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The kernel answers at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// While some are reset others may still come out of the listeners' queues: look again, so often.
const ROUNDS_MAX: usize = 8;

/// More connections than a service's namespace can have with the usual limits of open files.
const CONNECTIONS_MAX: usize = 1 << 20;

type SocketId = [u8; SOCKET_ID];

/// `TCP_CLOSE`.
const CLOSED: u8 = 7;
/// `TCP_LISTEN`.
const LISTENING: u8 = 10;
/// `TCP_ESTABLISHED`, `TCP_SYN_RECV`, `TCP_CLOSE_WAIT`, `TCP_NEW_SYN_RECV`: what a connection can be
/// while nobody has accepted it. One that a process has closed is in none of them.
const UNACCEPTED: [u8; 4] = [1, 3, 8, 12];
/// `TCP_FIN_WAIT1`, `TCP_LAST_ACK`, `TCP_CLOSING`: closed by this side, whose last word is on its way.
const CLOSING: [u8; 3] = [4, 9, 11];

/// One TCP socket, as the kernel describes it (`inet_diag_msg`).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    id: SocketId,
    family: u8,
    state: u8,
    /// Bytes that have arrived and were not read.
    unread: u32,
    /// Bytes that were written and have not arrived; a last word (FIN) counts as one.
    unsent: u32,
    /// Zero for what no process has: not accepted yet, or closed and not yet over.
    inode: u32,
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// Its transport protocol.
    pub transport: Transport,
    /// The service's end.
    pub service: SocketAddr,
    /// The other one.
    pub peer: SocketAddr,
}

impl Flow {
    /// Whether it never leaves the service's namespace.
    fn is_internal(&self) -> bool {
        self.peer.ip().is_loopback() || self.peer.ip() == self.service.ip()
    }
}

/// The connections of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connections {
    /// Those of processes: they move with the service.
    pub open: BTreeSet<Flow>,
    /// Those that a process has closed and the kernel still winds up: what was written is sent to
    /// its end, and the other side's last words are answered. They stay with the namespace.
    pub closing: BTreeSet<Flow>,
    /// Those that nobody has accepted yet, half open ones included. They can't move.
    pub unaccepted: BTreeSet<Flow>,
    /// Connections of the service to itself, the other end of which would wait for ever if it moved:
    /// they were not accepted, or were closed before all that was written to them had arrived.
    pub stuck: BTreeSet<Flow>,
}

/// Looks at the connections of the namespace.
pub(super) async fn connections_of(netns: &Path) -> Result<Connections, PacketError> {
    let look = || -> io::Result<Connections> {
        let netlink = open()?;
        let mut sockets = sockets(&netlink, libc_family(AddressFamily::Inet), ALL_STATES)?;
        sockets.extend(self::sockets(
            &netlink,
            libc_family(AddressFamily::Inet6),
            ALL_STATES,
        )?);
        Ok(sort(&sockets))
    };
    within(netns, look).await?.map_err(PacketError::Sockets)
}

fn sort(sockets: &[Socket]) -> Connections {
    let mut found = Connections::default();
    for socket in sockets {
        let Some(flow) = socket.flow() else {
            continue;
        };
        if flow.is_internal() {
            if socket.is_stuck() {
                found.stuck.insert(flow);
            }
            continue;
        }
        let kind = match socket.state {
            CLOSED => continue,
            _ if socket.inode != 0 => &mut found.open,
            state if UNACCEPTED.contains(&state) => &mut found.unaccepted,
            _ => &mut found.closing,
        };
        kind.insert(flow);
    }
    found
}

impl Socket {
    /// Whether no process has it, and it has something for the other end all the same.
    fn is_stuck(&self) -> bool {
        let is_unaccepted = UNACCEPTED.contains(&self.state);
        let has_words = CLOSING.contains(&self.state) && self.unsent > 0;
        self.inode == 0 && (is_unaccepted || has_words)
    }

    /// Its two ends; none for a listener.
    fn flow(&self) -> Option<Flow> {
        let port = |at: usize| u16::from_be_bytes([self.id[at], self.id[at + 1]]);
        let address = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = self.id[at..at + 16].try_into().ok()?;
            if self.family == libc_family(AddressFamily::Inet) {
                return Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into());
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        };
        let peer = SocketAddr::new(address(20)?, port(2));
        (peer.port() != 0 && self.state != LISTENING).then_some(Flow {
            transport: Transport::Tcp,
            service: SocketAddr::new(address(4)?, port(0)),
            peer,
        })
    }
}

/// Whether datagrams have arrived that the service has not read.
pub(super) async fn has_unread_datagrams(netns: &Path) -> Result<bool, PacketError> {
    let look = || -> io::Result<bool> {
        let netlink = open()?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let kind = (libc_family(family), IPPROTO_UDP);
            let sockets = sockets_of(&netlink, kind, ALL_STATES)?;
            if sockets.iter().any(|socket| socket.unread > 0) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    within(netns, look).await?.map_err(PacketError::Sockets)
}

/// Resets all connections of the namespace, and returns how many there were.
pub(super) async fn reset_all_connections(netns: &Path) -> Result<usize, PacketError> {
    within(netns, || reset(|_| true))
        .await?
        .map_err(PacketError::Sockets)
}

/// Resets the connections that processes of the namespace have, and leaves those that its kernel
/// is winding up. Returns how many there were.
pub(super) async fn reset_open_connections(netns: &Path) -> Result<usize, PacketError> {
    within(netns, || reset(|socket| socket.inode != 0))
        .await?
        .map_err(PacketError::Sockets)
}

fn reset(wanted: impl Fn(&Socket) -> bool) -> io::Result<usize> {
    let netlink = open()?;
    let mut count = 0;
    for _ in 0..ROUNDS_MAX {
        let before = count;
        for family in [
            libc_family(AddressFamily::Inet),
            libc_family(AddressFamily::Inet6),
        ] {
            for socket in sockets(&netlink, family, STATES)?
                .iter()
                .filter(|it| wanted(it))
            {
                count += usize::from(destroy(&netlink, family, &socket.id)?);
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
fn request(
    (kind, flags): (u16, u16),
    (family, protocol): (u8, u8),
    states: u32,
    id: &SocketId,
) -> Vec<u8> {
    let length = u32::try_from(HEADER + 8 + SOCKET_ID).unwrap_or_default();
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, protocol, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    message
}

fn sockets(netlink: &OwnedFd, family: u8, states: u32) -> io::Result<Vec<Socket>> {
    sockets_of(netlink, (family, IPPROTO_TCP), states)
}

fn sockets_of(netlink: &OwnedFd, kind: (u8, u8), states: u32) -> io::Result<Vec<Socket>> {
    let (dump, any) = ((SOCK_DIAG_BY_FAMILY, NLM_F_DUMP), [0; SOCKET_ID]);
    ask(netlink, &request(dump, kind, states, &any))
}

/// Whether the connection was there to be reset.
fn destroy(netlink: &OwnedFd, family: u8, id: &SocketId) -> io::Result<bool> {
    let (order, kind) = ((SOCK_DESTROY, NLM_F_ACK), (family, IPPROTO_TCP));
    match ask(netlink, &request(order, kind, STATES, id)) {
        Ok(_) => Ok(true),
        // It ended by itself meanwhile.
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends a request and reads the answer to its end.
fn ask(netlink: &OwnedFd, message: &[u8]) -> io::Result<Vec<Socket>> {
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
fn read(mut rest: &[u8], found: &mut Vec<Socket>) -> io::Result<bool> {
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
                found.push(socket_of(body)?);
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Reads an `inet_diag_msg`.
fn socket_of(body: &[u8]) -> io::Result<Socket> {
    let id = body.get(4..4 + SOCKET_ID).ok_or_else(cut_short)?;
    Ok(Socket {
        id: id.try_into().map_err(|_| cut_short())?,
        family: body[0],
        state: body[1],
        unread: number(body, 4 + SOCKET_ID + 4)?,
        unsent: number(body, 4 + SOCKET_ID + 8)?,
        inode: number(body, 4 + SOCKET_ID + 16)?,
    })
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

    fn answer(state: u8, inode: u32, ports: [u16; 2], peer: [u8; 4]) -> Vec<u8> {
        let mut id = [0; SOCKET_ID];
        id[..2].copy_from_slice(&ports[0].to_be_bytes());
        id[2..4].copy_from_slice(&ports[1].to_be_bytes());
        id[4..8].copy_from_slice(&[10, 88, 0, 2]);
        id[20..24].copy_from_slice(&peer);
        let mut body = vec![2, state, 0, 0];
        body.extend(id);
        // expires, receive queue, send queue, uid, inode
        for field in [0, 3, 1, 0, inode] {
            body.extend(field.to_ne_bytes());
        }
        let mut message = u32::try_from(HEADER + body.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(body);
        message
    }

    #[test]
    fn answers_are_read_and_broken_ones_refused() {
        let message = answer(1, 7, [80, 4000], [192, 0, 2, 1]);
        let mut found = Vec::new();
        assert!(!read(&message, &mut found).unwrap());
        let flow = found[0].flow().unwrap();
        assert_eq!(flow.service, "10.88.0.2:80".parse().unwrap());
        assert_eq!(flow.peer, "192.0.2.1:4000".parse().unwrap());
        assert_eq!((found[0].inode, found[0].unread), (7, 3));
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

    #[test]
    fn connections_are_told_apart_by_who_has_them() {
        const PEER: [u8; 4] = [192, 0, 2, 1];
        let all = [
            answer(1, 7, [80, 1], PEER),            // of a process
            answer(8, 7, [80, 2], PEER),            // of a process, closed by the peer
            answer(1, 0, [80, 3], PEER),            // not accepted
            answer(3, 0, [80, 4], PEER),            // half open
            answer(4, 0, [80, 5], PEER),            // closed by the process, still sending
            answer(6, 0, [80, 6], PEER),            // over, TIME_WAIT
            answer(1, 7, [80, 7], [127, 0, 0, 1]),  // within the namespace
            answer(1, 7, [80, 8], [10, 88, 0, 2]),  // as well
            answer(8, 0, [80, 9], [127, 0, 0, 1]),  // as well, not accepted
            answer(4, 0, [80, 10], [10, 88, 0, 2]), // as well, closed and still sending
            answer(5, 0, [80, 11], [127, 0, 0, 1]), // as well, closed and all has arrived
            answer(LISTENING, 7, [80, 0], [0; 4]),
        ];
        let mut sockets = Vec::new();
        for message in &all {
            read(message, &mut sockets).unwrap();
        }
        let found = sort(&sockets);
        let ports =
            |flows: &BTreeSet<Flow>| flows.iter().map(|f| f.peer.port()).collect::<Vec<_>>();
        assert_eq!(ports(&found.open), [1, 2]);
        assert_eq!(ports(&found.closing), [5, 6]);
        assert_eq!(ports(&found.unaccepted), [3, 4]);
        assert_eq!(ports(&found.stuck), [10, 9]);
    }
}
