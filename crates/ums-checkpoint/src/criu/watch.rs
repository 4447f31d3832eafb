//! Watches a CRIU to its end, and does something in the moment before it.
//!
//! CRIU holds the tasks of a dump by ptrace. If it is killed the kernel lets all of them run on, at
//! once, before anybody has heard of its death: with sockets in repair mode, for one, so that a
//! thread which waits for data sees an error. So whoever started CRIU traces *it*: a process that
//! dies, of SIGKILL too, stops at `PTRACE_EVENT_EXIT` (ptrace(2)), while it still holds what it
//! holds. That is the moment in which its tasks can be frozen.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc;
use nix::sys::ptrace::{self, Options};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

/// How long the end of a killed process is waited for that somebody else collects.
const DEATH_PATIENCE: Duration = Duration::from_secs(5);

/// What is done when CRIU is about to end.
pub type LastMoment = Box<dyn Fn() + Send>;

/// A process that is watched, and collected when it has ended.
#[derive(Debug)]
pub struct Watched {
    id: u32,
    process: OwnedFd,
    watcher: Option<JoinHandle<()>>,
}

impl Watched {
    /// Watches a child from now on. Without a last moment nothing is traced.
    ///
    /// # Errors
    /// The child can't be traced: it is killed and collected then.
    pub fn new(mut child: Child, last_moment: Option<LastMoment>) -> io::Result<Self> {
        let id = child.id();
        let pid = Pid::from_child(&child);
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(error) => return Err(give_up(child, error.into())),
        };
        let Some(last_moment) = last_moment else {
            let watcher = std::thread::spawn(move || drop(child.wait()));
            let watcher = Some(watcher);
            return Ok(Self {
                id,
                process,
                watcher,
            });
        };
        // All of ptrace is asked by the thread that began it.
        let (tell, told) = mpsc::sync_channel(1);
        let watcher = std::thread::spawn(move || {
            let named = nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get());
            match ptrace::seize(named, Options::PTRACE_O_TRACEEXIT) {
                Ok(()) => {
                    let _ = tell.send(Ok(()));
                    trace(pid, &last_moment);
                    // Collected already, unless the trace was lost.
                    let _ = child.wait();
                }
                Err(error) => drop(tell.send(Err(give_up(child, error.into())))),
            }
        });
        told.recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        let watcher = Some(watcher);
        Ok(Self {
            id,
            process,
            watcher,
        })
    }

    /// Watches a process that somebody else has started, and will collect.
    ///
    /// # Errors
    /// It has ended already.
    pub fn of_another(id: u32) -> io::Result<Self> {
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            id,
            process: pidfd_open(pid, PidfdFlags::empty())?,
            watcher: None,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What ends it, for others to hold.
    pub fn killer(&self) -> io::Result<Killer> {
        self.process.try_clone().map(Killer)
    }

    /// Whether it is still there: not exited, not killed.
    pub fn is_alive(&self) -> bool {
        let mut death = [PollFd::new(&self.process, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut death, Some(&now)), Ok(0))
    }
}

/// Waits until a process has ended, whoever's child it is.
///
/// # Errors
/// When it can't be watched; one that has ended already has none of them.
pub fn wait(pid: i32) -> io::Result<()> {
    wait_for(pid, |_| true)
}

/// The same, of a process that is the right one: it is asked once its id can't be another's any more.
pub fn wait_for(pid: i32, is_right: impl Fn(i32) -> bool) -> io::Result<()> {
    let id = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    match pidfd_open(id, PidfdFlags::empty()) {
        Ok(_) if !is_right(pid) => Ok(()),
        Ok(process) => until_dead(&process, None).map(drop),
        Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until a process has ended; false when it has not within this time.
fn until_dead(process: &OwnedFd, within: Option<Duration>) -> io::Result<bool> {
    let within = within.map(|time| Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    });
    loop {
        let mut death = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut death, within.as_ref()) {
            Ok(ended) => return Ok(ended > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends a watched process from wherever it is held; says nothing of whether it still ran.
#[derive(Debug)]
pub struct Killer(OwnedFd);

impl Killer {
    /// Kills it, if it still runs.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }
}

impl Drop for Watched {
    /// Ends it if it still runs, and collects it.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        match self.watcher.take() {
            Some(watcher) => drop(watcher.join()),
            None => drop(until_dead(&self.process, Some(DEATH_PATIENCE))),
        }
    }
}

fn give_up(mut child: Child, error: io::Error) -> io::Error {
    let _ = child.kill();
    let _ = child.wait();
    error
}

/// Lets the tracee go on from every stop, until it has ended.
fn trace(pid: Pid, last_moment: &LastMoment) {
    loop {
        let status = match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => status.as_raw(),
            Ok(None) | Err(Errno::INTR) => continue,
            Err(_) => return,
        };
        let Some(stop) = Stop::of(status) else {
            return;
        };
        let gone_on = match stop {
            Stop::Exiting => {
                last_moment();
                go_on(libc::PTRACE_CONT, pid, 0)
            }
            Stop::Stopped => go_on(libc::PTRACE_LISTEN, pid, 0),
            Stop::Other => go_on(libc::PTRACE_CONT, pid, 0),
            Stop::Signal(signal) => go_on(libc::PTRACE_CONT, pid, signal),
        };
        if let Err(error) = gone_on {
            // It was killed in this stop; the next wait tells.
            tracing::debug!(%error, "CRIU did not go on from a stop");
        }
    }
}

/// Why a tracee stands still (ptrace(2)).
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// It is about to end.
    Exiting,
    /// By a signal that stops: it stays so until SIGCONT.
    Stopped,
    /// To be given this signal.
    Signal(i32),
    /// For its tracer to know.
    Other,
}

