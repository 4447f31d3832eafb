//! The objects themselves: which there are, where they have content, and what.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::fs::{SeekFrom, seek};

use crate::carry::Process;
use crate::criu::page_server::{PAGE_LEN, PageOwner};
use crate::dirty::mappings::{self, Mapping};

/// The most objects: a descriptor is held of each.
const OBJECTS_MAX: usize = 128;

/// Those that the processes have mapped, or open as memfds. One that can't be opened, or on which somebody has
/// a lease (to open it would break that), is left out; so is a segment that is attached nowhere.
pub(super) fn all(processes: &[Process]) -> BTreeMap<PageOwner, File> {
    let mut places = BTreeMap::new();
    let mut leased = BTreeSet::new();
    for Process { pid, .. } in processes {
        for (inode, place) in mapped(*pid) {
            places.entry(inode).or_insert(place);
        }
        for (inode, place, has_lease) in memfds(*pid) {
            places.entry(inode).or_insert(place);
            leased.extend(has_lease.then_some(inode));
        }
    }
    places.retain(|inode, _| !leased.contains(inode));
    let opened = places.into_iter().filter_map(|(inode, place)| {
        let file = open(&place).ok()?;
        // Another one may have come there since.
        let about = file.metadata().ok()?;
        let same = about.ino() == inode && Some(about.dev()) == device();
        same.then_some((owner(inode), file))
    });
    opened.take(OBJECTS_MAX).collect()
}

/// Whose pages an object's are, in CRIU's numbers.
fn owner(inode: u64) -> PageOwner {
    PageOwner(inode << 8 | 2)
}

/// The file system of all of them.
fn device() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let file = memfd_create("ums-device", MFdFlags::MFD_CLOEXEC).ok()?;
        Some(File::from(file).metadata().ok()?.dev())
    })
}

fn mapped(pid: i32) -> Vec<(u64, PathBuf)> {
    let Some(device) = device() else {
        return Vec::new();
    };
    let text = mappings::text(pid, "maps").unwrap_or_default();
    let place = |of: Mapping| format!("/proc/{pid}/map_files/{:x}-{:x}", of.start, of.end);
    mappings::of_device(&text, device)
        .map(|(of, inode)| (inode, PathBuf::from(place(of))))
        .collect()
}

/// Those that are open, and whether somebody has a lease on them.
fn memfds(pid: i32) -> Vec<(u64, PathBuf, bool)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter();
    let places = entries.flatten().flatten().map(|entry| entry.path());
    let memfds = places.filter(|place| is_memfd(place));
    let found = memfds.filter_map(|place| {
        let about = fs::metadata(&place).ok()?;
        let info = place.to_string_lossy().replacen("/fd/", "/fdinfo/", 1);
        let has_lease = fs::read_to_string(info).map_or(true, |info| is_leased(&info));
        (Some(about.dev()) == device()).then(|| (about.ino(), place, has_lease))
    });
    found.collect()
}

/// Whether somebody has a lease on it, by its `fdinfo`.
fn is_leased(info: &str) -> bool {
    let mut locks = info.lines().filter(|line| line.starts_with("lock:"));
    locks.any(|line| line.split_whitespace().any(|word| word == "LEASE"))
}

fn is_memfd(place: &Path) -> bool {
    let target = fs::read_link(place);
    target.is_ok_and(|target| {
        target
            .as_os_str()
            .as_encoded_bytes()
            .starts_with(b"/memfd:")
    })
}

/// Opens it so that it does not count as read.
fn open(place: &Path) -> io::Result<File> {
    let flags = (OFlag::O_NOATIME | OFlag::O_NONBLOCK).bits();
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(place)
}

/// Where it has content, in order, as whole pages.
pub(super) fn data(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let page = PAGE_LEN as u64;
    let (mut all, mut at) = (Vec::new(), 0);
    loop {
        let from = match seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            // Nothing more.
            Err(rustix::io::Errno::NXIO) => return Ok(all),
            Err(errno) => return Err(errno.into()),
        };
        let to = seek(file, SeekFrom::Hole(from))?.next_multiple_of(page);
        let from = from - from % page;
        if to <= from {
            return Ok(all);
        }
        all.push((from, to));
        at = to;
    }
}

/// Reads whole pages; what lies behind the end of the object in its last page is zeros. Returns how many
/// bytes were read, in whole pages.
pub(super) fn read(file: &File, from: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], from + read as u64) {
            Ok(0) => break,
            Ok(len) => read += len,
            Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
            Err(error) => return Err(error),
        }
    }
    let whole = read.next_multiple_of(PAGE_LEN);
    buffer[read..whole].fill(0);
    Ok(whole)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_lease_is_seen() {
        let of = |lock| is_leased(&format!("pos:\t0\nflags:\t02\n{lock}mnt_id:\t29\n"));
        assert!(of("lock:\t1: LEASE  ACTIVE    WRITE 4711 00:01:77 0 EOF\n"));
        assert!(!of(
            "lock:\t1: FLOCK  ADVISORY  WRITE 4711 00:01:77 0 EOF\n"
        ));
        assert!(!of(""));
    }
}
