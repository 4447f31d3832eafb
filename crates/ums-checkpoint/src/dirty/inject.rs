//! A userfaultfd of a process, made by itself and taken out of it, with nothing left behind.
//!
//! One thread of the process makes the calls. While the new descriptor is in the process another of its
//! threads may fork; the child has a copy then, which is found ([`stray`]) and closed when the child is
//! looked at for the first time.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::libc;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::mappings::{self, Mapping};
use super::tracee::Tracee;
use super::{Untracked, sys};
use crate::kcmp;

/// The instruction that makes a system call.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// How much of a process's code is searched for it, bytes. The kernel's own code in each process, which
/// is searched first, has it.
const SEARCHED_MAX: u64 = 8 << 20;
/// How a userfaultfd is called in `/proc/PID/fd`.
const LINK: &str = "anon_inode:[userfaultfd]";

/// A userfaultfd for the memory of a process. Those of `ours` that have got into it by a fork are closed.
pub(super) fn userfaultfd(
    pid: i32,
    pidfd: BorrowedFd<'_>,
    ours: &[BorrowedFd<'_>],
) -> Result<OwnedFd, Untracked> {
    let tid = thread(pid)?;
    let strays = stray(pid, ours);
    on_a_thread(|| {
        let mut tracee = Tracee::stop(tid, instruction)?;
        for fd in &strays {
            tracee.call(libc::SYS_close, [*fd as u64, 0, 0])?;
        }
        let fd = tracee.call(libc::SYS_userfaultfd, [sys::UFFD_FLAGS, 0, 0])?;
        let taken = pidfd_getfd(pidfd, fd as i32, PidfdGetfdFlags::empty());
        tracee.call(libc::SYS_close, [fd.cast_unsigned(), 0, 0])?;
        let taken = taken.map_err(|errno| refused("pidfd_getfd(2)", errno.into()))?;
        sys::agree(taken.as_fd()).map_err(|errno| Untracked::Refused {
            operation: "UFFDIO_API",
            errno,
        })?;
        Ok(taken)
    })
}

/// Closes those of `ours` that have got into a process by a fork.
pub(super) fn close_strays(pid: i32, ours: &[BorrowedFd<'_>]) -> Result<(), Untracked> {
    let strays = stray(pid, ours);
    if strays.is_empty() {
        return Ok(());
    }
    let tid = thread(pid)?;
    on_a_thread(|| {
        let mut tracee = Tracee::stop(tid, instruction)?;
        for fd in &strays {
            tracee.call(libc::SYS_close, [*fd as u64, 0, 0])?;
        }
        Ok(())
    })
}

/// In a thread of its own: with it the kernel lets go of whatever it still traces (ptrace(2)).
fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, Untracked> + Send,
) -> Result<T, Untracked> {
    let result = std::thread::scope(|scope| scope.spawn(work).join());
    result.unwrap_or(Err(Untracked::NotStopped))
}

/// Descriptors of a process that are the same open userfaultfd as one of ours.
fn stray(pid: i32, ours: &[BorrowedFd<'_>]) -> Vec<i32> {
    let own = std::process::id() as i32;
    let is_ours = |fd: i32| {
        let same = |our: &BorrowedFd<'_>| kcmp::same_file((pid, fd), (own, our.as_raw_fd()));
        ours.iter().any(same)
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().flatten();
    links
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == LINK))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| is_ours(*fd))
        .collect()
}

/// A thread of a process that can be stopped: one that is in no call whose time would begin anew, if there
/// is one.
fn thread(pid: i32) -> Result<i32, Untracked> {
    let read = fs::read_dir(format!("/proc/{pid}/task"));
    let entries = read.map_err(|error| refused("/proc/PID/task", error))?;
    let tids: Vec<i32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|tid| !has_ended(pid, *tid))
        .collect();
    let patient = tids
        .iter()
        .find(|tid| !crate::restart::is_in_call(pid, **tid));
    let any = patient.or(tids.first()).copied();
    any.ok_or(Untracked::NotStopped)
}

/// Whether a thread is a zombie, as the first one is that ends before the others.
fn has_ended(pid: i32, tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
    // The name before it may hold anything.
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_none_or(|state| state.starts_with(['Z', 'X']))
}

/// The address of an instruction that makes a system call.
fn instruction(pid: i32) -> Result<u64, Untracked> {
    let failed = |error| refused("/proc/PID/maps", error);
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(failed)?;
    let maps = mappings::parse(&text).map_err(failed)?;
    let memory = fs::File::open(format!("/proc/{pid}/mem")).map_err(failed)?;
    let mut left = SEARCHED_MAX;
    for mapping in maps.executable {
        let len = (mapping.end - mapping.start).min(left);
        left -= len;
        if let Some(at) = find(&memory, mapping, len) {
            return Ok(at);
        }
    }
    Err(refused(
        "to find a system call in its code",
        Errno::ENOENT.into(),
    ))
}

fn find(memory: &fs::File, mapping: Mapping, len: u64) -> Option<u64> {
    let mut code = vec![0; len as usize];
    let read = memory.read_at(&mut code, mapping.start).ok()?;
    let at = code[..read].windows(2).position(|two| two == SYSCALL)?;
    Some(mapping.start + at as u64)
}

fn refused(operation: &'static str, error: std::io::Error) -> Untracked {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    Untracked::Refused { operation, errno }
}