impl Stop {
    /// From what wait(2) tells; `None` when the tracee has ended.
    fn of(status: i32) -> Option<Self> {
        if !libc::WIFSTOPPED(status) {
            return None;
        }
        let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        Some(match (status >> 16, libc::WSTOPSIG(status)) {
            (libc::PTRACE_EVENT_EXIT, _) => Self::Exiting,
            (libc::PTRACE_EVENT_STOP, signal) if stops.contains(&signal) => Self::Stopped,
            (0, signal) => Self::Signal(signal),
            _ => Self::Other,
        })
    }
}

/// `PTRACE_CONT` with a signal, or `PTRACE_LISTEN`: the tracee stays stopped, and tells when it goes
/// on. Signals are numbers here: nix has no name for realtime ones.
#[expect(
    unsafe_code,
    reason = "nix has no wrapper for one of them, and none for realtime signals"
)]
fn go_on(request: libc::c_uint, pid: Pid, signal: i32) -> io::Result<()> {
    let pid = pid.as_raw_nonzero().get();
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests take no address, and as data a number; they touch no memory of ours.
    match unsafe { libc::ptrace(request, pid, nothing, libc::c_long::from(signal)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::time::Instant;

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("100")
            .process_group(0)
            .spawn()
            .unwrap()
    }

    fn eventually(what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn state(pid: u32) -> Option<String> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(stat.rsplit_once(") ")?.1.chars().take(1).collect())
    }

    #[test]
    fn the_last_moment_comes_before_the_end_of_a_killed_process() {
        for signal in ["-KILL", "-TERM", "-RTMIN"] {
            let child = sleeper();
            let pid = child.id();
            let was_there = Arc::new(AtomicBool::new(false));
            let seen = was_there.clone();
            let last_moment = move || {
                // Not yet a zombie, and its descriptors are still its own.
                let has_files = std::fs::read_dir(format!("/proc/{pid}/fd"));
                seen.store(has_files.is_ok_and(|files| files.count() > 0), SeqCst);
            };
            let watched = Watched::new(child, Some(Box::new(last_moment))).unwrap();
            assert!(watched.is_alive());
            let killed = Command::new("kill")
                .args([signal, &pid.to_string()])
                .status();
            assert_eq!(killed.unwrap().into_raw(), 0);
            eventually("its end", || !watched.is_alive());
            drop(watched);
            assert!(was_there.load(SeqCst), "{signal}");
            assert_eq!(state(pid), None, "it is collected");
        }
    }

    #[test]
    fn a_traced_process_takes_signals_as_any_other() {
        let child = sleeper();
        let pid = child.id();
        let watched = Watched::new(child, Some(Box::new(|| ()))).unwrap();
        let send = |signal: &str| {
            let sent = Command::new("kill")
                .args([signal, &pid.to_string()])
                .status();
            assert!(sent.unwrap().success());
        };
        send("-CHLD");
        send("-STOP");
        eventually("it is stopped", || {
            state(pid).is_some_and(|state| "Tt".contains(&state))
        });
        send("-CONT");
        eventually("it goes on", || {
            state(pid).is_some_and(|state| state == "S")
        });
        assert!(watched.is_alive());
        drop(watched);
        assert_eq!(state(pid), None);
    }

    #[test]
    fn an_untraced_one_is_ended_and_collected() {
        let watched = Watched::new(sleeper(), None).unwrap();
        let pid = watched.id();
        drop(watched);
        assert_eq!(state(pid), None);
    }
}
