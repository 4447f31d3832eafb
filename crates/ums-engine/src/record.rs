//! What the agent remembers of a container that leaves, across its own restarts: one small file each.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use ums_core::facts::{Loss, Obstacle};
use ums_core::id::MigrationId;
use ums_core::specification::{Restart, Specification};
use ums_node::container::Given;

/// A container of an engine that is being moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The layout, [`VERSION`].
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

/// The layout that is written.
pub const VERSION: u32 = 1;

/// All records of a directory; what is none is passed over and told.
pub fn read_all(directory: &Path) -> Vec<Record> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let records = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let read = |path: PathBuf| {
        let record = read(&path);
        record
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "not a record"))
            .ok()
    };
    records.filter_map(read).collect()
}

fn read(path: &Path) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    if record.version != VERSION {
        let theirs = record.version;
        let text = format!("record of version {theirs}, this agent knows {VERSION}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(record)
}
