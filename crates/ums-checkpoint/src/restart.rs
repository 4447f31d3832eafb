//! System calls that were under way at the freeze go on after it: no program sees `EINTR` unless a
//! handler of its own ran.
//!
//! A freeze interrupts every wait in the kernel. Most calls ask to be started again and nobody notices
//! (`-ERESTARTSYS` and its like). Two kinds are not:
//!
//! - calls that say `-EINTR` themselves whatever woke them (signal(7), "Interruption of system calls
//!   and library functions by stop signals": epoll_wait(2), sigtimedwait(2), semop(2), sockets with a
//!   time-out);
//! - calls that the kernel goes on with by a note of its own, `restart_block` (nanosleep(2), poll(2),
//!   futex(2) with a time-out; restart_syscall(2)). A restored thread has no such note, and CRIU ends
//!   the call with `-EINTR` (`compel/arch/x86/src/lib/infect.c`, `compel_get_task_regs`), in the image
//!   and in the processes that it has dumped.
//!
//! A call that is made again may need a page that is not there yet: [`futex`].
//!
//! [`images`] mends the image before a restore, [`frozen`] the processes before they are thawed.
//! [`again_in_place`] is for a thread that is stopped by us alone.

mod call;
mod core;
pub(crate) mod futex;
mod trace;

pub(crate) use core::images;
pub(crate) use trace::{again_in_place, frozen, is_in_call};
