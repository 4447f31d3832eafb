//! What the kernel tells of the unix sockets of a network namespace (`sock_diag(7)`): no file below
//! `/proc` names the other end of one, or who waits at one to be accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;

use crate::sock_diag::{ask_in, attributes, question, u32_at};

const DIAG_LEN: usize = 16;

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
const SOCK_DGRAM: u8 = 2;

/// A unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnixSocket {
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub kind: u8,
    /// As `TCP_*` in the kernel's `tcp_states.h`.
    pub state: u8,
    /// Inode number of the other end; 0 for none, and for one that nobody has accepted.
    pub peer: u64,
    /// It is connected to a socket that has been closed.
    pub is_orphan: bool,
    /// Its name; empty for none. An abstract one begins with a zero.
    pub name: Vec<u8>,
    /// The lower 32 bits of the inode number of the file that it is bound by; 0 for none.
    pub file: u32,
    /// Of one that listens: those who wait to be accepted, by their inode numbers; 0 for one who has
    /// gone meanwhile.
    pub waiting: Vec<u64>,
    /// Bytes that can be read (of one that listens: connections that wait).
    pub unread: u32,
    /// Memory of what it has sent and nobody has read yet, bytes.
    pub sent: u32,
    /// The user who made it.
    pub user: u32,
}

impl UnixSocket {
    /// Whether it is one end of a connection (and not of a mere direction, as of datagrams).
    pub fn is_connected(&self) -> bool {
        self.state == ESTABLISHED && self.kind != SOCK_DGRAM && self.peer != 0
    }

    /// Whether its datagrams go to a socket that has been closed.
    pub fn sends_to_nobody(&self) -> bool {
        self.is_orphan && self.kind == SOCK_DGRAM
    }

    /// Whether others connect to it.
    pub fn listens(&self) -> bool {
        self.state == LISTEN
    }
}

/// Why a connection that nobody has accepted can't be carried. CRIU connects again at the destination,
/// as root, and can neither read what was sent nor close what is closed (its `dump_one_unix_fd`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiting {
    /// With data in it.
    Data,
    /// Its other end is closed.
    Closed,
    /// Of this user, who is not root.
    User(u32),
}

impl Waiting {
    /// In words, after "a connection that waits to be accepted".
    pub fn told(self) -> String {
        match self {
            Self::Data => "with data that only who accepts it can read".to_owned(),
            Self::Closed => "and whose other end has been closed".to_owned(),
            Self::User(user) => format!("of user {user}, who would be root at the destination"),
        }
    }

    fn of(waiting: Option<&UnixSocket>) -> Option<Self> {
        match waiting {
            None => Some(Self::Closed),
            Some(socket) if socket.sent > 0 => Some(Self::Data),
            Some(socket) if socket.user != 0 => Some(Self::User(socket.user)),
            Some(_) => None,
        }
    }
}

/// Who waits at which socket, and why that can't be carried: inode numbers of the socket that listens
/// and of the one that waits.
pub fn waiting(all: &BTreeMap<u64, UnixSocket>) -> BTreeSet<(u64, u64, Waiting)> {
    let listening = all.iter().filter(|(_, socket)| socket.listens());
    let waiting = listening.flat_map(|(listener, socket)| {
        let waiting = socket.waiting.iter();
        waiting.map(move |waiting| (*listener, *waiting))
    });
    let why = |waiting: &u64| Waiting::of(all.get(waiting));
    waiting
        .filter_map(|(listener, waiting)| Some((listener, waiting, why(&waiting)?)))
        .collect()
}

/// All unix sockets in this network namespace, by their inode numbers.
///
/// # Errors
/// When the namespace can't be entered (CAP_SYS_ADMIN), or the kernel does not answer.
pub fn sockets_in(namespace: File) -> io::Result<BTreeMap<u64, UnixSocket>> {
    let mut sockets = BTreeMap::new();
    ask_in(namespace, question(&request()), |told| {
        if told.len() < DIAG_LEN {
            return;
        }
        let mut socket = UnixSocket {
            kind: told[1],
            state: told[2],
            ..UnixSocket::default()
        };
        read_attributes(&told[DIAG_LEN..], &mut socket);
        sockets.insert(u64::from(u32_at(told, 4)), socket);
    })?;
    Ok(sockets)
}

