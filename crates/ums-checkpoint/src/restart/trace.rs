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

/// How long a frozen thread may take to stop for its tracer: it only has to be scheduled.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_micros(50);
/// Code segment of a 32-bit program (`arch/x86/include/asm/segment.h`, `__USER32_CS`).
const CS_COMPAT: u64 = 0x23;

/// Lets the threads of frozen processes go on with the calls that a freeze, or CRIU, has interrupted,
/// once they are thawed. Returns how many there are. One that can't be traced is told in the log: it
/// sees `EINTR`.
pub(crate) fn frozen(pids: &[i32]) -> usize {
    let threads = pids.iter().flat_map(|pid| threads(*pid));
    let mended = threads.filter(|(pid, tid)| {
        let Ok(mended) = mend(*pid, *tid).inspect_err(|error| {
            tracing::warn!(pid, tid, %error, "a system call under way may end with EINTR");
        }) else {
            return false;
        };
        mended
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
fn mend(pid: i32, tid: i32) -> nix::Result<bool> {
    let thread = Pid::from_raw(tid);
    match ptrace::seize(thread, ptrace::Options::empty()) {
        Ok(()) => {}
        // It has ended.
        Err(Errno::ESRCH) => return Ok(false),
        Err(error) => return Err(error),
    }
    ptrace::interrupt(thread)?;
    let mut registers = stopped(thread)?;
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

/// Waits until a thread has stopped for us. Whoever waits for its end (wait(2)) may be told of the stop
/// before we are, so that only the thread itself can be asked.
fn stopped(thread: Pid) -> nix::Result<user_regs_struct> {
    let end = Instant::now() + STOP_WITHIN;
    loop {
        match ptrace::getregs(thread) {
            Err(Errno::ESRCH) if Instant::now() < end => std::thread::sleep(LOOK_PAUSE),
            result => return result,
        }
    }
}

/// What the call of a thread returns to the kernel for it to go on.
///
/// CRIU's code in a first thread ends with rt_sigreturn(2), which throws away the kernel's note; the
/// other threads have theirs.
fn again(registers: &user_regs_struct, first: bool) -> Option<i64> {
    let abi = match registers.cs {
        CS_COMPAT => Abi::Compat,
        _ => Abi::Native,
    };
    let signed = |value: u64| match abi {
        Abi::Native => value.cast_signed(),
        Abi::Compat => i64::from((value as u32).cast_signed()),
    };
    if signed(registers.rax) != INTERRUPTED {
        return None;
    }
    match (Call::of(abi, signed(registers.orig_rax))?, first) {
        (Call::Again, _) | (Call::Noted, true) => Some(RESTART_UNLESS_HANDLED),
        (Call::Noted | Call::NoteOnly, false) => Some(RESTART_BY_NOTE),
        (Call::NoteOnly, true) => None,
    }
}
