//! What can't be moved, and why: judged before anything is touched (UMS §III-B, Step 1).
//!
//! Both Coordinators judge with these functions: the source before it asks the peer
//! ([`judge_local`]) and with the peer's facts ([`judge`]), the destination when it is asked to
//! reserve. What only an attempt to talk to the peer can tell (unknown, untrusted, of another
//! version, not allowed) is found by the Coordinator, which words it with the constructors of
//! [`Refusal`], so that a person reads one list.

mod confinement;
mod container;
mod cpu;
pub mod engine;
mod node;
mod service;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::facts::{NodeFacts, ServiceFacts};
use crate::plan::{self, Prediction};
use crate::technique::{Approach, Technique};

pub use node::{CRIU_MIN, KERNEL_MIN, MEMORY_MARGIN_BYTES};

/// A reason not to migrate, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{cause}; {remedy}")]
pub struct Refusal {
    /// The kind, for programs.
    pub kind: RefusalKind,
    /// What stands in the way, for people.
    pub cause: String,
    /// What would mend it.
    pub remedy: String,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The service is not running.
    NotRunning,
    /// A migration of it is under way.
    Migrating,
    /// The approach asked for is not available here.
    ApproachUnavailable,
    /// The technique asked for is not available here.
    TechniqueUnavailable,
    /// Another machine architecture.
    Architecture,
    /// The destination's CPU lacks features that the source's has.
    CpuFeatures,
    /// A kernel is too old.
    Kernel,
    /// The destination's kernel lacks files below /proc that the service has mounts on.
    KernelFiles,
    /// The destination can't confine the service as it is here.
    Confinement,
    /// The service has more processes than the destination can restore.
    Processes,
    /// There is no CRIU that works.
    CriuMissing,
    /// CRIU is too old.
    CriuTooOld,
    /// The service uses io_uring.
    IoUring,
    /// The service uses a GPU.
    Gpu,
    /// The service uses another device.
    Device,
    /// The service holds a kernel object that CRIU does not know.
    Descriptor,
    /// The service has a file open that is not its own.
    ForeignFile,
    /// The service holds a socket of a family that can't be carried.
    Socket,
    /// The service has shared memory attached from outside.
    SharedMemory,
    /// A process of the service is in a state that can't be carried.
    Process,
    /// A service can't arrive in that engine at the destination.
    Engine,
    /// The service's container can't be taken over from its engine.
    Container,
    /// A deleted file that the service has open is too large.
    DeletedFile,
    /// The service runs as a user whose processes' limits CRIU may not read.
    OtherUser,
    /// The destination has a service of this name.
    NameTaken,
    /// A published port is taken at the destination.
    PortTaken,
    /// The service's address is taken at the destination.
    AddressTaken,
    /// The destination's service network is another one.
    ServiceNetwork,
    /// No room in the destination's memory.
    Memory,
    /// No room on the destination's disk.
    Disk,
    /// The move would change how the service behaves, and nobody has accepted that.
    Loss,
    /// The maximum downtime can't be met.
    MaxDowntime,
    /// No peer of this name is known.
    PeerUnknown,
    /// The peer does not answer.
    PeerUnreachable,
    /// The peer's certificate is not what it should be, or it does not accept ours.
    PeerUntrusted,
    /// The peer speaks another version.
    PeerVersion,
    /// The policy of either system does not allow it.
    PeerDenied,
}

/// What the person who asks wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MigrateOptions {
    /// The longest downtime to accept, milliseconds.
    pub max_downtime_ms: Option<u64>,
    /// The technique to use; the default one when absent.
    pub technique: Option<Technique>,
    /// The approach to use; the cheapest feasible one when absent.
    pub approach: Option<Approach>,
    /// Whether the service may behave otherwise after the move, as its losses say.
    pub accept_loss: bool,
    /// Who is to make the container at the destination: an engine there, or [`engine::STANDALONE`]. Where nobody says,
    /// [`engine::choose`] does.
    pub engine: Option<String>,
}

/// What can only be estimated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimates {
    /// Rate of the link between the two systems, or the operator's bandwidth limit where that is
    /// lower, bytes per second.
    pub link_bytes_per_second: u64,
    /// How the service writes, where that was measured.
    pub writing: Option<Writing>,
}

/// What a look at a service that runs has measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writing {
    /// Memory that it writes to in a second, bytes: whole pages, each once in a look, however often it is written.
    pub bytes_per_second: u64,
    /// Memory of which nobody can tell whether it was written, bytes: all of it is for the freeze.
    pub untracked_bytes: u64,
    /// How fast its memory is read, bytes per second; `None` where there is too little of it to tell.
    pub read_bytes_per_second: Option<u64>,
}

/// The rate assumed of a link that nobody has measured: 1 Gbps less Ethernet, IP, TCP and TLS
/// overhead.
pub const LINK_BYTES_PER_SECOND_ASSUMED: u64 = 117_000_000;

impl Default for Estimates {
    fn default() -> Self {
        Self {
            link_bytes_per_second: LINK_BYTES_PER_SECOND_ASSUMED,
            writing: None,
        }
    }
}

