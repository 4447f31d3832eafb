//! Whether the service of this outer container may be somewhere else: written before it can be, so that
//! whoever starts the container anew (an engine's restart policy, an orchestrator, a person) does not start a
//! second one.
//!
//! It is written twice: beside the service's files, which outlive a reboot, and in the system's directory of
//! sockets, which outlives the container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use ums_core::id::MigrationId;
use ums_node::durable;

const NAME: &str = "left.json";

/// What is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Left {
    /// Layout of this file.
    version: u32,
    /// The migration that takes the service away, or has.
    pub(super) migration: MigrationId,
}

const VERSION: u32 = 1;

/// The two places.
#[derive(Debug, Clone)]
pub(super) struct Slot([PathBuf; 2]);

impl Slot {
    pub(super) fn of(state_dir: &Path, run_dir: &Path) -> Self {
        Self([state_dir.join(NAME), run_dir.join(NAME)])
    }

    /// From now on the service is not started here. Blocks.
    pub(super) fn leave(&self, migration: MigrationId) -> io::Result<()> {
        let version = VERSION;
        let left = Left { version, migration };
        self.0
            .iter()
            .try_for_each(|path| durable::write(path, &left))
    }

    /// The service is here and nowhere else. Blocks.
    pub(super) fn stay(&self) -> io::Result<()> {
        self.0
            .iter()
            .try_for_each(|path| match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
    }

    /// Whether the service may be elsewhere. A file that can't be read counts. Blocks.
    pub(super) fn has_left(&self) -> bool {
        self.0
            .iter()
            .any(|path| !matches!(path.try_exists(), Ok(false)))
    }

    /// The files, for people.
    pub(super) fn files(&self) -> String {
        let files = self.0.iter().map(|path| path.display().to_string());
        files.collect::<Vec<_>>().join(" and ")
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn either_place_is_enough() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let slot = Slot::of(state.path(), run.path());
        assert!(!slot.has_left());
        slot.leave("00000000-0000-4000-8000-000000000001".parse().unwrap())
            .unwrap();
        fs::remove_file(run.path().join(NAME)).unwrap();
        assert!(slot.has_left(), "after a reboot");
        slot.leave("00000000-0000-4000-8000-000000000001".parse().unwrap())
            .unwrap();
        fs::remove_file(state.path().join(NAME)).unwrap();
        assert!(slot.has_left(), "in a container that was made anew");
        slot.stay().unwrap();
        assert!(!slot.has_left());
    }
}
