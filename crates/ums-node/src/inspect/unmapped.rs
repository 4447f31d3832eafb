//! Memory that no process has mapped: of files without a name in memory (memfd_create(2)).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::process::Process;
use super::{proc_file, proc_path};

/// How such a file is called in `/proc/PID/fd` and `/proc/PID/maps`.
const NAME: &str = "/memfd:";
/// What `stat(2)` counts in.
const BLOCK_BYTES: u64 = 512;

/// Bytes of it, each file once.
pub(super) fn memory_bytes(tree: &[Process]) -> u64 {
    let mapped: BTreeSet<u64> = tree.iter().flat_map(|it| mapped(it.pid)).collect();
    let mut open = BTreeMap::new();
    for process in tree {
        open.extend(files(process.pid));
    }
    open.retain(|inode, _| !mapped.contains(inode));
    open.into_values().sum()
}

/// Its open files of this kind: inode, and bytes that they hold.
fn files(pid: i32) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(proc_path(pid, "fd"));
    let paths = entries.into_iter().flatten().flatten().map(|it| it.path());
    let of_memory = paths.filter(|path| {
        let link = fs::read_link(path).unwrap_or_default();
        link.to_string_lossy().starts_with(NAME)
    });
    let metadata = of_memory.filter_map(|path| fs::metadata(path).ok());
    metadata
        .map(|file| (file.ino(), file.blocks() * BLOCK_BYTES))
        .collect()
}

/// Inodes of those that it has mapped, which count with what it has mapped.
fn mapped(pid: i32) -> Vec<u64> {
    let text = proc_file(pid, "maps").unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains(NAME));
    let inodes = lines.filter_map(|line| line.split_whitespace().nth(4)?.parse().ok());
    inodes.collect()
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_file_in_memory_counts_with_what_it_holds() {
        let mut file = fs::File::from(memfd_create("ballast", MFdFlags::MFD_CLOEXEC).unwrap());
        file.write_all(&[7; 3 << 20]).unwrap();
        let pid = std::process::id().cast_signed();
        let (inode, all) = (file.metadata().unwrap().ino(), files(pid));
        assert_eq!(all.get(&inode), Some(&(3 << 20)), "{}", file.as_raw_fd());
        assert!(!mapped(pid).contains(&inode));
    }
}
