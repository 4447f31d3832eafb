//! Our userfaultfd server: installs arrived pages in a restored service, while it already runs.
//!
//! CRIU's restore registers every range that may be late and sends us, over a unix socket, each
//! process's id and its userfaultfd (CRIU `criu/uffd.c`). From then on a touched page that is
//! missing stops its thread until we have installed it (kernel `admin-guide/mm/userfaultfd.rst`).
//! Pages are installed in the background too, those near the last fault first.
//!
//! A userfaultfd that is closed while pages are missing gives the process zeros: silent
//! corruption. So descriptors are closed only when a process has all its pages, and a guard
//! ([`crate::keeper`]) holds copies of them and kills the container if the keeper is lost.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;

use crate::criu::page_server::PAGE_LEN;
use crate::store::{Mapped, StoredExtent};

const PAGE: u64 = PAGE_LEN as u64;
/// Bytes installed at once in the background: long enough to be efficient, short enough that a
/// fault waits no longer than a few hundred microseconds.
const CHUNK: u64 = 256 * 1024;

/// Pages of one process that are still to be installed: run-time address to length and place.
#[derive(Debug, Clone, Default)]
struct Missing {
    ranges: BTreeMap<u64, (u64, u64)>,
}

impl Missing {
    fn from_extents(extents: &[StoredExtent]) -> Self {
        let range = |e: &StoredExtent| (e.address, (e.pages * PAGE, e.offset));
        Self {
            ranges: extents.iter().map(range).collect(),
        }
    }

    fn pages(&self) -> u64 {
        self.ranges.values().map(|(len, _)| len / PAGE).sum()
    }

    /// Takes what lies in `[start, start + len)` out, as (address, length, offset) pieces.
    fn take(&mut self, start: u64, len: u64) -> Vec<(u64, u64, u64)> {
        let end = start.saturating_add(len);
        let mut taken = Vec::new();
        let first = self
            .ranges
            .range(..=start)
            .next_back()
            .map_or(start, |(at, _)| *at);
        let keys: Vec<u64> = self.ranges.range(first..end).map(|(at, _)| *at).collect();
        for at in keys {
            let (range_len, offset) = self.ranges[&at];
            let (from, to) = (at.max(start), (at + range_len).min(end));
            if from >= to {
                continue;
            }
            self.ranges.remove(&at);
            if at < from {
                self.ranges.insert(at, (from - at, offset));
            }
            if to < at + range_len {
                self.ranges
                    .insert(to, (at + range_len - to, offset + (to - at)));
            }
            taken.push((from, to - from, offset + (from - at)));
        }
        taken
    }

    /// The next piece to install: at or after `hint`, else from the beginning; at most a chunk.
    fn next(&self, hint: u64) -> Option<(u64, u64, u64)> {
        let containing = self.ranges.range(..=hint).next_back();
        if let Some((at, (len, offset))) = containing.filter(|(at, (len, _))| *at + len > hint) {
            let skip = hint - at;
            return Some((hint, (len - skip).min(CHUNK), offset + skip));
        }
        let (at, (len, offset)) = self
            .ranges
            .range(hint..)
            .next()
            .or_else(|| self.ranges.iter().next())?;
        Some((*at, (*len).min(CHUNK), *offset))
    }

    fn put(&mut self, address: u64, len: u64, offset: u64) {
        self.ranges.insert(address, (len, offset));
    }

    fn remap(&mut self, from: u64, to: u64, len: u64) {
        for (address, len, offset) in self.take(from, len) {
            self.put(address - from + to, len, offset);
        }
    }
}

#[derive(Debug)]
struct Process {
    uffd: OwnedFd,
    missing: Missing,
    hint: u64,
    /// Pages whose fault the kernel would not let us answer yet, because an event comes first.
    waiting: Vec<u64>,
}

impl Process {
    fn new(uffd: OwnedFd, missing: Missing) -> Self {
        Self {
            uffd,
            missing,
            hint: 0,
            waiting: Vec::new(),
        }
    }
}

