//! CRIU's own tests (`test/zdtm` in CRIU's repository) as services: each makes one state of a process,
//! says that it is ready, and checks its state when it is told to end. Whoever has built them can
//! have them moved.
//!
//! Nothing of CRIU is here: the tests are taken from a directory that the caller names.

mod daemon;
mod plain;
mod report;
mod run;
mod service;
mod suite;

use serde::Serialize;

pub use daemon::main as daemon;
pub use report::Report;
pub use run::{Options, run};
pub use suite::{Suite, Test};

/// What is done with a test between its beginning and its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Nothing: whether it passes by itself in such a container on this machine.
    Control,
    /// `runc checkpoint` and `runc restore` in the same kind of container, on the same system.
    Plain,
    /// One move.
    There,
    /// A move, and one back at once.
    ThereAndBack,
}

impl Way {
    /// All, in the order in which they are gone.
    pub const ALL: [Self; 4] = [Self::Control, Self::Plain, Self::There, Self::ThereAndBack];

    /// As it is written in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Plain => "plain",
            Self::There => "a-b",
            Self::ThereAndBack => "a-b-a",
        }
    }
}

/// What became of a test in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "why", rename_all = "kebab-case")]
pub enum Verdict {
    /// It found its state as it had made it.
    Passed,
    /// The move was refused before the freeze, in these words.
    Refused(String),
    /// It did not find its state, and the plan and the report had said what the move would change.
    Declared(String),
    /// The move failed after the freeze had begun; the service went on.
    Abandoned(String),
    /// It did not start, or does not pass, without anything having been said.
    Failed(String),
    /// Not tried: it does not pass by itself.
    LeftOut,
}

impl Verdict {
    /// As it is written in tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Refused(_) => "refused",
            Self::Declared(_) => "declared",
            Self::Abandoned(_) => "abandoned",
            Self::Failed(_) => "FAIL",
            Self::LeftOut => "-",
        }
    }

    /// Why, where it did not pass.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Refused(why) | Self::Declared(why) | Self::Abandoned(why) | Self::Failed(why) => {
                Some(why)
            }
            Self::Passed | Self::LeftOut => None,
        }
    }
}
