//! The plan of a migration: which approach and technique, why, and what it will cost. Data that a
//! person can read; making it changes nothing.
//!
//! The cost model is of stop-and-copy and of pre-copy that gets to its aim. Its fixed costs were
//! measured on a virtual machine with 2 cores and Linux 6.18 (CRIU 4.1 and 4.2, processes of 1 to
//! 1024 MiB, largest gap seen by a process that writes a timestamp every 10 ms); they are of
//! the right order elsewhere, and a plan is an estimate.

use serde::{Deserialize, Serialize};

use crate::converge::{self, Bounds, Foreseen};
use crate::facts::{Loss, LossKind, NodeFacts, ServiceFacts};
use crate::id::{ServiceName, SystemName};
use crate::preflight::{self, Estimates, MigrateOptions, Refusal, Writing, engine};
use crate::technique::{Approach, Technique};

/// Freeze, CRIU's dump of everything but pages, and its end: 76 ms at 1 MiB, 79 ms at 128 MiB.
const DUMP_FIXED_MS: u64 = 80;

/// What each GiB of resident memory adds to the downtime whoever has its pages: the kernel walks over them when it
/// is asked for mappings, and for pages that were written. By pre-copy 126 ms at 1024 MiB against 54 ms at
/// 0 (`docs/bench.md`).
const DUMP_MS_PER_GIB: u64 = 72;

/// CRIU's restore with pages left to userfaultfd: 15 to 20 ms for one process.
const RESTORE_FIXED_MS: u64 = 20;

/// What a restore without userfaultfd adds for each GiB of memory, all of it put in place before the
/// first instruction: 715 ms at 1024 MiB.
const EAGER_MS_PER_GIB: u64 = 700;

/// What each process beyond the first adds to dump and restore together: 8 processes were dumped
/// in 66 ms and restored in 36 ms.
const PROCESS_MS: u64 = 4;

/// Second pass over the files, verification, the journal's write and the exchanges between the two
/// systems that lie inside the freeze.
const HANDOVER_FIXED_MS: u64 = 60;

/// Steps 1 to 7 and 14 to 15, without the copying of files.
const AROUND_FIXED_MS: u64 = 400;

/// How fast pages are read at most, whatever the link: assumed where it was not measured.
const DUMP_BYTES_PER_SECOND: u64 = 1_000_000_000;

/// The approaches, from the cheapest on.
const APPROACHES: [Approach; 3] = [
    Approach::OrchestratorLevel,
    Approach::ServiceLevel,
    Approach::ContainerLevel,
];

/// The techniques.
const TECHNIQUES: [Technique; 4] = [
    Technique::StopAndCopy,
    Technique::PreCopy,
    Technique::PostCopy,
    Technique::Hybrid,
];

/// What a migration is predicted to cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Memory to be moved, bytes.
    pub memory_bytes: u64,
    /// Changed files and volumes to be moved, and the image where the destination lacks it, bytes.
    pub filesystem_bytes: u64,
    /// The rate reckoned with, bytes per second: the link's, or CRIU's where that is lower. Nothing
    /// is reckoned to be zero or compressible.
    pub bytes_per_second: u64,
    /// From the freeze to the first instruction at the destination, milliseconds.
    pub downtime_ms: u64,
    /// From the request to the end, milliseconds.
    pub total_ms: u64,
    /// Rounds of memory before the freeze.
    #[serde(default)]
    pub rounds: u32,
    /// What is left of the memory for the freeze, bytes.
    #[serde(default)]
    pub frozen_bytes: u64,
    /// Memory that the service writes to in a second, bytes; `None` where it was not measured, and the rounds are
    /// reckoned to get to their aim.
    #[serde(default)]
    pub written_bytes_per_second: Option<u64>,
}

/// Whether a choice can be made here, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice<T> {
    /// What could be chosen.
    pub choice: T,
    /// Why it can't be; `None` when it can.
    pub infeasible: Option<String>,
}

/// What a migration would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What would move.
    pub service: ServiceName,
    /// From where.
    pub source: SystemName,
    /// To where.
    pub destination: SystemName,
    /// The approach chosen; `None` when none is feasible.
    pub approach: Option<Approach>,
    /// Every approach, and why those not chosen can't be.
    pub approaches: Vec<Choice<Approach>>,
    /// The technique chosen; `None` when the one asked for is not to be had.
    pub technique: Option<Technique>,
    /// Every technique, and why those not chosen can't be.
    pub techniques: Vec<Choice<Technique>>,
    /// Why the destination puts all memory in place before the service runs; `None` where
    /// userfaultfd installs it afterwards, or where the destination was not asked.
    pub eager_restore: Option<String>,
    /// What it will cost; without the destination's facts the image is reckoned to be there.
    pub prediction: Prediction,
    /// The longest downtime to accept, if one was asked for, milliseconds.
    pub max_downtime_ms: Option<u64>,
    /// Whether the destination was asked. Without its facts the refusals are not complete.
    pub destination_known: bool,
    /// Why the service's writing was not measured although it was to be.
    #[serde(default)]
    pub unmeasured: Option<String>,
    /// The engine at the destination that would make its container; `None` for UMS itself, or where the destination was not
    /// asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Why that is not the same as at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_why: Option<String>,
    /// What the move would change of the service.
    #[serde(default)]
    pub losses: Vec<Loss>,
    /// What stands in the way. Empty: `ums migrate` would go ahead.
    pub refusals: Vec<Refusal>,
}