/// Serves the processes of one restored service.
#[derive(Debug)]
pub struct Server {
    source: Mapped,
    processes: Vec<Process>,
    /// After a fork two processes need the same stored pages, so that none is given back early.
    forked: bool,
}

/// Why a process can't be served any further; its container must be killed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("userfaultfd {operation} at {address:#x} failed")]
    Kernel {
        /// Which operation.
        operation: &'static str,
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The index points outside the stored pages.
    #[error("page {0:#x} is outside the stored pages")]
    Index(u64),
}

/// Why userfaultfd can't be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The kernel has none.
    #[error("this kernel has no userfaultfd (CONFIG_USERFAULTFD)")]
    Absent,
    /// It is there, and we may not have it.
    #[error(
        "userfaultfd is not permitted here: the agent needs CAP_SYS_PTRACE, and no seccomp profile \
         that forbids it"
    )]
    Forbidden,
    /// It can't tell of forks and mappings that change.
    #[error("this kernel's userfaultfd lacks what is needed ({0}): Linux 4.14 has it")]
    Features(Errno),
    /// Something else.
    #[error("userfaultfd can't be opened here ({0})")]
    Failed(Errno),
}

/// Tries whether this process can have a userfaultfd such as CRIU makes in the processes that it
/// restores. Its children have what it has.
pub fn probe() -> Result<(), Unusable> {
    let uffd = sys::open().map_err(|errno| match errno {
        Errno::ENOSYS => Unusable::Absent,
        Errno::EPERM | Errno::EACCES => Unusable::Forbidden,
        other => Unusable::Failed(other),
    })?;
    sys::agree(uffd.as_fd()).map_err(|errno| match errno {
        // To hear of forks needs CAP_SYS_PTRACE.
        Errno::EPERM => Unusable::Forbidden,
        other => Unusable::Features(other),
    })
}

/// What a server wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There are pages left to install.
    Busy,
    /// Every page is in: the descriptors may be closed.
    Done,
}

impl Server {
    /// A server with no process yet.
    pub fn new(source: Mapped) -> Self {
        Self {
            source,
            processes: Vec::new(),
            forked: false,
        }
    }

    /// Adds a process: its userfaultfd, and where its pages are.
    pub fn add(&mut self, uffd: OwnedFd, extents: &[StoredExtent]) {
        let missing = Missing::from_extents(extents);
        self.processes.push(Process::new(uffd, missing));
    }

    /// Pages still to be installed.
    pub fn pages_missing(&self) -> u64 {
        self.processes
            .iter()
            .map(|process| process.missing.pages())
            .sum()
    }

    /// The descriptors to wait on.
    pub fn descriptors(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.processes
            .iter()
            .map(|process| process.uffd.as_fd())
            .collect()
    }

    /// Answers every fault and event that waits. Returns the descriptors of processes forked.
    pub fn serve_events(&mut self) -> Result<Vec<OwnedFd>, Error> {
        let mut forks = Vec::new();
        let mut at = 0;
        while at < self.processes.len() {
            match self.serve_process(at, &mut forks)? {
                true => at += 1,
                false => drop(self.processes.swap_remove(at)),
            }
        }
        Ok(forks)
    }

    /// Serves one process's events; false when the process is gone.
    fn serve_process(&mut self, at: usize, forks: &mut Vec<OwnedFd>) -> Result<bool, Error> {
        while let Some(event) = sys::read_event(self.processes[at].uffd.as_fd())? {
            let process = &mut self.processes[at];
            match event {
                sys::Event::Fault(address) => {
                    let page = address & !(PAGE - 1);
                    process.hint = page;
                    process.waiting.push(page);
                }
                sys::Event::Fork(uffd) => {
                    self.forked = true;
                    forks.push(uffd.try_clone().map_err(|_| Error::Index(0))?);
                    let missing = process.missing.clone();
                    self.processes.push(Process::new(uffd, missing));
                }
                sys::Event::Remap { from, to, len } => process.missing.remap(from, to, len),
                sys::Event::Remove { start, end } => {
                    // The range reads as zeros from now on, which is the kernel's own doing once
                    // it is no longer ours.
                    process.missing.take(start, end - start);
                    if !sys::unregister(process.uffd.as_fd(), start, end - start)? {
                        return Ok(false);
                    }
                }
                sys::Event::Unmap { start, end } => {
                    process.missing.take(start, end - start);
                }
            }
        }
        self.answer_faults(at)
    }

