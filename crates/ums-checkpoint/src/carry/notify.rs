//! What inotify(7) has to tell and nobody has read yet, and flags of watches that CRIU does not give again
//! (`criu/fsnotify.c`, `restore_one_inotify`).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use rustix::fs::inotify::{self, WatchFlags};
use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::descriptor::{self, Kind, Place, Reach};
use super::process::Process;
use super::{Lost, raw};
use crate::watches::Paths;

/// Flags of a watch beside its events.
const FLAGS: u32 = libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

/// A watch with such flags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Watch {
    place: Place,
    /// Its number.
    number: i32,
    /// Events and flags.
    mask: u32,
    /// Of what is watched, in the container; none of what is not on its root filesystem.
    path: Option<String>,
}

/// Looks at the queue and the watches of a frozen process.
pub(super) fn capture(
    queue: &OwnedFd,
    place: Place,
    paths: &Paths,
) -> io::Result<(Vec<Watch>, Option<Lost>)> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", queue.as_raw_fd()))?;
    let watches = text.lines().filter_map(parse);
    let flagged = watches.filter(|watch| watch.mask & FLAGS != 0);
    let named = flagged.map(|watch| Watch {
        place,
        number: watch.number,
        mask: watch.mask,
        path: paths.of(watch.watched).map(str::to_owned),
    });
    Ok((named.collect(), unread(queue, place)?))
}

fn unread(queue: &OwnedFd, place: Place) -> io::Result<Option<Lost>> {
    let Place { pid, fd, .. } = place;
    let bytes = raw::unread(queue)?;
    let what =
        format!("{bytes} bytes of events behind descriptor {fd} (inotify) that it has not read");
    Ok((bytes > 0).then(|| Lost::new(LossKind::UnreadEvents, pid, what)))
}

/// The queues of a service that runs in which something was not read; what vanishes meanwhile is passed
/// over.
///
/// # Errors
/// When the descriptors of a process can't be listed.
pub fn unread_events(processes: &[Process]) -> io::Result<Vec<(i32, i32)>> {
    let reach = Reach::new(processes);
    let all = descriptor::all(processes)?.into_iter();
    let queues = all.filter(|(_, kind)| *kind == Kind::Notify);
    let is_unread = |place: &Place| {
        let copy = reach.get(*place);
        copy.is_ok_and(|copy| raw::unread(&copy).is_ok_and(|bytes| bytes > 0))
    };
    let unread = queues.map(|(place, _)| place).filter(is_unread);
    Ok(unread.map(|Place { pid, fd, .. }| (pid, fd)).collect())
}

/// Directories that tell of what happens in them (F_NOTIFY, `fcntl(2)`), each by process id inside the
/// service and descriptor. The kernel tells it of none, but who asks a directory for that is its owner
/// (F_GETOWN) from then on, and there is no other reason for one.
///
/// # Errors
/// When the descriptors of a process can't be listed.
pub fn telling_directories(processes: &[Process]) -> io::Result<Vec<(i32, i32)>> {
    let reach = Reach::new(processes);
    let mut found = Vec::new();
    for place in descriptor::directories(processes)? {
        let Ok(copy) = reach.get(place) else {
            continue;
        };
        let is_owned = raw::owner(&copy).is_ok_and(|owner| owner != 0);
        found.extend(is_owned.then_some((place.pid, place.fd)));
    }
    Ok(found)
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    number: i32,
    mask: u32,
    watched: (u64, u64),
}

/// `inotify wd:1 ino:98f2a sdev:3d mask:4000002 ignored_mask:0 …`, all hexadecimal (`fs/notify/fdinfo.c`).
fn parse(line: &str) -> Option<Line> {
    let mut fields = line.strip_prefix("inotify ")?.split(' ');
    let mut field = |name: &str| {
        let field = fields.find_map(|field| field.strip_prefix(name));
        field.and_then(|field| field.strip_prefix(':'))
    };
    let number = field("wd")?;
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let inode = hexadecimal(field("ino")?)?;
    let device = hexadecimal(field("sdev")?)?;
    let mask = u32::from_str_radix(field("mask")?, 16).ok()?;
    Some(Line {
        number: i32::from_str_radix(number, 16).ok()?,
        mask,
        watched: (device, inode),
    })
}

/// Gives the watches of restored processes their flags again.
pub(super) fn apply(watches: &[Watch], reach: &Reach, processes: &[Process]) -> Vec<Lost> {
    let init = processes.iter().find(|process| process.inner == 1);
    let set = |watch: &Watch| {
        let Place { pid, fd, .. } = watch.place;
        let result = match init {
            Some(init) => watch.set(reach, init.pid),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let error = result.err()?;
        let number = watch.number;
        let detail = format!(
            "IN_EXCL_UNLINK or IN_ONESHOT of watch {number} behind descriptor {fd} (inotify): {error}"
        );
        Some(Lost::new(LossKind::Watch, pid, detail))
    };
    watches.iter().filter_map(set).collect()
}

impl Watch {
    /// A watch of what is watched already is changed, and keeps its number.
    fn set(&self, reach: &Reach, init: i32) -> io::Result<()> {
        let path = self.path.as_ref().ok_or_else(|| {
            io::Error::other("what it watches is not on the root filesystem of the service")
        })?;
        let queue = reach.get(self.place)?;
        let flags = WatchFlags::from_bits_retain(self.mask & (libc::IN_ALL_EVENTS | FLAGS));
        let path = format!("/proc/{init}/root{path}");
        let number = inotify::add_watch(&queue, path, flags)?;
        match number == self.number {
            true => Ok(()),
            false => {
                inotify::remove_watch(&queue, number)?;
                Err(io::Error::other("it watches something else now"))
            }
        }
    }
}

#[cfg(test)]
mod test {
    use rustix::fs::inotify::CreateFlags;

    use super::*;

    const PLACE: Place = Place::behind(1, 3);

    #[test]
    fn flags_of_a_watch_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let queue = inotify::init(CreateFlags::NONBLOCK).unwrap();
        let flags = WatchFlags::CREATE | WatchFlags::EXCL_UNLINK;
        inotify::add_watch(&queue, directory.path(), flags).unwrap();
        let (watches, unread) = capture(&queue, PLACE, &Paths::default()).unwrap();
        assert_eq!(watches.len(), 1);
        assert_eq!(watches[0].mask, flags.bits());
        assert_eq!(watches[0].number, 1);
        assert_eq!(unread, None);
        fs::write(directory.path().join("file"), "").unwrap();
        let (_, unread) = capture(&queue, PLACE, &Paths::default()).unwrap();
        assert_eq!(unread.unwrap().kind, LossKind::UnreadEvents);
        inotify::add_watch(&queue, directory.path(), WatchFlags::CREATE).unwrap();
        let (watches, _) = capture(&queue, PLACE, &Paths::default()).unwrap();
        assert_eq!(watches, []);
    }

    #[test]
    fn a_line_is_understood() {
        let line = "inotify wd:1f ino:98f2a sdev:3d mask:84000002 ignored_mask:0 fhandle-bytes:8";
        let wanted = Line {
            number: 31,
            mask: 0x8400_0002,
            watched: (0x3d, 0x98f2a),
        };
        assert_eq!(parse(line), Some(wanted));
        assert_eq!(parse("pos:\t0"), None);
    }
}
