//! Files of a service: which of them may change up to the freeze, and how much there is.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::descriptor::numbers;
use super::{InspectError, parse, proc_file, proc_path};

/// Most entries that are counted in one directory tree; beyond that the sum is a lower bound.
const ENTRIES_MAX: u64 = 2_000_000;

/// Paths inside the container of regular files that a process of the service may be changing now: mapped
/// shared and writable, or open for writing.
///
/// Their modification times don't show it (a write through a mapping shows late), so they are sent
/// again in the freeze. Deleted files and those of memory only are CRIU's.
pub fn shared_writable_files(pids: &[i32]) -> Result<BTreeSet<PathBuf>, InspectError> {
    let mut files = BTreeSet::new();
    for pid in pids {
        files.extend(mapped_writable(*pid));
        files.extend(
            numbers(*pid)
                .iter()
                .filter_map(|number| open_for_writing(*pid, number)),
        );
    }
    Ok(files)
}

/// The same of those alone that a process of the service whose first one is `init` has mapped.
///
/// # Errors
/// When the service has ended.
pub fn mapped_writable_files(init: i32) -> Result<BTreeSet<PathBuf>, InspectError> {
    let pids = super::processes(init)?;
    Ok(pids.into_iter().flat_map(mapped_writable).collect())
}

fn mapped_writable(pid: i32) -> Vec<PathBuf> {
    let maps = proc_file(pid, "maps").unwrap_or_default();
    let mapped = parse::mappings(&maps).filter(|mapping| mapping.shared && mapping.writable);
    mapped
        .filter_map(|mapping| regular(pid, &mapping.name))
        .collect()
}

fn open_for_writing(pid: i32, number: &str) -> Option<PathBuf> {
    let info = parse::descriptor_info(&proc_file(pid, &format!("fdinfo/{number}"))?)?;
    if !info.writable {
        return None;
    }
    let link = fs::read_link(proc_path(pid, &format!("fd/{number}"))).ok()?;
    regular(pid, link.to_str()?)
}

/// The path, if a regular file is there. A deleted file's path ends with ` (deleted)`: nothing is
/// there, or by chance a file of that name, which then is sent for nothing.
fn regular(pid: i32, path: &str) -> Option<PathBuf> {
    let below = path.strip_prefix('/')?;
    let metadata = fs::symlink_metadata(proc_path(pid, "root").join(below)).ok()?;
    metadata.is_file().then(|| PathBuf::from(path))
}

/// Ids of the mounts that a process sees; empty once it is gone.
pub(super) fn mounts(pid: i32) -> BTreeSet<u32> {
    parse::mount_ids(&proc_file(pid, "mountinfo").unwrap_or_default())
}

/// Bytes in the files below a directory; holes don't count. What vanishes meanwhile doesn't either.
pub fn bytes(dir: &Path) -> u64 {
    const BLOCK_LEN: u64 = 512;
    let mut left = ENTRIES_MAX;
    let mut sum = 0_u64;
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if left == 0 {
                return sum;
            }
            left -= 1;
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() {
                sum = sum.saturating_add(metadata.len().min(metadata.blocks() * BLOCK_LEN));
            }
        }
    }
    sum
}