/// What the source can tell without asking the peer.
pub fn judge_local(
    source: &NodeFacts,
    service: &ServiceFacts,
    options: &MigrateOptions,
) -> Vec<Refusal> {
    let mut refusals = service::state(service);
    refusals.extend(service::options(options, source));
    refusals.extend(service::obstacles(service));
    refusals.extend(service::losses(&engine::before(service), options));
    refusals.extend(node::engine("source", source));
    refusals
}

/// Everything that can be told from facts. Without the destination's, the same as
/// [`judge_local`] and the downtime.
pub fn judge(
    source: &NodeFacts,
    service: &ServiceFacts,
    destination: Option<&NodeFacts>,
    options: &MigrateOptions,
    estimates: &Estimates,
) -> Vec<Refusal> {
    let mut refusals = judge_local(source, service, options);
    if let Some(destination) = destination {
        refusals.extend(judge_destination(source, service, destination));
        match engine::choose(options, service, destination) {
            Ok(chosen) => {
                let further = engine::further(service, chosen.engine.as_deref());
                refusals.extend(service::losses(&further, options));
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    let technique = plan::technique(options, source, destination);
    refusals.extend(destination.and_then(|to| service::pages_come_late(technique, to)));
    let predicted = plan::predict(service, destination, technique, estimates);
    refusals.extend(max_downtime(&predicted, technique, options));
    refusals
}

/// What the destination's facts forbid.
fn judge_destination(
    source: &NodeFacts,
    service: &ServiceFacts,
    destination: &NodeFacts,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    refusals.extend(cpu::architecture(source, destination));
    refusals.extend(cpu::features(source, destination));
    refusals.extend(node::engine("destination", destination));
    refusals.extend(node::proc_paths(source, destination));
    refusals.extend(node::taken(&service.specification, &destination.system));
    refusals.extend(node::service_network(&source.system, &destination.system));
    refusals.extend(node::memory(service, destination));
    refusals.extend(node::disk(service, destination));
    refusals.extend(confinement::judge(service, destination));
    refusals
}

fn max_downtime(
    predicted: &Prediction,
    technique: Technique,
    options: &MigrateOptions,
) -> Option<Refusal> {
    let wanted = options.max_downtime_ms?;
    let mib = mebibytes(predicted.memory_bytes);
    let why = match technique {
        Technique::StopAndCopy => format!(
            "stop-and-copy moves {mib} MiB of memory in the freeze at {} MB/s",
            predicted.bytes_per_second / 1_000_000
        ),
        _ => format!("that is what the freeze of a service with {mib} MiB costs"),
    };
    let remedy = match technique {
        Technique::StopAndCopy => {
            "accept a longer downtime, use a faster link, or lessen the service's memory first"
        }
        _ => "accept a longer downtime",
    };
    (predicted.downtime_ms > wanted).then(|| {
        Refusal::new(
            RefusalKind::MaxDowntime,
            format!(
                "the downtime is predicted to be {} ms, and at most {wanted} ms are wanted: {why}",
                predicted.downtime_ms
            ),
            remedy,
        )
    })
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1024 * 1024)
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            kind,
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    /// No peer of this name is known here.
    pub fn peer_unknown(name: &str, known: &[&str]) -> Self {
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        Self::new(
            RefusalKind::PeerUnknown,
            format!("no peer named `{name}` is known (known: {known})"),
            format!("check the name, or add it with `ums peer add {name} --address …`"),
        )
    }

    /// The peer does not answer at its address.
    pub fn peer_unreachable(name: &str, why: impl fmt::Display) -> Self {
        Self::new(
            RefusalKind::PeerUnreachable,
            format!("peer `{name}` does not answer: {why}"),
            "check its address, that `ums serve` runs there, and the firewalls between",
        )
    }

    /// Its certificate is not what it should be, or it rejects ours.
    pub fn peer_untrusted(name: &str, why: impl fmt::Display) -> Self {
        Self::new(
            RefusalKind::PeerUntrusted,
            format!("peer `{name}` is not trusted: {why}"),
            "let both certificates be issued by the same CA, each in the name of its system, and \
             check that neither has expired (`ums doctor`)",
        )
    }

    /// It speaks no version that we speak.
    pub fn peer_version(name: &str, ours: impl fmt::Display, theirs: impl fmt::Display) -> Self {
        Self::new(
            RefusalKind::PeerVersion,
            format!("peer `{name}` speaks protocol {theirs}, this system {ours}"),
            "run the same release of UMS on both systems",
        )
    }

    /// A policy does not allow it.
    pub fn peer_denied(name: &str, why: impl fmt::Display) -> Self {
        Self::new(
            RefusalKind::PeerDenied,
            format!("a migration to `{name}` is not allowed: {why}"),
            "let the administrator who denies it allow it in the peers table of that system's \
             configuration (`allow = [\"send\", \"receive\"]`)",
        )
    }
}

#[cfg(test)]
mod test;