/// Who is to move from where to where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// From where.
    pub source: SystemName,
    /// To where.
    pub destination: SystemName,
}

/// Makes the plan. The Coordinator adds what only talking to the peer can tell to its refusals.
pub fn make(
    route: Route,
    source: &NodeFacts,
    service: &ServiceFacts,
    destination: Option<&NodeFacts>,
    options: &MigrateOptions,
    estimates: &Estimates,
) -> Plan {
    let approach = options.approach.unwrap_or_else(|| approach_here(source));
    let technique = technique(options, source, destination);
    let chosen = destination.map(|to| engine::choose(options, service, to));
    let chosen = chosen.and_then(Result::ok);
    let losses = match &chosen {
        Some(chosen) => engine::losses(service, chosen.engine.as_deref()),
        None => engine::before(service),
    };
    Plan {
        service: service.specification.name.clone(),
        source: route.source,
        destination: route.destination,
        approach: approach_unavailable(approach, source)
            .is_none()
            .then_some(approach),
        approaches: APPROACHES
            .map(|choice| Choice {
                choice,
                infeasible: approach_unavailable(choice, source),
            })
            .to_vec(),
        technique: technique_unavailable(technique, source, destination)
            .is_none()
            .then_some(technique),
        techniques: TECHNIQUES
            .map(|choice| Choice {
                choice,
                infeasible: technique_unavailable(choice, source, destination),
            })
            .to_vec(),
        eager_restore: destination.and_then(|destination| destination.eager_restore.clone()),
        prediction: predict(service, destination, technique, estimates),
        max_downtime_ms: options.max_downtime_ms,
        destination_known: destination.is_some(),
        unmeasured: None,
        losses: losses
            .into_iter()
            .chain(destination.and_then(|destination| carried_less(source, destination)))
            .collect(),
        engine: chosen.as_ref().and_then(|chosen| chosen.engine.clone()),
        engine_why: chosen.and_then(|chosen| chosen.why),
        refusals: preflight::judge(source, service, destination, options, estimates),
    }
}

impl Plan {
    /// Whether a migration would go ahead, as far as can be told.
    pub fn feasible(&self) -> bool {
        self.refusals.is_empty() && self.approach.is_some() && self.technique.is_some()
    }
}

/// What a destination of an earlier release does not carry. Whether the service has any of it is not known.
pub fn carried_less(source: &NodeFacts, destination: &NodeFacts) -> Option<Loss> {
    (destination.system.carries < source.system.carries).then(|| Loss {
        kind: LossKind::EarlierRelease,
        pid: 0,
        detail: "memberships in multicast groups, attributes of processes and the like, where the service \
                 has any: update the destination to keep them"
            .to_owned(),
    })
}

/// What was asked for; where nobody chooses, pre-copy if the source's kernel can tell what changes.
pub fn technique(
    options: &MigrateOptions,
    source: &NodeFacts,
    destination: Option<&NodeFacts>,
) -> Technique {
    let best = || match technique_unavailable(Technique::PreCopy, source, destination) {
        None => Technique::PreCopy,
        Some(_) => Technique::StopAndCopy,
    };
    options.technique.unwrap_or_else(best)
}

/// What a migration will cost: its downtime is the fixed costs and what memory is left for the freeze at the
/// slower of the link and the reading, its total that, the files' first pass and the memory that goes before it. With
/// pre-copy what is left is what the service writes in the last round, by the rate that was measured; where none was,
/// what the rounds aim at: a service that writes faster than the link sends has more.
pub fn predict(
    service: &ServiceFacts,
    destination: Option<&NodeFacts>,
    technique: Technique,
    estimates: &Estimates,
) -> Prediction {
    let memory_bytes = service.memory_bytes;
    let image_bytes = destination.map_or(0, |destination| service.image_bytes_for(destination));
    let filesystem_bytes = service.filesystem_bytes.saturating_add(image_bytes);
    let writing = estimates.writing;
    let read = writing.and_then(|writing| writing.read_bytes_per_second);
    let bytes_per_second = estimates
        .link_bytes_per_second
        .clamp(1, read.unwrap_or(DUMP_BYTES_PER_SECOND).max(1));

    let further_processes = u64::from(service.processes.saturating_sub(1));
    let mapping_ms = scaled(memory_bytes, DUMP_MS_PER_GIB, 1 << 30);
    let eager = destination.is_some_and(|destination| destination.eager_restore.is_some());
    let eager_ms_per_gib = if eager { EAGER_MS_PER_GIB } else { 0 };
    let downtime_ms = (DUMP_FIXED_MS + RESTORE_FIXED_MS + HANDOVER_FIXED_MS)
        .saturating_add(further_processes * PROCESS_MS)
        .saturating_add(mapping_ms)
        .saturating_add(scaled(memory_bytes, eager_ms_per_gib, 1 << 30));
    let rounds = match technique {
        Technique::PreCopy => rounds(memory_bytes, bytes_per_second, writing),
        // After the switch what has stayed comes over.
        Technique::PostCopy => Foreseen {
            rounds: 0,
            ms: scaled(memory_bytes, 1000, bytes_per_second),
            left_bytes: 0,
        },
        Technique::Hybrid => {
            let before = rounds(memory_bytes, bytes_per_second, writing);
            let after_ms = scaled(before.left_bytes, 1000, bytes_per_second);
            Foreseen {
                ms: before.ms.saturating_add(after_ms),
                left_bytes: 0,
                ..before
            }
        }
        Technique::StopAndCopy => Foreseen {
            rounds: 0,
            ms: 0,
            left_bytes: memory_bytes,
        },
    };
    let frozen_ms = scaled(rounds.left_bytes, 1000, bytes_per_second);
    let downtime_ms = downtime_ms.saturating_add(frozen_ms);
    let link = estimates.link_bytes_per_second.max(1);
    let total_ms = AROUND_FIXED_MS
        .saturating_add(rounds.ms)
        .saturating_add(downtime_ms)
        .saturating_add(scaled(filesystem_bytes, 1000, link));
    Prediction {
        memory_bytes,
        filesystem_bytes,
        bytes_per_second,
        downtime_ms,
        total_ms,
        rounds: rounds.rounds,
        frozen_bytes: rounds.left_bytes,
        written_bytes_per_second: writing.map(|writing| writing.bytes_per_second),
    }
}

