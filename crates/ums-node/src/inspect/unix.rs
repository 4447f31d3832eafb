//! Unix sockets: whose other end is outside the service, who waits at one in a way that can't be
//! carried, and what of a connection is told otherwise after a move.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

use ums_checkpoint::unix_diag::{self, UnixSocket};
use ums_checkpoint::unix_queue::{self, Flight, Queue};
use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind};

use super::parse::inode_of;
use super::{InspectError, descriptor, lasting, obstacle, proc_path, process};

mod name;

/// Inode number → process id in the service, of the sockets that its processes hold.
type Held = BTreeMap<u64, i32>;
/// Inode number → socket, of a network namespace.
type Sockets = BTreeMap<u64, UnixSocket>;

/// What of the unix sockets among these can't be carried, and what is not the same after a move. `directories` hold
/// the changed files and volumes.
pub(super) fn look(
    init: i32,
    sockets: &Held,
    directories: &[&Path],
) -> Result<(Vec<Obstacle>, Vec<Loss>), InspectError> {
    let all = sockets_in(init)?;
    let mut obstacles = foreign(init, &all, sockets)?;
    obstacles.extend(waiting(init, sockets));
    let places = places(init)?;
    obstacles.extend(name::changed(&all, sockets, &places, directories));
    let mut losses = losses(&all, sockets, |inode| credentials(&places, inode));
    if all
        .iter()
        .any(|(inode, socket)| sockets.contains_key(inode) && has_unread(socket))
    {
        let (told, urgent) = unread(init, &places);
        obstacles.extend(told);
        losses.extend(urgent);
    }
    Ok((obstacles, losses))
}

/// Whether messages or bytes wait to be read.
fn has_unread(socket: &UnixSocket) -> bool {
    !socket.listens() && socket.unread > 0
}

/// What is in queues and stays there each time that one looks: messages that CRIU can't take out, and
/// what it takes for something else.
fn unread(init: i32, places: &Places) -> (Vec<Obstacle>, Vec<Loss>) {
    let found = lasting(|| {
        let all = sockets_in(init).unwrap_or_default().into_iter();
        let unread = all.filter(|(_, socket)| has_unread(socket));
        let queues = unread.filter_map(|(inode, _)| {
            let place = *places.get(&inode)?;
            Some((place, unix_queue::queue(place.pid, place.fd)))
        });
        queues
            .filter(|(_, queue)| *queue != Queue::default())
            .collect()
    });
    let told = |place: Place| {
        let what = format!(
            "unix socket at descriptor {} with unread messages of which it is told who has sent them, or \
             when (SO_PASSCRED, SO_PASSPIDFD, SO_TIMESTAMP)",
            place.fd
        );
        obstacle(ObstacleKind::UnreadMessages, place.inner, what)
    };
    let urgent = |place: Place| Loss {
        kind: LossKind::UrgentData,
        pid: place.inner,
        detail: format!("unix socket at descriptor {} (MSG_OOB)", place.fd),
    };
    let obstacles = found.iter().filter(|(_, queue)| queue.tells_senders);
    let mut obstacles: Vec<Obstacle> = obstacles.map(|(place, _)| told(*place)).collect();
    let flights = found
        .iter()
        .filter_map(|(place, queue)| Some(in_flight(*place, queue.flight?)));
    obstacles.extend(flights);
    let losses = found.iter().filter(|(_, queue)| queue.urgent);
    (obstacles, losses.map(|(place, _)| urgent(*place)).collect())
}

fn in_flight(place: Place, flight: Flight) -> Obstacle {
    let what = format!(
        "{} in the queue of the unix socket at descriptor {}",
        flight.told(),
        place.fd
    );
    obstacle(ObstacleKind::InFlight, place.inner, what)
}

/// Where a socket is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    inner: i32,
    pub(super) pid: i32,
    pub(super) fd: i32,
}

/// Inode number → one of the descriptors that lead to the socket.
pub(super) type Places = BTreeMap<u64, Place>;

/// Unix sockets in the network namespace of `init`.
fn sockets_in(init: i32) -> Result<Sockets, InspectError> {
    let namespace = File::open(proc_path(init, "ns/net")).map_err(|_| InspectError::Gone(init))?;
    unix_diag::sockets_in(namespace).map_err(InspectError::Sockets)
}