    /// Answers the faults that wait. One that the kernel does not take yet goes on waiting: the
    /// event that has to come first is read in the next round. False: process is gone.
    fn answer_faults(&mut self, at: usize) -> Result<bool, Error> {
        for page in std::mem::take(&mut self.processes[at].waiting) {
            match self.install_page(at, page)? {
                sys::Installed::Gone => return Ok(false),
                sys::Installed::Bytes(0) => self.processes[at].waiting.push(page),
                sys::Installed::Bytes(_) => {}
            }
        }
        Ok(true)
    }

    /// Whether a fault waits for an event.
    pub fn is_waiting(&self) -> bool {
        self.processes
            .iter()
            .any(|process| !process.waiting.is_empty())
    }

    fn install_page(&mut self, at: usize, page: u64) -> Result<sys::Installed, Error> {
        let process = &mut self.processes[at];
        match process.missing.take(page, PAGE).first().copied() {
            Some((address, len, offset)) => self.install(at, address, len, offset),
            None => sys::zero(process.uffd.as_fd(), page, PAGE),
        }
    }

    /// Copies pages in; what the kernel would not take yet is put back.
    fn install(
        &mut self,
        at: usize,
        address: u64,
        len: u64,
        offset: u64,
    ) -> Result<sys::Installed, Error> {
        let source = self.source.address_of(offset, len);
        let source = source.ok_or(Error::Index(address))?;
        let process = &mut self.processes[at];
        let installed = sys::copy(process.uffd.as_fd(), address, source, len)?;
        if let sys::Installed::Bytes(done) = installed {
            if done < len {
                let missing = &mut process.missing;
                missing.put(address + done, len - done, offset + done);
            }
            if !self.forked && done > 0 {
                self.source.release(offset, done);
            }
        }
        Ok(installed)
    }

    /// Installs one chunk in the background.
    pub fn install_chunk(&mut self) -> Result<Progress, Error> {
        let next =
            self.processes.iter().enumerate().find_map(|(at, process)| {
                process.missing.next(process.hint).map(|piece| (at, piece))
            });
        let Some((at, (address, len, offset))) = next else {
            return Ok(Progress::Done);
        };
        let process = &mut self.processes[at];
        process.missing.take(address, len);
        process.hint = address + len;
        if self.install(at, address, len, offset)? == sys::Installed::Gone {
            self.processes.swap_remove(at);
        }
        Ok(Progress::Busy)
    }
}

/// The system calls. Layouts and numbers are those of `linux/userfaultfd.h`.
#[expect(
    unsafe_code,
    reason = "userfaultfd's ioctls and events have no safe wrapper that is kept"
)]
mod sys {
    use std::os::fd::BorrowedFd;

    use super::*;

    #[derive(Debug)]
    pub(super) enum Event {
        Fault(u64),
        Fork(OwnedFd),
        Remap { from: u64, to: u64, len: u64 },
        Remove { start: u64, end: u64 },
        Unmap { start: u64, end: u64 },
    }

