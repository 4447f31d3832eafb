//! Asynchronous write-protection by userfaultfd, and PAGEMAP_SCAN (Linux 6.7).
//!
//! A page that a scan has told as written is protected in the same moment. The next write to it lifts the
//! protection without anybody being asked, and the scan after that tells it again. That holds of a
//! mapping as long as it stays registered: fork(2) and mremap(2) lose the registration, and a new mapping
//! has none, even between two that have it. So a scan is believed only where we have registered the
//! mapping ourselves, by this process's own userfaultfd, and where the kernel says that it still is
//! (`PM_SCAN_CHECK_WPASYNC`).
//!
//! A mapping of which a part alone is registered is two to the kernel, and mremap(2) of it, as realloc(3) makes,
//! fails with `EFAULT`. So mappings are registered while the service is frozen, for a moment and only where
//! there are new ones: while it runs, what was listed as a mapping may be a part of a larger one when it is
//! registered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::mappings::{self, Mapping, Maps};
use super::scan::{self, Found, Mode};
use super::{Moment, PAGE, Ranges, SETTLE, Seen, Tracker, Untracked, direct, inject, sys};
use crate::carry::Process;
use crate::freezer::Freezer;
use crate::kcmp;

/// Whether this kernel has it.
pub(super) fn is_here() -> bool {
    let agreed = sys::open().and_then(|uffd| sys::agree(uffd.as_fd()));
    let scanned = || {
        let pagemap = File::open("/proc/self/pagemap").ok()?;
        let nothing = Mapping {
            start: 0,
            end: PAGE,
        };
        scan::mapping(pagemap.as_fd(), nothing, Mode::Ask).ok()
    };
    agreed.is_ok() && scanned().is_some()
}

/// How long a service may take to freeze for new mappings.
const FREEZE_WITHIN: Duration = Duration::from_secs(2);

/// Tracks by write-protection. The default one never freezes anybody.
#[derive(Debug, Default)]
pub struct WriteProtect {
    /// Of the service's group. A freezer of version 1 is not used: waits would see `EINTR`.
    freezer: Option<Freezer>,
    watched: BTreeMap<i32, Watched>,
}

/// What we hold of one process.
#[derive(Debug)]
struct Watched {
    /// The process itself, whoever has its number later.
    pidfd: OwnedFd,
    /// Its userfaultfd, or why it has none.
    uffd: Result<OwnedFd, Untracked>,
    /// What was registered with it, and protected since.
    registered: Ranges,
    /// What was registered at this look: nobody has its pages yet.
    fresh: Ranges,
    /// Whether the userfaultfd belongs to memory that the process has no more (execve(2)).
    of_old_memory: bool,
}

impl Tracker for WriteProtect {
    fn look(&mut self, processes: &[Process], moment: Moment) -> io::Result<Vec<Seen>> {
        self.watched.retain(|_, watched| !watched.has_ended());
        let pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
        // Two that have one memory (a vfork(2) under way) would take each other's answers from the kernel.
        let shared = kcmp::pairs(&pids, kcmp::Shared::Memory);
        let sharing: BTreeSet<i32> = shared
            .into_iter()
            .flat_map(|(one, two)| [one, two])
            .collect();
        let mut all = Vec::new();
        for watched in self.watched.values_mut() {
            watched.fresh = Ranges::default();
        }
        if moment == Moment::Running {
            let alone = pids.iter().filter(|pid| !sharing.contains(pid));
            self.register(&alone.copied().collect::<Vec<_>>())?;
        }
        for process in processes {
            let shares = sharing.contains(&process.pid);
            all.extend(self.look_at(*process, moment, shares)?);
        }
        if moment == Moment::Running {
            std::thread::sleep(SETTLE);
        }
        Ok(all)
    }

    fn disarm(&mut self, processes: &[Process]) {
        for Process { pid, .. } in processes {
            if !self.watched.contains_key(pid)
                && let Err(reason) = inject::close_strays(*pid, &self.ours())
            {
                tracing::warn!(pid, %reason, "a forked process keeps a userfaultfd");
            }
        }
        // The kernel takes back registrations and protections when a userfaultfd is closed.
        self.watched.clear();
    }
}

impl WriteProtect {
    /// For the processes of one group, which is frozen for a moment at a look that finds new mappings.
    pub fn new(freezer: Freezer) -> Self {
        Self {
            freezer: freezer.is_unified().then_some(freezer),
            watched: BTreeMap::new(),
        }
    }