/// How the rounds go: by what was measured of the service's writing, else as they aim to.
fn rounds(memory_bytes: u64, bytes_per_second: u64, writing: Option<Writing>) -> Foreseen {
    let bounds = Bounds::default();
    let Some(writing) = writing else {
        let aim = scaled(bytes_per_second, bounds.downtime_ms, 1000);
        return Foreseen {
            left_bytes: memory_bytes.min(aim),
            ..converge::foresee(memory_bytes, 0, bytes_per_second, &bounds)
        };
    };
    let untracked = writing.untracked_bytes.min(memory_bytes);
    let (tracked, written) = (memory_bytes - untracked, writing.bytes_per_second);
    let foreseen = converge::foresee(tracked, written, bytes_per_second, &bounds);
    Foreseen {
        left_bytes: foreseen.left_bytes.saturating_add(untracked),
        ..foreseen
    }
}

/// `amount * factor / divisor` without overflow on the way.
fn scaled(amount: u64, factor: u64, divisor: u64) -> u64 {
    let wide = u128::from(amount) * u128::from(factor) / u128::from(divisor);
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// The approach that follows from where the service is.
fn approach_here(source: &NodeFacts) -> Approach {
    match source.outer {
        true => Approach::ContainerLevel,
        false => Approach::OrchestratorLevel,
    }
}

/// Why an approach can't be chosen at this source; `None` when it can.
pub fn approach_unavailable(approach: Approach, source: &NodeFacts) -> Option<String> {
    let reason = match approach {
        here if here == approach_here(source) => return None,
        Approach::OrchestratorLevel => {
            "orchestrator level needs a container that its engine or UMS has made on the node, and this service is \
             nested in an outer container"
        }
        Approach::ServiceLevel => {
            "service level needs an agent in the service's image, and the standalone driver starts \
             images as they are"
        }
        Approach::ContainerLevel => {
            "container level needs the service nested in an outer container, made from a wrapped image, and this one \
             runs on the node itself"
        }
    };
    Some(reason.to_owned())
}

/// Why a technique can't be chosen between these two; `None` when it can. Without the destination's facts, as far
/// as the source can tell.
pub fn technique_unavailable(
    technique: Technique,
    source: &NodeFacts,
    destination: Option<&NodeFacts>,
) -> Option<String> {
    let late = destination.and_then(|destination| pages_come_late(technique, destination));
    late.or_else(|| untracked(technique, source))
}

/// Why no pages can stay at the source: they are installed while the service runs, which the destination can't.
pub fn pages_come_late(technique: Technique, destination: &NodeFacts) -> Option<String> {
    let reason = destination.eager_restore.as_ref()?;
    technique.leaves_pages().then(|| {
        format!(
            "the destination puts all pages in place before a service runs ({reason}), so none can stay at \
             the source"
        )
    })
}

/// Why there can be no rounds of memory before the freeze.
fn untracked(technique: Technique, source: &NodeFacts) -> Option<String> {
    let reason = match technique {
        Technique::StopAndCopy | Technique::PostCopy => return None,
        Technique::PreCopy | Technique::Hybrid if source.tracks_memory => return None,
        Technique::PreCopy => {
            "pre-copy needs a kernel that tells which pages change while the service runs \
             (userfaultfd in asynchronous write-protect mode and PAGEMAP_SCAN, Linux 6.7; or soft-dirty bits)"
        }
        Technique::Hybrid => {
            "hybrid needs a kernel that tells which pages change while the service runs, as pre-copy does; \
             post-copy needs none"
        }
    };
    Some(reason.to_owned())
}

#[cfg(test)]
pub(crate) mod test;
