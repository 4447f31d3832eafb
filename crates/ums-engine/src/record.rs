//! What the agent remembers of a container that leaves, across its own restarts: one small file each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ums_core::facts::{Loss, Obstacle};
use ums_core::id::MigrationId;
use ums_core::specification::{Restart, Specification};
use ums_node::container::Given;

use crate::stored::Stored;

/// A container of an engine that is being moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The layout, [`stored::VERSION`](crate::stored::VERSION).
    pub version: u32,
    /// The engine.
    pub engine: String,
    /// The engine's id of it.
    pub id: String,
    /// What it is.
    pub specification: Specification,
    /// Its init, and when that began.
    pub init: (i32, u64),
    /// Its root filesystem, as the host sees it.
    pub root: PathBuf,
    /// Its control group: the path below each hierarchy.
    pub cgroup: String,
    /// What it changed in its root filesystem.
    pub upper: PathBuf,
    /// The layers of its image, as overlay has them.
    pub lower: String,
    /// Where its volumes are, by their names.
    pub volumes: BTreeMap<String, PathBuf>,
    /// Files that are mounted by themselves: name, and where each is on the host.
    pub files: BTreeMap<String, PathBuf>,
    /// CRIU's names of its standard output and standard error.
    pub stdio: [String; 2],
    /// What happens when it ends, while nobody moves it.
    pub restart: Restart,
    /// The migration that has its gate shut.
    #[serde(default)]
    pub gate: Option<MigrationId>,
    /// Settings of its network namespace that a move changes, as they were.
    #[serde(default)]
    pub network: BTreeMap<String, String>,
    /// Whether its engine holds it still.
    #[serde(default)]
    pub paused: bool,
    /// What stands in the way of a move.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
    /// What a move changes.
    #[serde(default)]
    pub losses: Vec<Loss>,
}

impl Record {
    /// The file that stands for its network namespace; `None` once its init has ended: another process may have
    /// the number by now.
    pub fn netns(&self) -> Option<PathBuf> {
        let (init, began) = self.init;
        let lives = Given::of(init) == Some(Given { init, began });
        lives.then(|| PathBuf::from(format!("/proc/{init}/ns/net")))
    }
}

impl Stored for Record {
    fn version(&self) -> u32 {
        self.version
    }
}