/// `struct unix_diag_req`, for all unix sockets.
fn request() -> Vec<u8> {
    const AF_UNIX: u8 = 1;
    // Name, file, peer, those who wait, queues, user (`UDIAG_SHOW_*`).
    const SHOW: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x40;
    let mut request = Vec::with_capacity(24);
    request.extend([AF_UNIX, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes()); // all states
    request.extend(0_u32.to_ne_bytes()); // all inodes
    request.extend(SHOW.to_ne_bytes());
    request.extend([0; 8]); // cookie
    request
}

/// `UNIX_DIAG_*`.
fn read_attributes(told: &[u8], socket: &mut UnixSocket) {
    const NAME: u16 = 0;
    const FILE: u16 = 1;
    const PEER: u16 = 2;
    const WAITING: u16 = 3;
    const QUEUES: u16 = 4;
    const USER: u16 = 7;
    for (number, value) in attributes(told) {
        match number {
            NAME => socket.name = value.to_vec(),
            FILE if value.len() >= 4 => socket.file = u32_at(value, 0),
            PEER if value.len() >= 4 => {
                socket.peer = u64::from(u32_at(value, 0));
                // What nobody holds any more has no number.
                socket.is_orphan = socket.peer == 0;
            }
            WAITING => {
                let numbers = value.chunks_exact(4);
                socket.waiting = numbers.map(|four| u64::from(u32_at(four, 0))).collect();
            }
            QUEUES if value.len() >= 8 => {
                (socket.unread, socket.sent) = (u32_at(value, 0), u32_at(value, 4));
            }
            USER if value.len() >= 4 => socket.user = u32_at(value, 0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn inode(socket: impl AsFd) -> u64 {
        nix::sys::stat::fstat(socket).unwrap().st_ino
    }

    fn here() -> BTreeMap<u64, UnixSocket> {
        sockets_in(File::open("/proc/self/ns/net").unwrap()).unwrap()
    }

    #[test]
    fn the_kernel_tells_who_is_connected_to_whom() {
        let (a, b) = UnixStream::pair().unwrap();
        let sockets = here();
        let (inode_a, inode_b) = (inode(&a), inode(&b));
        assert_eq!(sockets[&inode_a].peer, inode_b);
        assert_eq!(sockets[&inode_b].peer, inode_a);
        assert!(sockets[&inode_a].is_connected() && !sockets[&inode_a].listens());
    }

    #[test]
    fn the_kernel_tells_whose_peer_has_gone() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let alone = UnixDatagram::unbound().unwrap();
        let sends_to_nobody = |socket: &UnixDatagram| here()[&inode(socket)].sends_to_nobody();
        assert!(!sends_to_nobody(&a) && !sends_to_nobody(&alone));
        drop(b);
        assert!(sends_to_nobody(&a));
    }

    #[test]
    fn the_kernel_tells_who_waits_with_what() {
        let name = format!("ums-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mut with = UnixStream::connect_addr(&address).unwrap();
        with.write_all(b"early").unwrap();
        let without = UnixStream::connect_addr(&address).unwrap();
        drop(UnixStream::connect_addr(&address).unwrap());
        let sockets = here();
        let listening = &sockets[&inode(&listener)];
        assert!(listening.listens());
        assert_eq!(listening.name, format!("\0{name}").into_bytes());
        assert_eq!(listening.waiting, [inode(&with), inode(&without), 0]);
        assert!(sockets[&inode(&with)].sent > 0);
        assert_eq!(sockets[&inode(&without)].sent, 0);
        assert!(!sockets[&inode(&without)].is_connected(), "nobody yet");
        assert_eq!(sockets[&inode(&with)].user, nix::unistd::getuid().as_raw());
    }

    #[test]
    fn who_waits_is_carried_without_data_and_as_root() {
        let listening = UnixSocket {
            kind: 1,
            state: LISTEN,
            waiting: vec![2, 3, 4, 0],
            ..UnixSocket::default()
        };
        let waits = |sent, user| UnixSocket {
            kind: 1,
            state: ESTABLISHED,
            sent,
            user,
            ..UnixSocket::default()
        };
        let all = [
            (1, listening),
            (2, waits(0, 0)),
            (3, waits(768, 0)),
            (4, waits(0, 33)),
        ];
        let expected = [
            (1, 0, Waiting::Closed),
            (1, 3, Waiting::Data),
            (1, 4, Waiting::User(33)),
        ];
        assert_eq!(waiting(&BTreeMap::from(all)), BTreeSet::from(expected));
        let nobody = BTreeMap::from([(2, waits(1, 0))]);
        assert_eq!(waiting(&nobody), BTreeSet::new());
    }

    #[test]
    fn short_attributes_are_passed_over() {
        let mut socket = UnixSocket::default();
        for broken in [&[0, 0, 2, 0][..], &[9, 0, 2, 0], &[6, 0, 2, 0, 1, 1, 0, 0]] {
            read_attributes(broken, &mut socket);
        }
        assert_eq!(socket, UnixSocket::default());
    }
}