fn foreign(init: i32, all: &Sockets, sockets: &Held) -> Result<Vec<Obstacle>, InspectError> {
    let is_foreign = |peer: &u64, held: &Held| *peer != 0 && !held.contains_key(peer);
    let mut foreign: Vec<(i32, u64)> = all
        .iter()
        .filter(|(_, socket)| is_foreign(&socket.peer, sockets))
        .filter_map(|(inode, socket)| Some((*sockets.get(inode)?, socket.peer)))
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

fn held(init: i32) -> Result<Held, InspectError> {
    let places = places(init)?.into_iter();
    Ok(places.map(|(inode, place)| (inode, place.inner)).collect())
}

/// All sockets that processes of the service hold.
pub(super) fn places(init: i32) -> Result<Places, InspectError> {
    let mut places = BTreeMap::new();
    for process in process::tree(init)? {
        for number in descriptor::numbers(process.pid) {
            let link = fs::read_link(proc_path(process.pid, &format!("fd/{number}")));
            let inode = link
                .ok()
                .and_then(|link| inode_of(link.to_str()?, "socket"));
            let place = number.parse().map(|fd| Place {
                inner: process.inner,
                pid: process.pid,
                fd,
            });
            places.extend(inode.zip(place.ok()));
        }
    }
    Ok(places)
}

/// Connections that wait to be accepted and go on waiting: most are accepted in a moment.
fn waiting(init: i32, sockets: &Held) -> Vec<Obstacle> {
    let found = lasting(|| {
        sockets_in(init).map_or_else(|_| BTreeSet::new(), |all| unix_diag::waiting(&all))
    });
    let mut told = BTreeSet::new();
    let found = found.into_iter().filter_map(|(listener, _, why)| {
        let pid = *sockets.get(&listener)?;
        let what = format!("connection that waits to be accepted, {}", why.told());
        told.insert((listener, why))
            .then(|| obstacle(ObstacleKind::WaitingConnection, pid, what))
    });
    found.collect()
}

/// What CRIU makes otherwise: it makes both ends of a connection by `socketpair(2)`, in one process and
/// as root. Each is told once for the service, however many connections there are.
/// `credentials` says whom the kernel names at its other end: another than the process that has both ends
/// where that one was given them.
fn losses(
    all: &Sockets,
    sockets: &Held,
    credentials: impl Fn(u64) -> Option<Credentials>,
) -> Vec<Loss> {
    let pairs = || {
        all.iter().filter_map(|(inode, socket)| {
            let (own, peer) = (*sockets.get(inode)?, *sockets.get(&socket.peer)?);
            Some((*inode, socket, own, peer))
        })
    };
    let between: Vec<(i32, u32)> = pairs()
        .filter(|(inode, socket, own, peer)| {
            let told = credentials(*inode);
            let differ = own != peer || socket.user != 0 || told == Some(Credentials::Another);
            // The two ends of a pair of datagram sockets know each other, those that connect(2) made do not.
            differ && (socket.is_connected() || told.is_some())
        })
        .map(|(_, socket, own, _)| (own, socket.user))
        .collect();
    let named: Vec<(i32, String)> = pairs()
        .filter(|(_, socket, ..)| socket.is_connected() && !socket.name.is_empty())
        .map(|(_, socket, own, _)| (own, readable(&socket.name)))
        .collect();
    let mut losses = Vec::new();
    if let Some((pid, user)) = between.first() {
        let as_whom = match between.iter().any(|(_, user)| *user != 0) {
            true => format!(", and root, where it was user {user},"),
            false => String::new(),
        };
        losses.push(Loss {
            kind: LossKind::PeerCredentials,
            pid: *pid,
            detail: format!(
                "SO_PEERCRED of {} names another process{as_whom} than the one that connected",
                ends(between.len())
            ),
        });
    }
    if let Some((pid, name)) = named.first() {
        losses.push(Loss {
            kind: LossKind::PeerName,
            pid: *pid,
            detail: format!(
                "getsockname(2) of {} has no name, and neither has getpeername(2) of the other: `{name}`",
                ends(named.len())
            ),
        });
    }
    losses.extend(to_nobody(all, sockets));
    losses
}

/// Whom the kernel names at the other end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credentials {
    /// The process that has this end, and root.
    Own,
    /// Another process, user or group.
    Another,
}

/// Whom the kernel names at the other end; nobody, where it was told nobody.
fn credentials(places: &Places, inode: u64) -> Option<Credentials> {
    let place = places.get(&inode)?;
    let told = unix_queue::peer_credentials(place.pid, place.fd)?;
    match told {
        (0, u32::MAX, u32::MAX) => None,
        (pid, 0, 0) if pid == place.pid => Some(Credentials::Own),
        _ => Some(Credentials::Another),
    }
}

/// Whose peer has been closed: CRIU makes it without one.
fn to_nobody(all: &Sockets, sockets: &Held) -> Option<Loss> {
    let found = all.iter().filter(|(_, socket)| socket.sends_to_nobody());
    let found: Vec<i32> = found
        .filter_map(|(inode, _)| sockets.get(inode).copied())
        .collect();
    let detail = format!(
        "{} unix sockets send datagrams to one that has been closed: the first of them is answered with ENOTCONN, \
         and not with ECONNREFUSED",
        found.len()
    );
    found.first().map(|pid| Loss {
        kind: LossKind::PendingError,
        pid: *pid,
        detail,
    })
}

fn ends(count: usize) -> String {
    match count {
        1 => "one end of a unix connection".to_owned(),
        count => format!("{count} ends of unix connections"),
    }
}

/// A name of a socket for people: an abstract one with `@`, as others write it.
fn readable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let text = match text.strip_prefix('\0') {
        Some(rest) => format!("@{rest}"),
        None => text.trim_end_matches('\0').to_owned(),
    };
    text.escape_default().to_string()
}

#[cfg(test)]
#[path = "unix/test.rs"]
mod test;
