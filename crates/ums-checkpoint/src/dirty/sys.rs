//! The system calls. Layouts and numbers are those of `linux/fs.h` (PAGEMAP_SCAN), `linux/userfaultfd.h`
//! and `linux/ptrace.h`.
#![expect(
    unsafe_code,
    reason = "PAGEMAP_SCAN, userfaultfd's ioctls and ptrace(2) of signal masks have no safe wrapper"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// `UFFD_USER_MODE_ONLY`: what everybody may have (userfaultfd(2)). Writes by the kernel are resolved
/// all the same, because in asynchronous mode nobody waits.
const UFFD_USER_MODE_ONLY: i32 = 1;
/// Flags of the userfaultfd that is made in a process.
pub(super) const UFFD_FLAGS: u64 =
    (libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY) as u64;
/// `UFFD_API`.
const UFFD_API: u64 = 0xAA;
/// `UFFD_FEATURE_WP_ASYNC`.
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_REGISTER_MODE_WP`.
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;

/// `PM_SCAN_WP_MATCHING`: what is told is write-protected at the same moment.
pub(super) const WP_MATCHING: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: a mapping that isn't tracked is an error.
pub(super) const CHECK_WPASYNC: u64 = 1 << 1;
/// Categories of pages (`PAGE_IS_…`).
pub(super) const IS_WRITTEN: u64 = 1 << 1;
/// A page of a file, or of shared memory.
pub(super) const IS_FILE: u64 = 1 << 2;
pub(super) const IS_PRESENT: u64 = 1 << 3;
pub(super) const IS_SWAPPED: u64 = 1 << 4;
pub(super) const IS_ZERO_FRAME: u64 = 1 << 5;
/// A guard of `MADV_GUARD_INSTALL` (told since Linux 6.15).
pub(super) const IS_GUARD: u64 = 1 << 8;

/// `PTRACE_GETSIGMASK`, `PTRACE_SETSIGMASK`, `PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG`.
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_GET_DISPATCH: u32 = 0x4211;

/// A run of pages of the same categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) categories: u64,
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    pub(super) flags: u64,
    /// Pages with one of these categories,
    pub(super) any_of: u64,
    /// and none of these,
    pub(super) none_of: u64,
    /// are told with these of their categories.
    pub(super) told: u64,
}

#[repr(C)]
pub(super) struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
nix::ioctl_readwrite!(
    /// PAGEMAP_SCAN
    pagemap_scan, b'f', 16, ScanArg);

#[repr(C)]
pub(super) struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
#[repr(C)]
pub(super) struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}
nix::ioctl_readwrite!(
    /// UFFDIO_API
    uffdio_api, 0xAA, 0x3F, Api);
nix::ioctl_readwrite!(
    /// UFFDIO_REGISTER
    uffdio_register, 0xAA, 0x00, Register);

/// Fills `regions` from `start` on; returns how many there are, and the address up to which everything
/// was looked at.
pub(super) fn scan(
    pagemap: BorrowedFd<'_>,
    (start, end): (u64, u64),
    query: Query,
    regions: &mut [Region],
) -> Result<(usize, u64), Errno> {
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        flags: query.flags,
        start,
        end,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: query.none_of,
        category_mask: query.none_of,
        category_anyof_mask: query.any_of,
        return_mask: query.told,
    };
    // SAFETY: `arg` is a valid pm_scan_arg for the length of the call, and the kernel writes at most
    // `vec_len` regions to `vec`, which is borrowed for as long.
    let found = unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut arg) }?;
    Ok((found as usize, arg.walk_end))
}

/// Agrees with the kernel on asynchronous write-protection.
pub(super) fn agree(uffd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut api = Api {
        api: UFFD_API,
        features: UFFD_FEATURE_WP_ASYNC,
        ioctls: 0,
    };
    // SAFETY: the kernel reads and writes one `Api`, which lives until the call returns.
    unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut api) }.map(drop)
}

/// Has writes to a range noted, in the process that has made the descriptor.
pub(super) fn register(uffd: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
    let mut argument = Register {
        start,
        len: end - start,
        mode: UFFDIO_REGISTER_MODE_WP,
        ioctls: 0,
    };
    // SAFETY: `argument` is a valid uffdio_register for the length of the call.
    unsafe { uffdio_register(uffd.as_raw_fd(), &raw mut argument) }.map(drop)
}

/// A userfaultfd of this process.
pub(super) fn open() -> Result<std::os::fd::OwnedFd, Errno> {
    // SAFETY: the call takes flags alone and gives a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, UFFD_FLAGS) };
    Ok(crate::message::own(Errno::result(fd)? as i32))
}

/// The signals that a stopped thread blocks.
pub(super) fn signal_mask(tid: i32) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes as many bytes as `addr` says to `data`, a mask of 64 signals.
    let result = unsafe { libc::ptrace(PTRACE_GETSIGMASK, tid, size_of::<u64>(), &raw mut mask) };
    Errno::result(result).map(|_| mask)
}

/// Sets them.
pub(super) fn set_signal_mask(tid: i32, mask: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as `addr` says from `data`.
    let result = unsafe { libc::ptrace(PTRACE_SETSIGMASK, tid, size_of::<u64>(), &raw const mask) };
    Errno::result(result).map(drop)
}

/// Has a stopped thread run on with `PTRACE_CONT` or `PTRACE_SYSCALL`, and take this signal first, if it is one
/// (nix knows no real-time signals).
pub(super) fn resume(tid: i32, request: u32, signal: i32) -> Result<(), Errno> {
    // SAFETY: these requests read no memory: `addr` is ignored, and `data` is a number.
    let result = unsafe { libc::ptrace(request, tid, 0, i64::from(signal)) };
    Errno::result(result).map(drop)
}

/// Whether the system calls of a stopped thread go to a handler of its own.
pub(crate) fn dispatches(tid: i32) -> Result<bool, Errno> {
    /// `struct ptrace_sud_config`.
    #[repr(C)]
    #[derive(Default)]
    struct Config {
        mode: u64,
        selector: u64,
        offset: u64,
        len: u64,
    }
    let mut config = Config::default();
    let (len, to) = (size_of::<Config>(), &raw mut config);
    // SAFETY: the kernel writes one such structure, whose length `addr` tells, to `data`.
    let result = unsafe { libc::ptrace(PTRACE_GET_DISPATCH, tid, len, to) };
    match Errno::result(result) {
        Ok(_) => Ok(config.mode != 0),
        // Before Linux 6.4 nobody could ask.
        Err(Errno::EIO) => Ok(false),
        Err(errno) => Err(errno),
    }
}
