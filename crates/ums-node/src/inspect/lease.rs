//! Leases of files (`fcntl(2)`, F_SETLEASE) that can't be taken again at the destination.
//!
//! CRIU takes leases again (`criu/file-lock.c`), but not all. One that is being broken it breaks once
//! more, and the holder hears of it twice. One for writing allows nobody else to open the file: not who
//! reads it for the migration, and not CRIU, which opens what is mapped by itself. The files of the root
//! filesystem are read below it, where they are others to the kernel.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use ums_core::facts::{Obstacle, ObstacleKind};

use super::descriptor::numbers;
use super::parse::{self, Lease};
use super::process::Process;
use super::{obstacle, proc_file, proc_path};

/// Such leases of these processes, whose first is `init`.
pub(super) fn obstacles(init: i32, tree: &[Process]) -> Vec<Obstacle> {
    // Hardly anybody has one: then no descriptor has to be looked at.
    let locks = fs::read("/proc/locks").unwrap_or_default();
    if !String::from_utf8_lossy(&locks).contains("LEASE") {
        return Vec::new();
    }
    let mounts = proc_file(init, "mountinfo").unwrap_or_default();
    let root = parse::root_mount(&mounts);
    let of_one = |process| of_process(process, tree, root);
    tree.iter().flat_map(of_one).collect()
}

fn of_process(process: &Process, tree: &[Process], root: Option<u32>) -> Vec<Obstacle> {
    let held = numbers(process.pid).into_iter().filter_map(|number| {
        let info = proc_file(process.pid, &format!("fdinfo/{number}"))?;
        let lease = parse::lease(&info)?;
        let path = proc_path(process.pid, &format!("fd/{number}"));
        let (link, metadata) = (fs::read_link(&path).ok()?, fs::metadata(&path).ok()?);
        let why = match lease {
            Lease::Breaking => "which is being broken",
            Lease::Read => return None,
            Lease::Write if parse::descriptor_info(&info)?.mount != root? => {
                "for writing, of a file outside the root filesystem"
            }
            Lease::Write if tree.iter().any(|other| is_mapped(other, &metadata)) => {
                "for writing, of a file that is mapped"
            }
            Lease::Write => return None,
        };
        let what = format!("{}, {why}", link.display());
        Some(obstacle(ObstacleKind::FileLease, process.inner, what))
    });
    held.collect()
}

fn is_mapped(process: &Process, file: &Metadata) -> bool {
    let entries = fs::read_dir(proc_path(process.pid, "map_files"));
    let mut mapped = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path()).ok());
    mapped.any(|mapped| (mapped.dev(), mapped.ino()) == (file.dev(), file.ino()))
}
