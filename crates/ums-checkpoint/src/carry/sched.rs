//! What the scheduler of CPUs and the one of disks keep of a thread (sched_setattr(2), ioprio_set(2)).

use std::io;
use std::mem::size_of;

use nix::libc;
use serde::{Deserialize, Serialize};

/// SCHED_DEADLINE (Linux `linux/sched.h`), whose numbers CRIU does not carry.
const DEADLINE: u32 = 6;
/// SCHED_FLAG_UTIL_CLAMP_MIN and SCHED_FLAG_UTIL_CLAMP_MAX: what else is in the structure counts.
const UTIL_CLAMP: u64 = 0x20 | 0x40;
/// IOPRIO_WHO_PROCESS, which means a thread (ioprio_set(2)).
const ONE_THREAD: libc::c_int = 1;

/// `struct sched_attr` as of Linux 5.3 (`linux/sched/types.h`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

impl Attr {
    /// Whether there is more to it than what CRIU carries: policy, nice value and priority. `usual` are
    /// those of a thread for which nobody has chosen anything.
    pub(super) fn is_more_than_criu_carries(&self, usual: &Self) -> bool {
        let rest = |attr: &Self| {
            let Self {
                flags,
                runtime,
                util_min,
                util_max,
                ..
            } = *attr;
            (flags, runtime, util_min, util_max)
        };
        // The slice of a thread with a priority is none.
        let is_prioritized = self.priority != 0 && self.flags == usual.flags;
        self.policy == DEADLINE || (!is_prioritized && rest(self) != rest(usual))
    }

    /// Whether the thread's timers have no slack: those of a priority don't (time(7)).
    pub(super) fn is_prompt(&self) -> bool {
        self.priority != 0 || self.policy == DEADLINE
    }
}

/// Of a thread.
#[expect(
    unsafe_code,
    reason = "sched_getattr(2) has no wrapper in what is there"
)]
pub(super) fn get(tid: i32) -> io::Result<Attr> {
    let mut attr = Attr::default();
    let len = size_of::<Attr>();
    // SAFETY: the kernel writes at most `len` bytes to the structure, which are there and may hold
    // anything; it outlives the call.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, len, 0) } {
        0 => Ok(attr),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets those of a thread.
#[expect(
    unsafe_code,
    reason = "sched_setattr(2) has no wrapper in what is there"
)]
pub(super) fn set(tid: i32, attr: &Attr, usual: &Attr) -> io::Result<()> {
    let mut attr = Attr {
        size: size_of::<Attr>() as u32,
        ..*attr
    };
    // A kernel that has no such bounds refuses the flags.
    if (attr.util_min, attr.util_max) != (usual.util_min, usual.util_max) {
        attr.flags |= UTIL_CLAMP;
    }
    // SAFETY: the kernel reads the structure, whose length is in it, during the call only.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The I/O priority of a thread; 0 where nobody has chosen one.
#[expect(unsafe_code, reason = "ioprio_get(2) has no wrapper in what is there")]
pub(super) fn io_priority(tid: i32) -> io::Result<i32> {
    // SAFETY: it takes numbers alone and writes no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_get, ONE_THREAD, tid) };
    match i32::try_from(answer) {
        Ok(priority @ 0..) => Ok(priority),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets it.
#[expect(unsafe_code, reason = "ioprio_set(2) has no wrapper in what is there")]
pub(super) fn set_io_priority(tid: i32, priority: i32) -> io::Result<()> {
    // SAFETY: it takes numbers alone.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, ONE_THREAD, tid, priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
