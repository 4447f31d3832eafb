//! Open file descriptions of a service: each once, however many descriptors lead to it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::unix_queue;

/// Most descriptors of one service that are looked at: the kernel's bound for all of a system is of
/// this order.
const DESCRIPTORS_MAX: usize = 4 << 20;

/// Where an open file description is found: one of the descriptors that lead to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Place {
    /// Process id inside the service's PID namespace.
    pub pid: i32,
    /// Number of the descriptor.
    pub fd: i32,
    /// It is behind none, but on its way to whoever reads from that one (SCM_RIGHTS): which it is among those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flight: Option<u32>,
}

impl Place {
    /// Behind a descriptor.
    pub(super) const fn behind(pid: i32, fd: i32) -> Self {
        let flight = None;
        Self { pid, fd, flight }
    }
}

/// Kinds of descriptors that have something that CRIU does not carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// epoll_create(2).
    Epoll,
    /// eventfd(2).
    Event,
    /// inotify_init(2).
    Notify,
    /// timerfd_create(2).
    Timer,
    /// socket(2).
    Socket,
    /// An end of a pseudo-terminal (pty(7)).
    Terminal,
}

/// What the link of a descriptor below `/proc/PID/fd` tells of its kind.
fn kind(link: &str) -> Option<Kind> {
    match link {
        "anon_inode:[eventpoll]" => Some(Kind::Epoll),
        "anon_inode:[eventfd]" => Some(Kind::Event),
        "anon_inode:inotify" => Some(Kind::Notify),
        "anon_inode:[timerfd]" => Some(Kind::Timer),
        "/dev/ptmx" | "/dev/pts/ptmx" => Some(Kind::Terminal),
        _ if link.starts_with("/dev/pts/") => Some(Kind::Terminal),
        _ if link.starts_with("socket:") => Some(Kind::Socket),
        _ => None,
    }
}

/// Those that are on their way to who reads from a unix socket, the owner of which is frozen.
pub(super) fn in_flight(
    socket: &OwnedFd,
    through: Place,
) -> io::Result<Vec<(Place, Kind, OwnedFd)>> {
    let descriptors = unix_queue::descriptors(socket)?;
    let known = descriptors.into_iter().zip(0..).filter_map(|(it, number)| {
        let link = fs::read_link(format!("/proc/self/fd/{}", it.as_raw_fd())).ok()?;
        let kind = kind(&link.to_string_lossy())?;
        let flight = Some(number);
        Some((Place { flight, ..through }, kind, it))
    });
    Ok(known.collect())
}

/// Every description of a known kind. Sockets are named once; of other kinds, which have no number of
/// their own, each descriptor is named. A process that has ended has none.
pub(super) fn all(processes: &[Process]) -> io::Result<Vec<(Place, Kind)>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for process in processes {
        let entries = match fs::read_dir(format!("/proc/{}/fd", process.pid)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            // A process that ends meanwhile.
            let Ok(entry) = entry else { break };
            let (Ok(link), Some(fd)) = (fs::read_link(entry.path()), number(&entry.file_name()))
            else {
                continue;
            };
            let link = link.to_string_lossy();
            let Some(kind) = kind(&link) else { continue };
            if link.starts_with("socket:") && !seen.insert(link.into_owned()) {
                continue;
            }
            let pid = process.inner;
            found.push((Place::behind(pid, fd), kind));
            if found.len() > DESCRIPTORS_MAX {
                return Err(io::Error::other("the service has too many descriptors"));
            }
        }
    }
    Ok(found)
}

/// Every descriptor of a directory. A process that has ended has none.
pub(super) fn directories(processes: &[Process]) -> io::Result<Vec<Place>> {
    let mut found = Vec::new();
    for process in processes {
        let entries = match fs::read_dir(format!("/proc/{}/fd", process.pid)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries.flatten() {
            let is_directory = || fs::metadata(entry.path()).is_ok_and(|file| file.is_dir());
            let fd = number(&entry.file_name()).filter(|_| is_directory());
            let pid = process.inner;
            found.extend(fd.map(|fd| Place::behind(pid, fd)));
        }
    }
    Ok(found)
}

fn number(name: &OsStr) -> Option<i32> {
    name.to_str()?.parse().ok()
}

/// The way to the descriptors of a service's processes.
#[derive(Debug)]
pub(super) struct Reach {
    pidfds: BTreeMap<i32, OwnedFd>,
}

impl Reach {
    /// Holds on to the processes. One that has gone is missed when it is asked.
    pub(super) fn new(processes: &[Process]) -> Self {
        let open = |process: &Process| {
            let pid = Pid::from_raw(process.pid)?;
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            Some((process.inner, pidfd))
        };
        Self {
            pidfds: processes.iter().filter_map(open).collect(),
        }
    }

    /// A copy of a descriptor.
    ///
    /// # Errors
    /// `NotFound` when the process or the descriptor isn't there.
    pub(super) fn get(&self, place: Place) -> io::Result<OwnedFd> {
        let pidfd = self.pidfds.get(&place.pid).ok_or(io::ErrorKind::NotFound)?;
        let copy = pidfd_getfd(pidfd, place.fd, PidfdGetfdFlags::empty());
        let copy = copy.map_err(|error| match error {
            Errno::BADF | Errno::SRCH => io::Error::from(io::ErrorKind::NotFound),
            error => error.into(),
        })?;
        let Some(number) = place.flight else {
            return Ok(copy);
        };
        let mut descriptors = unix_queue::descriptors(&copy)?.into_iter();
        let found = descriptors.nth(number as usize);
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
