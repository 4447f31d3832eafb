//! The critical section of a restartable sequence (rseq(2)) in which a thread was stopped.

use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::raw;

/// Where a thread's `struct rseq` has the pointer to its critical section.
const RSEQ_CS: u64 = 8;

/// A section that a stopped thread is in.
///
/// A thread that is stopped there goes on at the section's abort handler. The kernel sees to it on the way back, by
/// the pointer that the thread has left; where the thread was somewhere else meanwhile, to make a call of ours, the
/// kernel has cleared the pointer, and the section would be executed to its end as if nobody had interrupted it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section {
    at: u64,
    pointer: libc::c_long,
}

impl Section {
    /// The section of a thread that the calling thread has stopped; `None` outside of any, and where the kernel
    /// does not tell (before Linux 5.13).
    pub(crate) fn of(thread: Pid) -> Option<Self> {
        let at = raw::rseq(thread)? + RSEQ_CS;
        let pointer = ptrace::read(thread, at as ptrace::AddressType).ok()?;
        (pointer != 0).then_some(Self { at, pointer })
    }

    /// Has the thread, which is stopped and has its own registers again, be in the section again.
    pub(crate) fn put_back(self, thread: Pid) -> nix::Result<()> {
        ptrace::write(thread, self.at as ptrace::AddressType, self.pointer)
    }
}
