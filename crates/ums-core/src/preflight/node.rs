//! What a node must be and have.

use super::{Refusal, RefusalKind, mebibytes};
use crate::facts::{NodeFacts, ServiceFacts, SystemFacts};
use crate::specification::{PublishedPort, Specification, Transport};

/// The oldest kernel that all parts work on, major and minor.
///
/// `clone3` with `set_tid` (5.5) gives restored processes their ids, time namespaces (5.6) keep
/// their clocks, `pidfd_getfd` (5.6) takes a userfaultfd out of a process, and
/// `PTRACE_GET_RSEQ_CONFIGURATION` (5.13) is what decides: without it CRIU refuses every process
/// whose C library registers restartable sequences, which glibc does since 2.35.
pub const KERNEL_MIN: (u32, u32) = (5, 13);

/// The oldest CRIU that has dumped and restored what UMS moves: 3.17 stops at start on current
/// kernels, 4.1 dumps no internet socket there.
pub const CRIU_MIN: (u32, u32, u32) = (4, 2, 1);

/// Memory beside the service's own that the destination needs while it receives: the agent's and
/// the keeper's buffers and CRIU's own memory.
pub const MEMORY_MARGIN_BYTES: u64 = 128 * 1024 * 1024;

/// Space that must stay free beside the service's own files: journal, logs, and what the service
/// writes next.
const DISK_MARGIN_BYTES: u64 = 64 * 1024 * 1024;

/// Kernel and CRIU, of either side.
pub(super) fn engine(side: &str, node: &NodeFacts) -> Vec<Refusal> {
    [kernel(side, node), criu(side, node)]
        .into_iter()
        .flatten()
        .collect()
}

fn kernel(side: &str, node: &NodeFacts) -> Option<Refusal> {
    let (major, minor) = KERNEL_MIN;
    let remedy = format!("run Linux {major}.{minor} or newer there (Debian 12 has 6.1)");
    let cause = match parse_release(&node.kernel) {
        Some(version) if version >= KERNEL_MIN => return None,
        Some(_) => format!(
            "the {side}'s kernel {} is older than {major}.{minor}, which restoring process ids, \
             clocks and restartable sequences needs",
            node.kernel
        ),
        None => format!(
            "the {side}'s kernel release `{}` has no version",
            node.kernel
        ),
    };
    Some(Refusal::new(RefusalKind::Kernel, cause, remedy))
}

/// Major and minor of a release such as `6.1.0-18-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn criu(side: &str, node: &NodeFacts) -> Option<Refusal> {
    let (major, minor, sublevel) = CRIU_MIN;
    match node.criu {
        Some(version) if version >= CRIU_MIN => None,
        Some((old_major, old_minor, old_sublevel)) => Some(Refusal::new(
            RefusalKind::CriuTooOld,
            format!(
                "CRIU at the {side} is {old_major}.{old_minor}.{old_sublevel}, older than \
                 {major}.{minor}.{sublevel}"
            ),
            "give its `bundle` setting the current checkpoint/restore bundle",
        )),
        None => Some(Refusal::new(
            RefusalKind::CriuMissing,
            format!("the {side} has no CRIU that works"),
            "install the checkpoint/restore bundle there and name it in the `bundle` setting; \
             `ums doctor` says what is wrong with the present one",
        )),
    }
}

/// The mounts of the service's containers come back where they were, so what they are on must be
/// there.
pub(super) fn proc_paths(source: &NodeFacts, destination: &NodeFacts) -> Option<Refusal> {
    let lacking: Vec<&str> = source
        .proc_paths
        .difference(&destination.proc_paths)
        .map(String::as_str)
        .collect();
    (!lacking.is_empty()).then(|| {
        Refusal::new(
            RefusalKind::KernelFiles,
            format!(
                "the destination's kernel lacks {}, which the service's container covers",
                lacking.join(" ")
            ),
            "run a kernel with the same options there, or choose another destination",
        )
    })
}