    /// What became of an attempt: so many bytes are there now, or the process is gone.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Installed {
        Bytes(u64),
        Gone,
    }

    #[repr(C)]
    pub(super) struct Range {
        start: u64,
        len: u64,
    }

    #[repr(C)]
    pub(super) struct Copy {
        dst: u64,
        src: u64,
        len: u64,
        mode: u64,
        copy: i64,
    }

    #[repr(C)]
    pub(super) struct Zeropage {
        range: Range,
        mode: u64,
        zeropage: i64,
    }

    #[repr(C)]
    pub(super) struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }

    const MAGIC: u8 = 0xAA;
    nix::ioctl_readwrite!(
        /// UFFDIO_API
        uffdio_api, MAGIC, 0x3F, Api);
    nix::ioctl_read!(
        /// UFFDIO_UNREGISTER
        uffdio_unregister, MAGIC, 0x01, Range);
    nix::ioctl_read!(
        /// UFFDIO_WAKE
        uffdio_wake, MAGIC, 0x02, Range);
    nix::ioctl_readwrite!(
        /// UFFDIO_COPY
        uffdio_copy, MAGIC, 0x03, Copy);
    nix::ioctl_readwrite!(
        /// UFFDIO_ZEROPAGE
        uffdio_zeropage, MAGIC, 0x04, Zeropage);

    const EVENT_PAGEFAULT: u8 = 0x12;
    const EVENT_FORK: u8 = 0x13;
    const EVENT_REMAP: u8 = 0x14;
    const EVENT_REMOVE: u8 = 0x15;
    const EVENT_UNMAP: u8 = 0x16;

    /// Events of forks, and of mappings that move, are given back or go.
    const FEATURES: u64 = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 6);

    pub(super) fn open() -> Result<OwnedFd, Errno> {
        // SAFETY: the call takes flags alone and gives a new descriptor or an error.
        let fd = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_userfaultfd,
                nix::libc::O_CLOEXEC | nix::libc::O_NONBLOCK,
            )
        };
        let fd = Errno::result(fd)?;
        Ok(crate::message::own(fd as i32))
    }

    /// Agrees with the kernel on the protocol and on the events that are needed.
    pub(super) fn agree(uffd: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut api = Api {
            api: u64::from(MAGIC),
            features: FEATURES,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes one `Api`, which lives until the call returns.
        unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut api) }.map(drop)
    }

    pub(super) fn read_event(uffd: BorrowedFd<'_>) -> Result<Option<Event>, Error> {
        let mut message = [0_u8; 32];
        match nix::unistd::read(uffd, &mut message) {
            Ok(32) => {}
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(source) => {
                return Err(Error::Kernel {
                    operation: "read",
                    address: 0,
                    source,
                });
            }
        }
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 bytes"));
        let event = match message[0] {
            EVENT_PAGEFAULT => Event::Fault(word(16)),
            EVENT_FORK => Event::Fork(crate::message::own(word(8) as u32 as i32)),
            EVENT_REMAP => Event::Remap {
                from: word(8),
                to: word(16),
                len: word(24),
            },
            EVENT_REMOVE => Event::Remove {
                start: word(8),
                end: word(16),
            },
            EVENT_UNMAP => Event::Unmap {
                start: word(8),
                end: word(16),
            },
            _ => return Ok(None),
        };
        Ok(Some(event))
    }

    /// Whether an errno says that the process or its mapping is gone (ioctl_userfaultfd(2)).
    fn is_gone(errno: Errno) -> bool {
        matches!(errno, Errno::ESRCH | Errno::ENOSPC)
    }

    /// Turns the result of COPY or ZEROPAGE into what was installed.
    ///
    /// EAGAIN: an event must be read first; what is missing is tried again. EEXIST: the page is
    /// there already, installed for another thread, which still has to be woken. ENOENT: the
    /// mapping has changed, and an event tells how.
    fn installed(
        operation: &'static str,
        uffd: BorrowedFd<'_>,
        address: u64,
        len: u64,
        result: nix::Result<i32>,
        done: i64,
    ) -> Result<Installed, Error> {
        match result {
            Ok(_) => Ok(Installed::Bytes(len)),
            Err(errno) if is_gone(errno) => Ok(Installed::Gone),
            Err(Errno::EAGAIN) => Ok(Installed::Bytes(done.max(0) as u64)),
            Err(Errno::EEXIST) => {
                let mut range = Range {
                    start: address,
                    len: PAGE,
                };
                // SAFETY: `range` is a valid uffdio_range for the length of the call.
                let _ = unsafe { uffdio_wake(uffd.as_raw_fd(), &mut range) };
                Ok(Installed::Bytes((done.max(0) as u64).max(PAGE)))
            }
            Err(Errno::ENOENT) => Ok(Installed::Bytes((done.max(0) as u64).max(PAGE))),
            Err(source) => Err(Error::Kernel {
                operation,
                address,
                source,
            }),
        }
    }

    pub(super) fn copy(
        uffd: BorrowedFd<'_>,
        address: u64,
        source: u64,
        len: u64,
    ) -> Result<Installed, Error> {
        let mut argument = Copy {
            dst: address,
            src: source,
            len,
            mode: 0,
            copy: 0,
        };
        // SAFETY: `argument` is a valid uffdio_copy for the length of the call; `src` is a range
        // of our own mapping, checked by `Mapped::address_of`. The kernel writes to the traced
        // process's memory only, in ranges that it registered with this descriptor.
        let result = unsafe { uffdio_copy(uffd.as_raw_fd(), &mut argument) };
        installed("copy", uffd, address, len, result, argument.copy)
    }

    pub(super) fn zero(uffd: BorrowedFd<'_>, address: u64, len: u64) -> Result<Installed, Error> {
        let range = Range {
            start: address,
            len,
        };
        let mut argument = Zeropage {
            range,
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: `argument` is a valid uffdio_zeropage for the length of the call.
        let result = unsafe { uffdio_zeropage(uffd.as_raw_fd(), &mut argument) };
        installed("zeropage", uffd, address, len, result, argument.zeropage)
    }

    /// Gives a range back to the kernel; false when the process is gone.
    pub(super) fn unregister(uffd: BorrowedFd<'_>, start: u64, len: u64) -> Result<bool, Error> {
        let mut range = Range { start, len };
        // SAFETY: `range` is a valid uffdio_range for the length of the call.
        match unsafe { uffdio_unregister(uffd.as_raw_fd(), &mut range) } {
            Ok(_) => Ok(true),
            Err(Errno::ENOMEM) => Ok(false),
            // The range is not ours any more: unmapped or remapped meanwhile.
            Err(Errno::EINVAL) => Ok(true),
            Err(source) => Err(Error::Kernel {
                operation: "unregister",
                address: start,
                source,
            }),
        }
    }
}

