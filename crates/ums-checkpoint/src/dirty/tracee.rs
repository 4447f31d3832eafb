//! One thread of a running process, stopped for some ten microseconds to make system calls in our name
//! (ptrace(2)).
//!
//! The thread makes the call where its process has a `syscall` instruction already: nothing is written
//! into the process. Its signals wait meanwhile, and at the end it goes on with the call that we have
//! interrupted (see [`crate::restart`]). Should who holds it die in between, in a matter of microseconds, the
//! process is killed: the thread would go on as if its own call had returned what ours did.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::{Untracked, sys};
use crate::inside::Section;
use crate::restart;

/// How long a thread may take to stop: it only has to be scheduled.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// How long a call of ours may take. It waits for nothing, and the thread can't be let go of before.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_micros(20);
/// How often a thread may stop for something else than what we wait for: one stop each for SIGSTOP and
/// SIGCONT, and for the group stop that follows.
const OTHER_STOPS_MAX: usize = 16;
/// `PTRACE_O_SUSPEND_SECCOMP`: takes CAP_SYS_ADMIN, and a tracer without a filter.
const SUSPEND_SECCOMP: i32 = 1 << 21;
/// Code segment of a 64-bit program (`arch/x86/include/asm/segment.h`, `__USER_CS`).
const CS_NATIVE: u64 = 0x33;

/// A stopped thread. It goes on as if nothing had been when this is dropped.
pub(super) struct Tracee {
    thread: Pid,
    options: ptrace::Options,
    /// What it goes on with.
    registers: user_regs_struct,
    mask: u64,
    section: Option<Section>,
    /// Address of a `syscall` instruction in it.
    instruction: u64,
}

impl Tracee {
    /// Stops a thread. The calling thread must be the one that makes all calls and lets go of it.
    /// `instruction` finds a `syscall` instruction, once the thread can't begin another program any more.
    pub(super) fn stop(
        tid: i32,
        instruction: impl FnOnce(i32) -> Result<u64, Untracked>,
    ) -> Result<Self, Untracked> {
        let thread = Pid::from_raw(tid);
        let mut options = ptrace::Options::PTRACE_O_TRACESYSGOOD;
        let filtered = is_filtered(tid);
        if filtered {
            options |= ptrace::Options::from_bits_retain(SUSPEND_SECCOMP);
        }
        ptrace::seize(thread, options).map_err(|errno| not_seized(errno, filtered))?;
        let stopped = Self::take(thread, options, instruction);
        if stopped.is_err() {
            let _ = ptrace::detach(thread, None);
        }
        stopped
    }

    fn take(
        thread: Pid,
        options: ptrace::Options,
        instruction: impl FnOnce(i32) -> Result<u64, Untracked>,
    ) -> Result<Self, Untracked> {
        let tid = thread.as_raw();
        ptrace::interrupt(thread).map_err(refused("PTRACE_INTERRUPT"))?;
        let registers = interrupted(thread)?;
        if registers.cs != CS_NATIVE {
            return Err(Untracked::Compat);
        }
        match sys::dispatches(tid) {
            Ok(false) => {}
            Ok(true) => return Err(Untracked::Dispatches),
            Err(errno) => return Err(refused("PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG")(errno)),
        }
        let instruction = instruction(tid)?;
        let mask = sys::signal_mask(tid).map_err(refused("PTRACE_GETSIGMASK"))?;
        let tracee = Self {
            thread,
            options,
            registers,
            mask,
            section: Section::of(thread),
            instruction,
        };
        ptrace::setoptions(thread, options | ptrace::Options::PTRACE_O_EXITKILL)
            .map_err(refused("PTRACE_O_EXITKILL"))?;
        // Nothing is delivered while the registers are ours.
        sys::set_signal_mask(tid, u64::MAX).map_err(refused("PTRACE_SETSIGMASK"))?;
        Ok(tracee)
    }

    /// Has it make a system call; returns what the call returns, or its error.
    pub(super) fn call(&mut self, number: i64, arguments: [u64; 3]) -> Result<i64, Untracked> {
        let [first, second, third] = arguments;
        let registers = user_regs_struct {
            rip: self.instruction,
            rax: number.cast_unsigned(),
            // Not in a call: nothing is made again.
            orig_rax: u64::MAX,
            rdi: first,
            rsi: second,
            rdx: third,
            ..self.registers
        };
        ptrace::setregs(self.thread, registers).map_err(refused("PTRACE_SETREGS"))?;
        self.go_to(libc::PTRACE_SYSCALL_INFO_ENTRY)?;
        let result = self.go_to(libc::PTRACE_SYSCALL_INFO_EXIT)?;
        match result {
            -4095..=-1 => Err(Untracked::Refused {
                operation: "a system call in the process",
                errno: Errno::from_raw((-result) as i32),
            }),
            result => Ok(result),
        }
    }