/// Name, address and ports must be free.
pub(super) fn taken(specification: &Specification, destination: &SystemFacts) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if destination.services.contains(specification.name.as_str()) {
        refusals.push(Refusal::new(
            RefusalKind::NameTaken,
            format!(
                "the destination has a service named `{}`",
                specification.name
            ),
            "delete it there (`ums rm`), or run this one under another name",
        ));
    }
    if destination.addresses.contains(&specification.address) && !destination.readdresses {
        refusals.push(Refusal::new(
            RefusalKind::AddressTaken,
            format!(
                "address {} is taken at the destination",
                specification.address
            ),
            "run the current release of UMS there, which gives it another, or give services of \
             systems that exchange them addresses of their own (`ums run --address`)",
        ));
    }
    let taken = |port: &&PublishedPort| match port.transport {
        Transport::Tcp => destination.ports.contains(&port.system_port),
        Transport::Udp => destination.udp_ports.contains(&port.system_port),
    };
    for port in specification.ports.iter().filter(taken) {
        let (number, transport) = (port.system_port, port.transport.name());
        refusals.push(Refusal::new(
            RefusalKind::PortTaken,
            format!("port {number}/{transport} is taken at the destination"),
            "end what holds it there, or publish another port",
        ));
    }
    refusals
}

/// The address moves, so the network that it lies in must be the same.
pub(super) fn service_network(source: &SystemFacts, destination: &SystemFacts) -> Option<Refusal> {
    let (ours, our_len) = source.service_network;
    let (theirs, their_len) = destination.service_network;
    (source.service_network != destination.service_network).then(|| {
        Refusal::new(
            RefusalKind::ServiceNetwork,
            format!(
                "the service network is {ours}/{our_len} here and {theirs}/{their_len} at the \
                 destination, so the service's address can't move there"
            ),
            "set the same `service_network` on both systems",
        )
    })
}

/// All of the service's memory has to fit beside what the destination runs already: twice where
/// no page is given back before all are in place.
pub(super) fn memory(service: &ServiceFacts, destination: &NodeFacts) -> Option<Refusal> {
    let eager = destination.eager_restore.is_some();
    let held = match eager {
        true => service.memory_bytes.saturating_mul(2),
        false => service.memory_bytes,
    };
    let needed = held.saturating_add(MEMORY_MARGIN_BYTES);
    let twice = if eager {
        ", twice without userfaultfd"
    } else {
        ""
    };
    (needed > destination.memory_available_bytes).then(|| {
        Refusal::new(
            RefusalKind::Memory,
            format!(
                "the destination has {} MiB of memory available, and {} MiB are needed \
                 ({} MiB for the service{twice}, the rest to receive it)",
                destination.memory_available_bytes / (1024 * 1024),
                mebibytes(needed),
                mebibytes(service.memory_bytes),
            ),
            "free memory there, or choose another destination",
        )
    })
}

/// The changed files and volumes have to fit, and the image where it is missing.
pub(super) fn disk(service: &ServiceFacts, destination: &NodeFacts) -> Option<Refusal> {
    let image = service.image_bytes_for(destination);
    let files = service.filesystem_bytes.saturating_add(image);
    let needed = files.saturating_add(DISK_MARGIN_BYTES);
    (needed > destination.disk_available_bytes).then(|| {
        Refusal::new(
            RefusalKind::Disk,
            format!(
                "the destination has {} MiB of disk free where services are kept, and {} MiB are \
                 needed ({} MiB of changed files and volumes, {} MiB of image)",
                destination.disk_available_bytes / (1024 * 1024),
                mebibytes(needed),
                mebibytes(service.filesystem_bytes),
                mebibytes(image),
            ),
            "free space there, or put its `state_dir` on a larger disk",
        )
    })
}

#[cfg(test)]
mod test {
    use super::parse_release;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_release("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.13"), Some((5, 13)));
        assert_eq!(parse_release("6.18.44-fc"), Some((6, 18)));
        for bad in ["", "linux", "6", "6.x", "99999999999.1"] {
            assert_eq!(parse_release(bad), None, "{bad}");
        }
    }
}
