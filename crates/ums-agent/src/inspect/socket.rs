//! Sockets: how many connections there are, and which kinds can't be carried.

use std::path::Path;

use ums_core::facts::{Obstacle, ObstacleKind};

use super::{InspectError, obstacle, parse, proc_file};

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

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn kinds_of_sockets() {
        assert!(is_carried("TCP") && is_carried("UNIX"));
        // Each has state in the kernel that CRIU can't read or set.
        for refused in ["MPTCP", "SCTP", "AF_VSOCK", "ALG", "XDP", "TIPC", "BNEP"] {
            assert!(!is_carried(refused), "{refused}");
        }
    }
}
