//! Registers of threads in a frozen control group, by ptrace(2).
//!
//! A group of cgroup v2 lets its frozen tasks be traced: they stop for the tracer, and freeze again when
//! it lets go of them, without an instruction in between (`kernel/signal.c`, `do_freezer_trap`).

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::call::{Abi, Call, INTERRUPTED, RESTART_BY_NOTE, RESTART_UNLESS_HANDLED};

/// How long all threads together may take to stop for their tracer: each only has to be scheduled, which takes
/// microseconds.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_micros(50);
/// Code segment of a 32-bit program (`arch/x86/include/asm/segment.h`, `__USER32_CS`).
const CS_COMPAT: u64 = 0x23;

/// Lets the threads of frozen processes go on with the calls that a freeze, or CRIU, has interrupted,
/// once they are thawed. Returns how many there are. One that can't be traced in time is told in the log: it
/// sees `EINTR`.
pub(crate) fn frozen(pids: &[i32]) -> usize {
    // A thread of its own: with it the kernel lets go of whatever it still traces, and nothing is left
    // stopped (ptrace(2)).
    let mended = std::thread::scope(|scope| scope.spawn(|| mend_all(pids)).join());
    mended.unwrap_or_else(|_| {
        tracing::warn!("system calls under way may end with EINTR: tracing has failed");
        0
    })
}

fn mend_all(pids: &[i32]) -> usize {
    let end = Instant::now() + STOP_WITHIN;
    let threads = pids.iter().flat_map(|pid| threads(*pid));
    let mended = threads.filter(|(pid, tid)| {
        mend(*pid, *tid, end).unwrap_or_else(|error| {
            tracing::warn!(pid, tid, %error, "a system call under way may end with EINTR");
            false
        })
    });
    mended.count()
}

/// A process and each of its threads that is in a call which may have been interrupted.
fn threads(pid: i32) -> impl Iterator<Item = (i32, i32)> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(move |entry| {
            let tid = entry.file_name().to_str()?.parse().ok()?;
            let syscall = fs::read_to_string(entry.path().join("syscall")).ok()?;
            let number = syscall.split_whitespace().next()?.parse().ok()?;
            let known = |abi| Call::of(abi, number).is_some();
            (known(Abi::Native) || known(Abi::Compat)).then_some((pid, tid))
        })
}

/// Whether the thread was interrupted, and goes on now.
fn mend(pid: i32, tid: i32, end: Instant) -> nix::Result<bool> {
    if Instant::now() > end {
        return Err(Errno::ETIMEDOUT);
    }
    let thread = Pid::from_raw(tid);
    match ptrace::seize(thread, ptrace::Options::empty()) {
        Ok(()) => {}
        // It has ended.
        Err(Errno::ESRCH) => return Ok(false),
        Err(error) => return Err(error),
    }
    ptrace::interrupt(thread)?;
    let mut registers = stopped(thread, end)?;
    let again = again(&registers, pid == tid);
    let set = match again {
        Some(ax) => {
            registers.rax = ax.cast_unsigned();
            ptrace::setregs(thread, registers)
        }
        None => Ok(()),
    };
    ptrace::detach(thread, None)?;
    set.map(|()| again.is_some())
}

/// What the call of a thread that we have stopped, and nobody else, returns to the kernel for it to go on:
/// it has its note still.
pub(crate) fn again_in_place(registers: &user_regs_struct) -> Option<i64> {
    again(registers, false)
}

/// Whether a thread is in a call of which it would see that it was interrupted, or whose time begins anew.
pub(crate) fn is_in_call(pid: i32, tid: i32) -> bool {
    threads(pid).any(|(_, of)| of == tid)
}

/// Waits until a thread has stopped for us. Whoever waits for its end (wait(2)) may be told of the stop
/// before we are, so that only the thread itself can be asked.
fn stopped(thread: Pid, end: Instant) -> nix::Result<user_regs_struct> {
    loop {
        match ptrace::getregs(thread) {
            Err(Errno::ESRCH) if Instant::now() < end => std::thread::sleep(LOOK_PAUSE),
            result => return result,
        }
    }
}

/// What the call of a thread returns to the kernel for it to go on.
///
/// A call is made again rather than gone on with by the kernel's note: that would make it
/// restart_syscall(2), which at the next freeze does not tell any more what was called. CRIU's code in a
/// first thread ends with rt_sigreturn(2), which throws the note away; the other threads have theirs.
fn again(registers: &user_regs_struct, first: bool) -> Option<i64> {
    let abi = match registers.cs {
        CS_COMPAT => Abi::Compat,
        _ => Abi::Native,
    };
    let signed = |value: u64| match abi {
        Abi::Native => value.cast_signed(),
        Abi::Compat => i64::from((value as u32).cast_signed()),
    };
    let call = Call::of(abi, signed(registers.orig_rax))?;
    match (call, signed(registers.rax)) {
        (Call::Again | Call::Noted, INTERRUPTED) | (Call::Noted, RESTART_BY_NOTE) => {
            Some(RESTART_UNLESS_HANDLED)
        }
        (Call::NoteOnly, INTERRUPTED) if !first => Some(RESTART_BY_NOTE),
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use nix::libc;

    use super::*;

    fn interrupted(call: i64, result: i64, first: bool) -> Option<i64> {
        let mut registers = registers();
        registers.orig_rax = call.cast_unsigned();
        registers.rax = result.cast_unsigned();
        again(&registers, first)
    }

    fn registers() -> user_regs_struct {
        user_regs_struct {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            rbp: 0,
            rbx: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rax: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            orig_rax: 0,
            rip: 0,
            cs: 0x33,
            eflags: 0,
            rsp: 0,
            ss: 0,
            fs_base: 0,
            gs_base: 0,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
        }
    }

    #[test]
    fn a_call_is_made_again_in_every_thread() {
        for first in [true, false] {
            for call in [libc::SYS_epoll_wait, libc::SYS_nanosleep] {
                let made = interrupted(call, INTERRUPTED, first);
                assert_eq!(made, Some(RESTART_UNLESS_HANDLED));
            }
            let noted = interrupted(libc::SYS_poll, RESTART_BY_NOTE, first);
            assert_eq!(noted, Some(RESTART_UNLESS_HANDLED));
        }
        let restart = |first| interrupted(libc::SYS_restart_syscall, INTERRUPTED, first);
        assert_eq!(restart(false), Some(RESTART_BY_NOTE));
        assert_eq!(restart(true), None, "its note is gone");
    }

    #[test]
    fn what_was_not_interrupted_stays() {
        assert_eq!(interrupted(libc::SYS_nanosleep, 0, true), None);
        assert_eq!(interrupted(libc::SYS_close, INTERRUPTED, true), None);
        assert_eq!(interrupted(-1, INTERRUPTED, false), None);
    }
}
