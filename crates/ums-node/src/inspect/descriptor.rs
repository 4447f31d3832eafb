//! Which open descriptors a checkpoint can't carry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};
use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind};

use super::parse::{self, inode_of};
use super::place::{self, Deleted};
use super::process::Process;
use super::{obstacle, proc_file, proc_path, socket};

/// Kernel objects that CRIU carries, by their names. (`bpf-map` it carries in part: not here.)
const CARRIED: [&str; 7] = [
    "[eventfd]",
    "[eventpoll]",
    "[fanotify]",
    "[pidfd]",
    "[signalfd]",
    "[timerfd]",
    "inotify",
];

/// Adds the sockets it comes across to `sockets`: inode number → process id in the service.
pub(super) fn obstacles(
    process: &Process,
    mounts: &BTreeSet<u32>,
    sockets: &mut BTreeMap<u64, i32>,
    deleted: &mut Deleted,
) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for number in numbers(process.pid) {
        let path = proc_path(process.pid, &format!("fd/{number}"));
        let (Ok(link), Ok(metadata)) = (fs::read_link(&path), fs::metadata(&path)) else {
            continue; // Closed meanwhile.
        };
        let link = link.to_string_lossy();
        if let Some(inode) = inode_of(&link, "socket") {
            sockets.entry(inode).or_insert(process.inner);
            found.extend(socket::obstacle_of(&path, process.inner));
        } else if let Some((kind, detail)) = judge(&link, &metadata) {
            found.push(obstacle(kind, process.inner, detail));
        } else if link == "anon_inode:[pidfd]" {
            found.extend(pidfd(process, &number));
        } else if link == "anon_inode:[fanotify]" {
            found.extend(fanotify(process, &number));
        } else if link.starts_with("pipe:") {
            found.extend(pipe(process, &number));
        } else if link.starts_with('/') {
            deleted.note(&link, &metadata, process.inner);
            let kind = file(process, (&number, &path), (&link, &metadata), mounts);
            found.extend(kind.map(|kind| obstacle(kind, process.inner, link)));
        }
    }
    found
}

/// Files without a name, which are deleted ones afterwards: the first of the process is told.
pub(super) fn temporary(process: &Process) -> Option<Loss> {
    let number = numbers(process.pid).into_iter().find(|number| {
        let link = fs::read_link(proc_path(process.pid, &format!("fd/{number}")));
        let is_deleted = link.is_ok_and(|link| link.to_string_lossy().ends_with(" (deleted)"));
        let info = || proc_file(process.pid, &format!("fdinfo/{number}"));
        is_deleted && info().is_some_and(|info| parse::is_temporary(&info))
    })?;
    Some(Loss {
        kind: LossKind::TemporaryFile,
        pid: process.inner,
        detail: format!("descriptor {number} (O_TMPFILE): linkat(2) will not find it"),
    })
}

/// Numbers of the open descriptors; none once the process is gone.
pub(super) fn numbers(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(proc_path(pid, "fd")).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// Judges by the link's text and what `stat` says; sockets are judged elsewhere.
pub(super) fn judge(link: &str, metadata: &Metadata) -> Option<(ObstacleKind, String)> {
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return kernel_object(name).map(|kind| (kind, link.to_owned()));
    }
    let file_type = metadata.file_type();
    if file_type.is_char_device() {
        let device = (major(metadata.rdev()), minor(metadata.rdev()));
        return character_device(link, device).map(|kind| (kind, link.to_owned()));
    }
    if file_type.is_block_device() {
        return Some((ObstacleKind::Device, link.to_owned()));
    }
    // Shared between drivers of devices.
    link.starts_with("/dmabuf:")
        .then(|| (ObstacleKind::Gpu, link.to_owned()))
}

pub(super) fn kernel_object(name: &str) -> Option<ObstacleKind> {
    match name {
        "[io_uring]" => Some(ObstacleKind::IoUring),
        name if CARRIED.contains(&name) => None,
        _ => Some(ObstacleKind::Descriptor),
    }
}

/// Judges by the numbers of Linux's device list, and GPUs whose numbers are dynamic by their paths.
pub(super) fn character_device(path: &str, device: (u64, u64)) -> Option<ObstacleKind> {
    const DRM_MAJOR: u64 = 226;
    let is_gpu = device.0 == DRM_MAJOR
        || path.starts_with("/dev/nvidia")
        || path.starts_with("/dev/dri/")
        || path == "/dev/kfd";
    match device {
        _ if is_gpu => Some(ObstacleKind::Gpu),
        // null, zero, full, random, urandom
        (1, 3 | 5 | 7 | 8 | 9) => None,
        // tty, ptmx
        (5, 0 | 2) => None,
        // pseudo-terminals
        (136..=143, _) => None,
        _ => Some(ObstacleKind::Device),
    }
}

/// A pipe that keeps the writes apart (O_DIRECT).
fn pipe(process: &Process, number: &str) -> Option<Obstacle> {
    let info = proc_file(process.pid, &format!("fdinfo/{number}"))?;
    let packets = parse::descriptor_info(&info)?.direct;
    let what = format!("descriptor {number}");
    packets.then(|| obstacle(ObstacleKind::PacketPipe, process.inner, what))
}

/// A pidfd of one thread (PIDFD_THREAD, pidfd_open(2)), which CRIU refuses (its `pidfd.c`).
fn pidfd(process: &Process, number: &str) -> Option<Obstacle> {
    let info = proc_file(process.pid, &format!("fdinfo/{number}"))?;
    let of_thread = parse::descriptor_info(&info)?.exclusive;
    let what = format!("descriptor {number}, a pidfd that stands for one thread (PIDFD_THREAD)");
    of_thread.then(|| obstacle(ObstacleKind::Descriptor, process.inner, what))
}

/// Marks that tell files by handles (FAN_REPORT_FID and its like, `fanotify_init(2)`): at the destination
/// files have others.
fn fanotify(process: &Process, number: &str) -> Option<Obstacle> {
    const REPORT_HANDLES: u32 = 0x200 | 0x400 | 0x800 | 0x1000;
    let info = proc_file(process.pid, &format!("fdinfo/{number}"))?;
    let flags = parse::fanotify_flags(&info)?;
    let what = format!("descriptor {number} tells files by their handles (FAN_REPORT_FID)");
    (flags & REPORT_HANDLES != 0).then(|| obstacle(ObstacleKind::Fanotify, process.inner, what))
}

/// What is wrong with a descriptor that has a path.
fn file(
    process: &Process,
    (number, path): (&str, &Path),
    (link, metadata): (&str, &Metadata),
    mounts: &BTreeSet<u32>,
) -> Option<ObstacleKind> {
    let text = proc_file(process.pid, &format!("fdinfo/{number}"))?;
    let info = parse::descriptor_info(&text)?;
    // A file of memory only has no place.
    let has_a_place = !link.starts_with("/memfd:") && !mounts.is_empty();
    if has_a_place && !mounts.contains(&info.mount) {
        return Some(place::foreign(path));
    }
    if metadata.is_dir() && place::is_of_a_process(link) {
        return Some(ObstacleKind::ProcessDirectory);
    }
    if info.path_only && is_program(process.pid, metadata) {
        return Some(ObstacleKind::ProgramDescriptor);
    }
    None
}

/// Whether this is the file that the process runs. CRIU takes a descriptor of it that the process has for
/// the program itself.
fn is_program(pid: i32, file: &Metadata) -> bool {
    let program = fs::metadata(proc_path(pid, "exe"));
    program.is_ok_and(|program| (program.dev(), program.ino()) == (file.dev(), file.ino()))
}