    /// Registers the mappings that are new.
    fn register(&mut self, pids: &[i32]) -> io::Result<()> {
        let mut lacking = Vec::new();
        for pid in pids {
            let maps = listed(*pid);
            // What can't be watched says why when it is looked at.
            if direct::reads(*pid, &maps).is_none() && self.watch(*pid, Moment::Running).is_ok() {
                let watched = self.watched.get(pid);
                lacking.extend(watched.filter(|it| it.lacks(&maps)).map(|_| *pid));
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        if let Some(freezer) = &self.freezer {
            freezer.freeze(FREEZE_WITHIN)?;
        }
        for pid in lacking {
            if let Some(watched) = self.watched.get_mut(&pid) {
                watched.register(pid);
            }
        }
        self.freezer.as_ref().map_or(Ok(()), Freezer::thaw)
    }

    /// Looks at one process; `None` when it, or the memory that it had, has gone meanwhile.
    fn look_at(
        &mut self,
        process: Process,
        moment: Moment,
        shares: bool,
    ) -> io::Result<Option<Seen>> {
        let seen = match self.look_at_memory(process, moment, shares) {
            Err(error) if is_gone(&error) => None,
            result => result?,
        };
        if seen.is_none() {
            // Nobody has its pages: they are new if it is seen again.
            self.watched.remove(&process.pid);
        }
        Ok(seen)
    }

    fn look_at_memory(
        &mut self,
        process: Process,
        moment: Moment,
        shares: bool,
    ) -> io::Result<Option<Seen>> {
        let Some(memory) = Memory::open(process.pid)? else {
            return Ok(None);
        };
        let mut seen = Seen::nothing(process);
        seen.untracked = if shares {
            Some(Untracked::SharesMemory)
        } else {
            let before = direct::reads(process.pid, &memory.maps);
            before.or_else(|| self.watch(process.pid, moment).err())
        };
        match (seen.untracked, self.watched.get_mut(&process.pid)) {
            (None, Some(watched)) => watched.look(&memory, moment, &mut seen)?,
            _ => memory.ask_all(&mut seen)?,
        }
        // A read that was under way when its pages were protected, and goes on when they are read, is
        // under way now.
        let after = || direct::reads(process.pid, &memory.maps);
        if let Some(reason) = seen.untracked.or_else(after) {
            self.forget(process.pid);
            seen.distrust(reason);
        }
        Ok(Some(seen))
    }

    /// Makes sure that a process is tracked; what is new in the last look is not.
    fn watch(&mut self, pid: i32, moment: Moment) -> Result<(), Untracked> {
        if let Some(watched) = self.watched.get(&pid) {
            return watched.uffd.as_ref().map(drop).map_err(|reason| *reason);
        }
        if moment == Moment::Frozen {
            return Err(Untracked::New);
        }
        let watched = Watched::begin(pid, &self.ours())?;
        let result = watched.uffd.as_ref().map(drop).map_err(|reason| *reason);
        self.watched.insert(pid, watched);
        result
    }

    /// What was protected of a process means nothing any more. Why it can't be tracked is remembered.
    fn forget(&mut self, pid: i32) {
        if self.watched.get(&pid).is_some_and(Watched::is_tracked) {
            self.watched.remove(&pid);
        }
    }

    fn ours(&self) -> Vec<BorrowedFd<'_>> {
        let uffds = self.watched.values().filter_map(|it| it.uffd.as_ref().ok());
        uffds.map(AsFd::as_fd).collect()
    }
}

impl Watched {
    fn begin(pid: i32, ours: &[BorrowedFd<'_>]) -> Result<Self, Untracked> {
        let id = Pid::from_raw(pid).ok_or(Untracked::NotStopped)?;
        let pidfd = pidfd_open(id, PidfdFlags::empty()).map_err(|errno| Untracked::Refused {
            operation: "pidfd_open(2)",
            errno: Errno::from_raw(errno.raw_os_error()),
        })?;
        let uffd = inject::userfaultfd(pid, pidfd.as_fd(), ours);
        Ok(Self {
            pidfd,
            uffd,
            registered: Ranges::default(),
            fresh: Ranges::default(),
            of_old_memory: false,
        })
    }

    /// Whether there are mappings that are not registered.
    fn lacks(&self, maps: &Maps) -> bool {
        let is_new = |it: &Mapping| !self.registered.contains(it.start, it.end);
        maps.private.iter().any(is_new)
    }

    /// Registers them, while nobody changes them. One that can't be is new at every look.
    fn register(&mut self, pid: i32) {
        let (Ok(uffd), Ok(pagemap)) = (&self.uffd, File::open(format!("/proc/{pid}/pagemap")))
        else {
            return;
        };
        for Mapping { start, end } in listed(pid).private {
            if self.registered.contains(start, end) {
                continue;
            }
            self.registered.remove(start, end);
            if sys::register(uffd.as_fd(), start, end).is_err() {
                continue;
            }
            let first = Mapping {
                start,
                end: start + PAGE,
            };
            match scan::mapping(pagemap.as_fd(), first, Mode::Check) {
                Ok(_) => self.fresh.insert(start, end),
                Err(_) => self.of_old_memory = true,
            }
        }
    }

    fn is_tracked(&self) -> bool {
        self.uffd.is_ok()
    }

    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }

    fn look(&mut self, memory: &Memory, moment: Moment, seen: &mut Seen) -> io::Result<()> {
        self.forget_unmapped(&memory.maps);
        // Two that touch are one mapping once both are registered.
        let mut ours = self.registered.clone();
        ours.extend(self.fresh.iter());
        for mapping in &memory.maps.private {
            match self.look_at(memory, *mapping, &ours, moment)? {
                Look::Tracked(found) => seen.add(&found),
                Look::New(found) => seen.add_written(&found),
            }
        }
        if self.of_old_memory {
            // Its program has been replaced: it gets another userfaultfd at the next look.
            seen.untracked = Some(Untracked::New);
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        memory: &Memory,
        mapping: Mapping,
        ours: &Ranges,
        moment: Moment,
    ) -> io::Result<Look> {
        let Mapping { start, end } = mapping;
        let mode = match moment {
            Moment::Running => Mode::Protect,
            Moment::Frozen => Mode::Check,
        };
        if ours.contains(start, end) {
            let was_registered = self.registered.contains(start, end);
            // After a failed scan nothing is known of what it has protected already.
            if let Ok(found) = scan::mapping(memory.pagemap.as_fd(), mapping, mode) {
                self.registered.insert(start, end);
                return Ok(match was_registered {
                    true => Look::Tracked(found),
                    false => Look::New(found),
                });
            }
        }
        // One that has come or grown since is registered at the next look.
        self.registered.remove(start, end);
        Ok(Look::New(memory.ask(mapping)?))
    }

    /// A mapping that comes where one was is another.
    fn forget_unmapped(&mut self, maps: &Maps) {
        let mapped: Ranges = maps.private.iter().map(|it| (it.start, it.end)).collect();
        let gone = self.registered.without(&mapped);
        for (start, end) in gone.iter() {
            self.registered.remove(start, end);
        }
    }
}

/// What was found of one mapping.
enum Look {
    /// It was tracked since the last look.
    Tracked(Found),
    /// It was not, or is not: all of it is written.
    New(Found),
}

/// The memory of a process as of one moment.
struct Memory {
    maps: Maps,
    pagemap: File,
}

impl Memory {
    /// `None` when the process has ended.
    fn open(pid: i32) -> io::Result<Option<Self>> {
        let text = mappings::text(pid, "maps")?;
        if text.is_empty() {
            return Ok(None);
        }
        let maps = mappings::parse(&text)?;
        // After the mappings: a program that is replaced in between has none of them registered.
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Some(Self { maps, pagemap }))
    }

    /// What a mapping holds.
    fn ask(&self, mapping: Mapping) -> io::Result<Found> {
        Ok(scan::mapping(self.pagemap.as_fd(), mapping, Mode::Ask)?)
    }

    fn ask_all(&self, seen: &mut Seen) -> io::Result<()> {
        for mapping in &self.maps.private {
            seen.add_written(&self.ask(*mapping)?);
        }
        Ok(())
    }
}

/// The mappings of a process as of now; none when it has ended.
fn listed(pid: i32) -> Maps {
    let text = mappings::text(pid, "maps").unwrap_or_default();
    // Who can't be understood is told so when it is looked at.
    mappings::parse(&text).unwrap_or_default()
}

/// Whether a process, or the memory that it had when a file of it was opened, is gone.
fn is_gone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ESRCH))
}
