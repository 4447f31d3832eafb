//! Sockets: how many connections there are, and which kinds can't be carried.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use ums_checkpoint::carry::{self, Oddity};
use ums_checkpoint::tcp_diag;
use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind};

use super::process::Process;
use super::{InspectError, lasting, loss, obstacle, parse, proc_file, proc_path};

/// Protocols that CRIU carries, by the kernel's names for them. (Raw sockets it carries too.)
const CARRIED: [&str; 14] = [
    "NETLINK",
    "PACKET",
    "PING",
    "PINGv6",
    "RAW",
    "RAWv6",
    "TCP",
    "TCPv6",
    "UDP",
    "UDP-Lite",
    "UDPLITEv6",
    "UDPv6",
    "UNIX",
    "UNIX-STREAM",
];

/// Established TCP connections in the network namespace of a process.
pub(super) fn established(init: i32) -> Result<u32, InspectError> {
    let table = proc_file(init, "net/tcp").ok_or(InspectError::Gone(init))?;
    // Without IPv6 there is no such file.
    let table6 = proc_file(init, "net/tcp6").unwrap_or_default();
    Ok(parse::established(&table).saturating_add(parse::established(&table6)))
}

/// Judges the socket behind a descriptor, given as a path below `/proc`.
pub(super) fn obstacle_of(descriptor: &Path, inner: i32) -> Option<Obstacle> {
    // Each socket tells its protocol by this attribute, also one that is in no table of the namespace
    // because it is neither bound nor connected.
    let name = xattr::get_deref(descriptor, "system.sockprotoname").ok()??;
    let name = String::from_utf8_lossy(&name)
        .trim_end_matches('\0')
        .to_owned();
    (!is_carried(&name)).then(|| obstacle(ObstacleKind::Socket, inner, format!("{name} socket")))
}

fn is_carried(protocol: &str) -> bool {
    CARRIED.contains(&protocol)
}

/// What the sockets of a service are in the middle of, by process id in the service: asked of the
/// sockets themselves. What may be over in a moment is looked at again.
pub(super) fn oddities(tree: &[Process]) -> BTreeSet<(i32, Oddity)> {
    let processes = tree.iter().map(|process| carry::Process {
        pid: process.pid,
        inner: process.inner,
    });
    let processes: Vec<carry::Process> = processes.collect();
    let look = || match carry::look(&processes) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "the sockets of a service can't be looked at");
            BTreeSet::new()
        }
    };
    let mut found = look();
    if found.iter().any(|(_, oddity)| oddity.passes()) {
        let again = lasting(look);
        found.retain(|one| !one.1.passes() || again.contains(one));
    }
    found
}

/// Those that can't be moved.
pub(super) fn odd(oddities: &BTreeSet<(i32, Oddity)>) -> Vec<Obstacle> {
    let of = |(pid, oddity): &(i32, Oddity)| match oddity {
        Oddity::Uncarried(what) => Some(obstacle(ObstacleKind::SocketState, *pid, what)),
        Oddity::Urgent => {
            let what = "a TCP socket that the byte has arrived at";
            Some(obstacle(ObstacleKind::UrgentData, *pid, what))
        }
        _ => None,
    };
    oddities.iter().filter_map(of).collect()
}

/// TCP sockets whose keys CRIU does not know. `sockets`: inode number → process id in the service.
pub(super) fn signed(init: i32, sockets: &BTreeMap<u64, i32>) -> Vec<Obstacle> {
    let namespace = File::open(proc_path(init, "ns/net"));
    let signed = namespace.and_then(|namespace| tcp_diag::signed_in(&namespace));
    let signed = signed.unwrap_or_else(|error| {
        tracing::warn!(%error, "keys of a service's TCP sockets can't be asked for");
        BTreeSet::new()
    });
    let own = signed.iter().filter_map(|inode| sockets.get(inode));
    let what = "a TCP socket whose segments are signed (TCP_MD5SIG)";
    own.map(|pid| obstacle(ObstacleKind::SocketState, *pid, what))
        .collect()
}

/// Those that a move changes.
pub(super) fn losses(oddities: &BTreeSet<(i32, Oddity)>) -> Vec<Loss> {
    let of = |(pid, oddity): &(i32, Oddity)| {
        let (kind, what) = match oddity {
            Oddity::Unread => (
                LossKind::UnreadDatagrams,
                "in a socket that it does not read",
            ),
            Oddity::Ring => (LossKind::PacketRing, "of a packet socket (PACKET_RX_RING)"),
            Oddity::Unaccepted => (
                LossKind::UnacceptedConnection,
                "at a listener that it does not accept from",
            ),
            Oddity::Sender => (
                LossKind::PeerName,
                "of who has sent a datagram to a unix socket that it does not read",
            ),
            Oddity::Empty => (
                LossKind::UnreadDatagrams,
                "in a unix socket that it does not read, from a message without content on",
            ),
            Oddity::SharedPort => (
                LossKind::SocketOption,
                "sockets share a port (SO_REUSEPORT): a program that chooses among them \
                 (SO_ATTACH_REUSEPORT_EBPF), if there is one, is gone",
            ),
            // Whoever asks a socket for its error is told of it, most often at once.
            Oddity::PendingError | Oddity::Uncarried(_) | Oddity::Urgent => return None,
        };
        Some(loss(kind, *pid, what))
    };
    oddities.iter().filter_map(of).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn oddities_are_refused_or_declared() {
        let all = [
            (1, Oddity::Uncarried("an eBPF program".to_owned())),
            (1, Oddity::Urgent),
            (2, Oddity::Unread),
            (2, Oddity::Ring),
            (3, Oddity::Unaccepted),
            (3, Oddity::PendingError),
        ];
        let all = BTreeSet::from(all);
        let refused: Vec<ObstacleKind> = odd(&all).iter().map(|one| one.kind).collect();
        assert_eq!(
            refused,
            [ObstacleKind::SocketState, ObstacleKind::UrgentData]
        );
        let lost: Vec<(i32, LossKind)> =
            losses(&all).iter().map(|one| (one.pid, one.kind)).collect();
        let (unread, ring) = (LossKind::UnreadDatagrams, LossKind::PacketRing);
        let unaccepted = LossKind::UnacceptedConnection;
        assert_eq!(lost, [(2, unread), (2, ring), (3, unaccepted)]);
        // What happens in any service that is busy must not keep it from moving.
        assert!(!unread.needs_consent() && !unaccepted.needs_consent() && ring.needs_consent());
    }

    #[test]
    fn kinds_of_sockets() {
        assert!(is_carried("TCP") && is_carried("UNIX"));
        // Each has state in the kernel that CRIU can't read or set.
        for refused in ["MPTCP", "SCTP", "AF_VSOCK", "ALG", "XDP", "TIPC", "BNEP"] {
            assert!(!is_carried(refused), "{refused}");
        }
    }
}
