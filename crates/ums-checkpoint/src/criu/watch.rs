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

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

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
        let pid = rustix::process::Pid::from_child(&child);
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
            let pid = Pid::from_raw(id.cast_signed());
            match ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT) {
                Ok(()) => {
                    let _ = tell.send(Ok(()));
                    trace(pid, &last_moment);
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

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.id
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

impl Drop for Watched {
    /// Ends it if it still runs, and collects it.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, rustix::process::Signal::KILL);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
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
        let gone_on = match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT)) => {
                last_moment();
                ptrace::cont(pid, None)
            }
            // Stopped by a signal that stops: it stays so until SIGCONT.
            Ok(WaitStatus::PtraceEvent(_, signal, libc::PTRACE_EVENT_STOP)) if stops(signal) => {
                listen(pid)
            }
            Ok(WaitStatus::PtraceEvent(..)) => ptrace::cont(pid, None),
            Ok(WaitStatus::Stopped(_, signal)) => ptrace::cont(pid, signal),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return,
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(_) => return,
        };
        if let Err(error) = gone_on {
            // It was killed in this stop; the next wait tells.
            tracing::debug!(%error, "CRIU did not go on from a stop");
        }
    }
}

/// `PTRACE_LISTEN`: the tracee stays stopped, and tells when it goes on.
#[expect(unsafe_code, reason = "nix has no wrapper for this request")]
fn listen(pid: Pid) -> nix::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: this request takes neither an address nor data, and touches no memory of ours.
    let done = unsafe { libc::ptrace(libc::PTRACE_LISTEN, pid.as_raw(), nothing, nothing) };
    Errno::result(done).map(drop)
}

fn stops(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU
    )
}
