//! What is mapped: how much a checkpoint has to carry, and what it can't.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use nix::sys::stat::{major, minor};
use ums_core::facts::Obstacle;

use super::descriptor::{character_device, kernel_object};
use super::process::Process;
use super::{obstacle, parse, proc_file, proc_path};

/// Bytes of one process that have to be carried: private pages that differ from their file (once for each
/// process, since CRIU carries them so), its share of shared memory, and what is swapped out.
pub(super) fn memory_bytes(pid: i32) -> u64 {
    // A zombie has none.
    let text = proc_file(pid, "smaps_rollup").unwrap_or_default();
    ["Anonymous", "Pss_Shmem", "Swap"]
        .iter()
        .filter_map(|name| parse::rollup(&text, name))
        .sum()
}

pub(super) fn obstacles(process: &Process) -> Vec<Obstacle> {
    let text = proc_file(process.pid, "maps").unwrap_or_default();
    let judged = parse::mappings(&text).filter_map(|mapping| {
        let name = mapping.name.trim_end_matches(" (deleted)");
        let kind = match name.strip_prefix("anon_inode:") {
            Some(object) => kernel_object(object)?,
            None => device(process.pid, name)?,
        };
        Some(obstacle(kind, process.inner, format!("{name} (mapped)")))
    });
    judged.collect()
}

/// A mapping of a device; the mapping of `/dev/zero` is memory.
fn device(pid: i32, name: &str) -> Option<ums_core::facts::ObstacleKind> {
    let below = name.strip_prefix("/dev/")?;
    let path: PathBuf = proc_path(pid, "root/dev").join(below);
    let metadata = fs::symlink_metadata(path).ok()?;
    if !metadata.file_type().is_char_device() {
        return None;
    }
    character_device(name, (major(metadata.rdev()), minor(metadata.rdev())))
}
