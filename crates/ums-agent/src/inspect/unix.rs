//! Unix sockets whose other end is outside the service.
//!
//! No file below `/proc` names the peer of a unix socket; the kernel tells it over netlink
//! (`sock_diag(7)`), for the network namespace that one asks from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use ums_core::facts::{Obstacle, ObstacleKind};

use super::parse::inode_of;
use super::{InspectError, descriptor, obstacle, proc_path, process};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const UNIX_DIAG_PEER: u16 = 2;
const HEADER_LEN: usize = 16;
const DIAG_LEN: usize = 16;
/// Longest wait for an answer of the kernel, which comes at once.
const PATIENCE_S: i64 = 2;
/// Most answers that are read; each holds dozens of sockets.
const ANSWERS_MAX: u32 = 65_536;

/// `sockets` are those that processes of the service hold: inode number → process id in the service.
pub(super) fn obstacles(
    init: i32,
    sockets: &BTreeMap<u64, i32>,
) -> Result<Vec<Obstacle>, InspectError> {
    let peers = peers_in(init)?;
    let is_foreign = |peer: &u64, held: &BTreeMap<u64, i32>| *peer != 0 && !held.contains_key(peer);
    let mut foreign: Vec<(i32, u64)> = peers
        .iter()
        .filter(|(_, peer)| is_foreign(peer, sockets))
        .filter_map(|(inode, peer)| Some((*sockets.get(inode)?, *peer)))
        .collect();
    if !foreign.is_empty() {
        // Between looking at the descriptors and asking for the peers, connections may have been made.
        let held = held(init)?;
        foreign.retain(|(_, peer)| is_foreign(peer, &held));
    }
    let what = "unix socket that is connected to a process outside the service";
    Ok(foreign
        .into_iter()
        .map(|(pid, _)| obstacle(ObstacleKind::Socket, pid, what))
        .collect())
}

fn held(init: i32) -> Result<BTreeMap<u64, i32>, InspectError> {
    let mut held = BTreeMap::new();
    for process in process::tree(init)? {
        for number in descriptor::numbers(process.pid) {
            let link = fs::read_link(proc_path(process.pid, &format!("fd/{number}")));
            let inode = link
                .ok()
                .and_then(|link| inode_of(link.to_str()?, "socket"));
            held.extend(inode.map(|inode| (inode, process.inner)));
        }
    }
    Ok(held)
}

/// Inode number → inode number of the peer, for unix sockets in the network namespace of `init`.
fn peers_in(init: i32) -> Result<BTreeMap<u64, u64>, InspectError> {
    let namespace = File::open(proc_path(init, "ns/net")).map_err(|_| InspectError::Gone(init))?;
    // A thread of its own, which ends with the namespace it has entered.
    let asking = thread::spawn(move || -> io::Result<_> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        ask()
    });
    let answer = asking
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the asking thread panicked")));
    answer.map_err(InspectError::Sockets)
}

fn ask() -> io::Result<BTreeMap<u64, u64>> {
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
    send(netlink.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut peers = BTreeMap::new();
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..ANSWERS_MAX {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if read_answer(&buffer[..length], &mut peers)? {
            return Ok(peers);
        }
    }
    Err(io::Error::other("the kernel's answer has no end"))
}

/// `struct nlmsghdr`, then `struct unix_diag_req`, for all unix sockets with their peers.
fn request() -> Vec<u8> {
    const REQUEST_AND_DUMP: u16 = 0x301;
    const AF_UNIX: u8 = 1;
    const SHOW_PEER: u32 = 4;
    let mut request = Vec::with_capacity(HEADER_LEN + 24);
    request.extend((HEADER_LEN as u32 + 24).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST_AND_DUMP.to_ne_bytes());
    request.extend([0; 8]); // sequence number, port
    request.extend([AF_UNIX, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes()); // all states
    request.extend(0_u32.to_ne_bytes()); // all inodes
    request.extend(SHOW_PEER.to_ne_bytes());
    request.extend([0; 8]); // cookie
    request
}

/// Reads the messages of one answer; true when it was the last.
fn read_answer(answer: &[u8], peers: &mut BTreeMap<u64, u64>) -> io::Result<bool> {
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
            SOCK_DIAG_BY_FAMILY if body.len() >= DIAG_LEN => {
                let peer = peer_of(&body[DIAG_LEN..]).unwrap_or(0);
                peers.insert(u64::from(u32_at(body, 4)), peer);
            }
            _ => {}
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// The attribute UNIX_DIAG_PEER among others.
fn peer_of(mut attributes: &[u8]) -> Option<u64> {
    while attributes.len() >= 4 {
        let length = usize::from(u16_at(attributes, 0));
        if !(4..=attributes.len()).contains(&length) {
            return None;
        }
        if u16_at(attributes, 2) == UNIX_DIAG_PEER && length >= 8 {
            return Some(u64::from(u32_at(attributes, 4)));
        }
        attributes = attributes.get(aligned(length)..)?;
    }
    None
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn inode(socket: &UnixStream) -> u64 {
        fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))
            .unwrap()
            .ino()
    }

    #[test]
    fn the_kernel_tells_who_is_connected_to_whom() {
        let (a, b) = UnixStream::pair().unwrap();
        let peers = peers_in(std::process::id() as i32).unwrap();
        assert_eq!(peers.get(&inode(&a)), Some(&inode(&b)));
        assert_eq!(peers.get(&inode(&b)), Some(&inode(&a)));
    }

    #[test]
    fn broken_answers_are_errors() {
        let mut peers = BTreeMap::new();
        let mut message = vec![0; 40];
        message[0] = 200;
        assert!(
            read_answer(&message, &mut peers).is_err(),
            "longer than what came"
        );
        message[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert!(
            read_answer(&message, &mut peers).is_err(),
            "shorter than its header"
        );
        message[..4].copy_from_slice(&20_u32.to_ne_bytes());
        message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        message[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(
            read_answer(&message, &mut peers)
                .unwrap_err()
                .raw_os_error(),
            Some(1)
        );
        assert_eq!(peer_of(&[0, 0, 2, 0]), None);
        assert!(!read_answer(&[], &mut peers).unwrap());
        assert!(peers.is_empty());
    }
}