    /// Lets it run to the next stop of this kind; returns what is in its first register then. A signal
    /// that can't be blocked, and a stop of the whole process, take their way first.
    fn go_to(&self, kind: u8) -> Result<i64, Untracked> {
        let end = Instant::now() + CALL_WITHIN;
        let mut signal = 0;
        for _ in 0..OTHER_STOPS_MAX {
            sys::resume(self.thread.as_raw(), libc::PTRACE_SYSCALL, signal)
                .map_err(refused("PTRACE_SYSCALL"))?;
            let info = wait(end, || ptrace::syscall_info(self.thread))?;
            if info.op == kind {
                let registers = ptrace::getregs(self.thread).map_err(refused("PTRACE_GETREGS"))?;
                return Ok(registers.rax.cast_signed());
            }
            signal = signal_to_deliver(self.thread);
        }
        Err(Untracked::NotStopped)
    }

    fn restore(&self) -> Result<(), Errno> {
        let mut registers = self.registers;
        if let Some(again) = restart::again_in_place(&registers) {
            registers.rax = again.cast_unsigned();
        }
        ptrace::setregs(self.thread, registers)?;
        if let Some(section) = self.section {
            section.put_back(self.thread)?;
        }
        sys::set_signal_mask(self.thread.as_raw(), self.mask)?;
        ptrace::setoptions(self.thread, self.options)
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // One that runs is on its way to our instruction, in a group that has been frozen meanwhile.
        let restored = self.restore().or_else(|_| {
            ptrace::interrupt(self.thread)?;
            let stopped = wait(Instant::now() + STOP_WITHIN, || {
                ptrace::getregs(self.thread)
            });
            stopped.map_err(|_| Errno::ESRCH)?;
            self.restore()
        });
        // A thread that has been killed meanwhile is not there any more.
        match restored {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::error!(tid = self.thread.as_raw(), %error, "registers are lost"),
        }
        // Whoever lets go of a stopped thread makes it look for signals and for a call to be made again.
        let _ = ptrace::detach(self.thread, None);
    }
}

/// Waits until a thread has stopped because it was interrupted, and not in the middle of taking a signal, which
/// would be lost: such a one takes it first, and stops then.
fn interrupted(thread: Pid) -> Result<user_regs_struct, Untracked> {
    let end = Instant::now() + STOP_WITHIN;
    for _ in 0..OTHER_STOPS_MAX {
        let registers = wait(end, || ptrace::getregs(thread))?;
        match signal_to_deliver(thread) {
            0 => return Ok(registers),
            signal => sys::resume(thread.as_raw(), libc::PTRACE_CONT, signal)
                .map_err(refused("PTRACE_CONT"))?,
        }
    }
    Err(Untracked::NotStopped)
}

/// The signal that a thread has stopped for, because it is about to be delivered; 0 where it stopped for
/// something else. A stop of the whole process has no such information (EINVAL), an event has its number in
/// the code's second byte, and a system call a code that no signal has (ptrace(2)).
fn signal_to_deliver(thread: Pid) -> i32 {
    match ptrace::getsiginfo(thread) {
        Ok(info) if is_ours(info.si_signo, info.si_code) => 0,
        Ok(info) => info.si_signo,
        Err(_) => 0,
    }
}

fn is_ours(signal: i32, code: i32) -> bool {
    code >> 8 > 0 || (signal, code) == (libc::SIGTRAP, libc::SIGTRAP | 0x80)
}

/// Waits until a thread has stopped for us. Whoever waits for its end (wait(2)) may be told of the stop
/// before we are, so that only the thread itself can be asked.
fn wait<T>(end: Instant, ask: impl Fn() -> nix::Result<T>) -> Result<T, Untracked> {
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(Errno::ESRCH) if Instant::now() < end => std::thread::sleep(LOOK_PAUSE),
            Err(_) => return Err(Untracked::NotStopped),
        }
    }
}

fn refused(operation: &'static str) -> impl Fn(Errno) -> Untracked {
    move |errno| Untracked::Refused { operation, errno }
}

fn not_seized(errno: Errno, filtered: bool) -> Untracked {
    match errno {
        Errno::EPERM if filtered => Untracked::Filtered,
        Errno::EPERM => Untracked::Traced,
        errno => refused("PTRACE_SEIZE")(errno),
    }
}

/// Whether a thread has a seccomp filter, or may make next to no calls at all (proc_pid_status(5)).
fn is_filtered(tid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() != "0")
}

#[cfg(test)]
mod test {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn who_is_stopped_does_not_outlive_its_tracer() {
        let mut child = Command::new("sleep").arg("3600").spawn().unwrap();
        let tid = child.id().cast_signed();
        let tracer = std::thread::spawn(move || {
            let stopped = Tracee::stop(tid, |_| Ok(0));
            std::mem::forget(stopped.map_err(|reason| reason.to_string()).unwrap());
        });
        tracer.join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn one_that_is_let_go_of_does() {
        let mut child = Command::new("sleep").arg("3600").spawn().unwrap();
        let tid = child.id().cast_signed();
        let tracer = std::thread::spawn(move || {
            drop(
                Tracee::stop(tid, |_| Ok(0))
                    .map_err(|reason| reason.to_string())
                    .unwrap(),
            );
        });
        tracer.join().unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