#[cfg(test)]
mod test {
    #[test]
    fn the_probe_agrees_with_what_the_kernel_says_of_itself() {
        let there = std::path::Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists();
        match super::probe() {
            Ok(()) => assert!(there),
            Err(super::Unusable::Absent) => assert!(!there),
            // A container's profile may forbid it.
            Err(error) => assert!(error.to_string().contains("userfaultfd"), "{error}"),
        }
    }

    use super::*;

    fn missing() -> Missing {
        Missing::from_extents(&[
            StoredExtent {
                address: 0x1000,
                pages: 4,
                offset: 0,
            },
            StoredExtent {
                address: 0x9000,
                pages: 2,
                offset: 0x4000,
            },
        ])
    }

    #[test]
    fn taking_a_page_splits_its_range() {
        let mut missing = missing();
        assert_eq!(missing.take(0x2000, PAGE), [(0x2000, PAGE, 0x1000)]);
        assert_eq!(missing.take(0x2000, PAGE), []);
        assert_eq!(missing.pages(), 5);
        assert_eq!(
            missing.take(0, 0x10000),
            [
                (0x1000, PAGE, 0),
                (0x3000, 2 * PAGE, 0x2000),
                (0x9000, 2 * PAGE, 0x4000),
            ]
        );
        assert_eq!(missing.pages(), 0);
    }

    #[test]
    fn a_remap_moves_what_is_missing() {
        let mut missing = missing();
        missing.remap(0x2000, 0x20000, 2 * PAGE);
        assert_eq!(missing.take(0x20000, PAGE), [(0x20000, PAGE, 0x1000)]);
        assert_eq!(missing.pages(), 5);
    }

    #[test]
    fn the_next_piece_is_near_the_last_fault_and_wraps_around() {
        let missing = missing();
        assert_eq!(missing.next(0x2000), Some((0x2000, 3 * PAGE, 0x1000)));
        assert_eq!(missing.next(0x6000), Some((0x9000, 2 * PAGE, 0x4000)));
        assert_eq!(missing.next(0xf0000), Some((0x1000, 4 * PAGE, 0)));
    }
}
