//! System calls that a process of the service makes at our wish, while it is stopped and none of its own
//! instructions is executed.
//!
//! What a process has been told of itself (`prctl(2)`, `pkey_alloc(2)`, `mseal(2)`, timers, `semop(2)`
//! with SEM_UNDO) the kernel tells, and lets be set, to the process alone. Before a dump and after a
//! restore its threads are held by ptrace(2), which lets their frozen group be thawed without that one
//! of them runs; in the first thread of a process a call is made then, by an instruction that is there
//! (the vDSO's), with all signals blocked and no seccomp filter in force. Registers, signal mask,
//! extended state and restartable sequence are put back afterwards.
//!
//! It takes a freezer of version 2: frozen tasks of version 1 can't be traced.

mod held;
mod raw;
mod section;
mod thread;

pub(crate) use held::{After, hold};
pub(crate) use section::Section;
pub(crate) use thread::{Inside, PAGE};

#[cfg(test)]
mod test;
