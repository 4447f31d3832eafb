//! What is mapped: how much a checkpoint has to carry, and what it can't.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::{major, minor};
use ums_core::facts::{Obstacle, ObstacleKind};

use super::descriptor::{character_device, kernel_object};
use super::parse::Region;
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

/// What of the mappings of a process can't be carried.
pub(super) fn obstacles(process: &Process) -> Vec<Obstacle> {
    let regions = parse::regions(&proc_file(process.pid, "smaps").unwrap_or_default());
    let judged = regions.iter().filter_map(|region| {
        let (kind, what) = judge(process.pid, region)?;
        Some(obstacle(kind, process.inner, what))
    });
    judged.collect()
}

fn judge(pid: i32, region: &Region) -> Option<(ObstacleKind, String)> {
    let name = region.name.trim_end_matches(" (deleted)");
    if region.flags.iter().any(|flag| flag == "ht") {
        return Some((ObstacleKind::HugePages, format!("mapping {}", region.range)));
    }
    if region.shared && name.starts_with("/memfd:") && is_sealed(pid, &region.range) {
        return Some((ObstacleKind::SealedMapping, name.to_owned()));
    }
    let kind = match name.strip_prefix("anon_inode:") {
        Some(object) => kernel_object(object)?,
        None => device(pid, name)?,
    };
    Some((kind, format!("{name} (mapped)")))
}

/// Whether what is mapped there can't be written to by anybody. At the restore CRIU maps it from a
/// descriptor that may write, and the kernel seals no file that has such a mapping (`mm/memfd.c`,
/// `memfd_add_seals`).
fn is_sealed(pid: i32, range: &str) -> bool {
    // The names there have no zeros in front.
    let (from, to) = range.split_once('-').unwrap_or_default();
    let name = [from, to].map(|end| end.trim_start_matches('0')).join("-");
    let file = fs::File::open(proc_path(pid, "map_files").join(name));
    let seals = file
        .ok()
        .and_then(|file| fcntl(file, FcntlArg::F_GET_SEALS).ok());
    seals.is_some_and(|seals| SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_WRITE))
}

/// A mapping of a device; the mapping of `/dev/zero` is memory.
fn device(pid: i32, name: &str) -> Option<ObstacleKind> {
    let below = name.strip_prefix("/dev/")?;
    let path: PathBuf = proc_path(pid, "root/dev").join(below);
    let metadata = fs::symlink_metadata(path).ok()?;
    if !metadata.file_type().is_char_device() {
        return None;
    }
    character_device(name, (major(metadata.rdev()), minor(metadata.rdev())))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn huge_pages_of_the_pool_are_named() {
        let region = |flags: &[&str]| Region {
            range: "7f00-7f01".to_owned(),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            ..Region::default()
        };
        let judged = |flags: &[&str]| judge(0, &region(flags)).map(|(kind, _)| kind);
        assert_eq!(judged(&["rd", "wr", "ht"]), Some(ObstacleKind::HugePages));
        // `hg`: transparent ones are wished for.
        assert_eq!(judged(&["rd", "wr", "hg"]), None);
    }
}
