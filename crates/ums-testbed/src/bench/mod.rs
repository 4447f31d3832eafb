//! How long a service stands still while it moves, and what its clients see of it: UMS beside what
//! others would do, on the same link, in one run.

pub mod aims;
pub mod budget;
pub mod budget_report;
pub mod clients;
pub mod clients_report;
mod container;
mod criu_way;
pub mod gap;
pub mod paper_way;
pub mod plan;
pub mod report;
pub mod results;
pub mod run;
pub mod runc_lazy;
pub mod stats;
pub mod svg;
pub mod throughput;
pub mod ums_way;
pub mod wire_floor;

use serde::{Deserialize, Serialize};

/// One way of moving a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Technique {
    /// `ums migrate`, all pages in the freeze.
    StopAndCopy,
    /// `ums migrate`, memory in rounds before the freeze.
    PreCopy,
    /// `ums migrate`, memory after the switch.
    PostCopy,
    /// `ums migrate`, both.
    Hybrid,
    /// `runc checkpoint` into memory, `rsync` over ssh, `runc restore`.
    Paper,
    /// `runc checkpoint --lazy-pages` with `criu lazy-pages`: what an expert would do.
    RuncLazy,
    /// `podman container checkpoint --export`, copy, `restore --import`.
    Podman,
    /// CRIU's own dump and restore on one node, with nothing in between.
    Criu,
    /// The same bytes over one plain TCP stream.
    WireFloor,
}

/// The ways of UMS.
pub const OURS: [Technique; 4] = [
    Technique::StopAndCopy,
    Technique::PreCopy,
    Technique::PostCopy,
    Technique::Hybrid,
];

/// What `ums migrate` does by itself.
pub const DEFAULT: Technique = Technique::PreCopy;

impl Technique {
    /// The word in the results, and of `ums migrate --technique`.
    pub fn name(self) -> &'static str {
        match self {
            Self::StopAndCopy => "stop-and-copy",
            Self::PreCopy => "pre-copy",
            Self::PostCopy => "post-copy",
            Self::Hybrid => "hybrid",
            Self::Paper => "paper",
            Self::RuncLazy => "runc-lazy",
            Self::Podman => "podman",
            Self::Criu => "criu",
            Self::WireFloor => "wire-floor",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::StopAndCopy => "UMS stop-and-copy",
            Self::PreCopy => "UMS pre-copy",
            Self::PostCopy => "UMS post-copy",
            Self::Hybrid => "UMS hybrid",
            Self::Paper => "paper's way",
            Self::RuncLazy => "runc and CRIU, lazy pages",
            Self::Podman => "podman",
            Self::Criu => "CRIU's own dump and restore, one node",
            Self::WireFloor => "wire floor",
        }
    }
}

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// The memory hog with random data.
    Hog,
    /// The memory hog with data that compresses to an eighth.
    Compressible,
}

/// One set of circumstances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cell {
    /// What is moved.
    pub workload: Workload,
    /// Data that it holds, MiB.
    pub memory_mib: u64,
    /// How much of it is written anew, MiB each second.
    pub dirty_mib_s: u64,
    /// Its processes.
    pub processes: u32,
    /// Rate of the link, Gbit/s.
    pub link_gbps: u32,
}

impl Cell {
    /// A hog of one process that writes nothing, over 1 Gbit/s.
    pub fn of(memory_mib: u64) -> Self {
        Self {
            workload: Workload::Hog,
            memory_mib,
            dirty_mib_s: 0,
            processes: 1,
            link_gbps: 1,
        }
    }
}

/// What was measured in one move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How it was moved.
    pub technique: Technique,
    /// Under which circumstances.
    pub cell: Cell,
    /// Which run, from 1.
    pub run: u32,
    /// From the request to the end, until all memory is at the destination, milliseconds.
    pub total_ms: f64,
    /// The longest time between two timestamps that the service itself wrote, milliseconds.
    pub downtime_ms: Option<f64>,
    /// The longest time without an answer that a client saw, milliseconds.
    pub client_gap_ms: Option<f64>,
    /// 99 of 100 answers took at most so long before the move, milliseconds.
    pub before_p99_ms: Option<f64>,
    /// The same after it.
    pub after_p99_ms: Option<f64>,
    /// Bytes that went over the link.
    pub wire_bytes: u64,
    /// The most memory that the source's agent had in the move, MiB.
    #[serde(default)]
    pub agent_mib: Option<f64>,
}

/// A way that could not be measured, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// Which.
    pub technique: Technique,
    /// In which circumstances it failed first.
    pub cell: Cell,
    /// Why.
    pub reason: String,
}

/// Arguments of the hog.
fn hog_arguments(cell: Cell) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("--mib", cell.memory_mib.to_string());
    add("--dirty", cell.dirty_mib_s.to_string());
    add("--processes", cell.processes.to_string());
    if cell.workload == Workload::Compressible {
        arguments.push("--compressible".to_owned());
    }
    arguments
}
