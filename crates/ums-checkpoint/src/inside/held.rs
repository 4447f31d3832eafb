//! All threads of a service held by ptrace(2) while its control group is thawed.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::raw;
use crate::freezer::Freezer;

/// Pause between two looks at a thread that is to stop; the first looks come without one.
const LOOK_PAUSE: Duration = Duration::from_micros(20);
/// Looks without a pause.
const QUICK_LOOKS: u32 = 50;

/// What becomes of the threads when they are let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// They are frozen again, as they were.
    Frozen,
    /// They run.
    Running,
}

/// Holds all threads of these processes, whose group is frozen or about to be, lets `work` make calls in them, and lets
/// go of them. `work` is given the moment at which it has to have ended.
///
/// # Errors
/// `Unsupported` with a freezer of version 1. Any other when a thread can't be held, or does not freeze
/// again, within this time. With [`After::Running`] the group is thawed in any case.
pub(crate) fn hold<T: Send>(
    freezer: &Freezer,
    pids: &[i32],
    within: Duration,
    after: After,
    work: impl FnOnce(Instant) -> T + Send,
) -> io::Result<T> {
    let done = on_a_thread(freezer, pids, within, after, work);
    match after {
        After::Frozen => freezer.freeze(within)?,
        After::Running => freezer.begin_thaw()?,
    }
    done
}

fn on_a_thread<T: Send>(
    freezer: &Freezer,
    pids: &[i32],
    within: Duration,
    after: After,
    work: impl FnOnce(Instant) -> T + Send,
) -> io::Result<T> {
    if !freezer.is_unified() {
        return Err(unsupported("this host has a freezer of version 1 alone"));
    }
    // It may have been begun a moment ago.
    freezer.freeze(within)?;
    // A thread of its own: with it the kernel lets go of whatever it still traces (ptrace(2)).
    let done = std::thread::scope(|scope| {
        scope
            .spawn(|| traced(freezer, pids, within, after, work))
            .join()
    });
    done.unwrap_or_else(|_| Err(io::Error::other("tracing has failed")))
}

pub(super) fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

fn traced<T>(
    freezer: &Freezer,
    pids: &[i32],
    within: Duration,
    after: After,
    work: impl FnOnce(Instant) -> T,
) -> io::Result<T> {
    let end = Instant::now() + within;
    let mut held = Vec::new();
    for tid in pids.iter().flat_map(|pid| threads(*pid)) {
        match ptrace::seize(tid, ptrace::Options::empty()) {
            Ok(()) => held.push(tid),
            // A process that has ended and was not waited for can't be traced.
            Err(Errno::ESRCH | Errno::EPERM) if has_ended(tid) => {}
            Err(error) => return Err(error.into()),
        }
        ptrace::interrupt(tid).or_else(gone)?;
    }
    held.retain(|tid| !has_ended(*tid));
    for tid in &held {
        stopped(*tid, end)?;
        raw::prepare(*tid)?;
    }
    freezer.begin_thaw()?;
    let answer = work(end);
    if after == After::Frozen {
        freezer.begin()?;
    }
    for tid in &held {
        ptrace::detach(*tid, None).or_else(gone)?;
    }
    if after == After::Frozen {
        held.iter().try_for_each(|tid| settled(*tid, end))?;
    }
    Ok(answer)
}

/// Waits until a thread that was let go of has frozen again, or stopped where a signal had stopped it. The
/// group counts what is traced as frozen, so it does not tell; and to a tracer that comes in between a
/// task which a signal has stopped looks otherwise than the one it waits for.
fn settled(tid: Pid, end: Instant) -> io::Result<()> {
    while !matches!(state(tid), None | Some(b'S' | b'T' | b'Z' | b'X')) {
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    Ok(())
}

fn gone(error: Errno) -> nix::Result<()> {
    match error {
        Errno::ESRCH => Ok(()),
        error => Err(error),
    }
}

fn threads(pid: i32) -> Vec<Pid> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

fn has_ended(tid: Pid) -> bool {
    matches!(state(tid), None | Some(b'Z' | b'X'))
}

/// The letter of its state (proc_pid_stat(5)); `None` when it is gone.
fn state(tid: Pid) -> Option<u8> {
    let text = fs::read(format!("/proc/{tid}/stat")).ok()?;
    // The name may hold anything, brackets too.
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    text.get(name_end + 2).copied()
}

/// Waits until a thread that is traced has stopped, and says where: `op` of its
/// `ptrace_syscall_info`. Whoever waits for its end (wait(2)) may be told of the stop before we are, so
/// that only the thread itself can be asked.
///
/// # Errors
/// `TimedOut` after `end`.
pub(super) fn stopped(thread: Pid, end: Instant) -> io::Result<u8> {
    let mut looks = 0;
    loop {
        match ptrace::syscall_info(thread) {
            Ok(info) => return Ok(info.op),
            Err(Errno::ESRCH) if Instant::now() < end => {}
            Err(Errno::ESRCH) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
        looks += 1;
        match looks {
            0..QUICK_LOOKS => std::thread::yield_now(),
            _ => std::thread::sleep(LOOK_PAUSE),
        }
    }
}
