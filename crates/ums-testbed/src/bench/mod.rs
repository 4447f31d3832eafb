//! How long a service stands still while it moves: UMS, the paper's way and the least time that
//! the wire allows, side by side on the same link; and what clients on open connections see of it.

pub mod budget;
pub mod budget_report;
pub mod clients;
pub mod clients_report;
mod container;
pub mod paper_way;
pub mod report;
pub mod run;
pub mod ums_way;
pub mod wire_floor;

use serde::{Deserialize, Serialize};

/// One way of moving the memory hog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// `ums migrate`, all pages in the freeze.
    UmsStopAndCopy,
    /// `runc checkpoint` into memory, `rsync` over ssh, `runc restore`.
    PaperWay,
    /// The same bytes over one plain TCP stream.
    WireFloor,
}

impl Way {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::UmsStopAndCopy => "UMS stop-and-copy",
            Self::PaperWay => "paper's way",
            Self::WireFloor => "wire floor",
        }
    }
}

/// What was measured in one move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How it was moved.
    pub way: Way,
    /// Random data in the hog, MiB.
    pub mib: u64,
    /// Which run, from 1.
    pub run: u32,
    /// From the request to the end, seconds.
    pub total_s: f64,
    /// The longest time between two timestamps that the hog wrote, seconds.
    pub gap_s: Option<f64>,
    /// Downtime as reported, seconds.
    pub downtime_s: Option<f64>,
    /// Bytes that went over the wire, or were to.
    pub bytes: u64,
    /// Parts of the total by name, seconds.
    pub parts: Vec<(String, f64)>,
}
