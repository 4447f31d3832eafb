//! The freeze that outlives CRIU, the agent and the Coordinator: the kernel's own.
//!
//! CRIU holds the tasks of a dump by ptrace and thaws the freezer cgroup meanwhile, so that a
//! killed CRIU would let them run on: it is [watched](crate::criu::watch), and they are frozen before
//! it is gone. At the end of the dump, while CRIU still holds every task and waits for our answer to
//! `post-dump`, the cgroup is frozen by us; from then on nothing but [`Freezer::thaw`] lets the
//! service run.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::{link_remap, repair, restart, stuck};

/// How long tasks may take to freeze where nobody says otherwise. A task in uninterruptible sleep (a
/// hung disk) takes longer.
pub const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks at the freezer, which has no event to wait for in version 1.
const LOOK_PAUSE: Duration = Duration::from_micros(200);
/// How long a service runs between two attempts to freeze it when no child of a vfork(2) is there.
const VFORK_PAUSE: Duration = Duration::from_millis(1);
/// How long killed tasks may take to be gone.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// The freezer of one service's control group.
#[derive(Debug, Clone)]
pub struct Freezer {
    cgroup: Cgroup,
    dir: PathBuf,
    unified: bool,
}

impl Freezer {
    /// The freezer of a group that exists.
    pub fn of(cgroup: &Cgroup) -> io::Result<Self> {
        let dir = cgroup.freezer_dir().ok_or(io::ErrorKind::Unsupported)?;
        let unified = dir.join("cgroup.freeze").exists();
        Ok(Self {
            cgroup: cgroup.clone(),
            dir,
            unified,
        })
    }

    /// Its directory, as CRIU's `freeze_cgroup` wants it.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Whether the group freezes as those of version 2 do: tasks that are frozen can be traced and
    /// killed, and CRIU can take over those that are stopped by a signal.
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// Freezes every task, and returns when all are frozen.
    ///
    /// # Errors
    /// `TimedOut` when a task does not freeze within this time; the group is thawed again then.
    pub fn freeze(&self, within: Duration) -> io::Result<()> {
        self.write(true)?;
        let end = Instant::now() + within;
        while !self.is_frozen()? {
            if Instant::now() > end {
                let who = stuck::describe(&stuck::unfrozen(&self.cgroup.processes()));
                self.thaw()?;
                let text = format!(
                    "the service does not freeze within {} s: {who}",
                    within.as_secs_f32()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        Ok(())
    }

    /// Freezes every task at a moment in which none of them waits for a child that it has made by
    /// vfork(2): CRIU can't stop one that does. Between two attempts the service runs.
    ///
    /// # Errors
    /// `TimedOut` when there was no such moment within this time; the group is thawed then.
    pub fn freeze_without_vfork(&self, within: Duration) -> io::Result<()> {
        let end = Instant::now() + within;
        loop {
            self.freeze(end.saturating_duration_since(Instant::now()))?;
            let waiting = stuck::waiting_for_vfork(&self.cgroup.processes());
            if waiting.is_empty() {
                return Ok(());
            }
            self.thaw()?;
            if Instant::now() + VFORK_PAUSE >= end {
                let text = format!(
                    "{}; a vfork(2) that lasts can't be moved",
                    stuck::describe(&waiting)
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(VFORK_PAUSE);
        }
    }

    /// Freezes every task before it executes another instruction of its program; does not wait for it.
    pub fn begin(&self) -> io::Result<()> {
        self.write(true)
    }

    /// Takes a process out of the group that freezes, and into this process's.
    ///
    /// # Errors
    /// Where control groups are not mounted as a whole, and when the kernel refuses.
    pub(crate) fn leave(&self, pid: u32) -> io::Result<()> {
        self.cgroup.leave_freezer(pid)
    }

    /// Lets every task run that nobody traces; does not look at calls that the freeze has interrupted.
    pub(crate) fn begin_thaw(&self) -> io::Result<()> {
        self.write(false)
    }

    /// Whether every task is frozen.
    pub fn is_frozen(&self) -> io::Result<bool> {
        if self.unified {
            let events = fs::read_to_string(self.dir.join("cgroup.events"))?;
            return Ok(events.lines().any(|line| line == "frozen 1"));
        }
        Ok(fs::read_to_string(self.dir.join("freezer.state"))?.trim() == "FROZEN")
    }

    /// Lets every task run on, with the system call that the freeze has interrupted (see `restart`).
    ///
    /// A frozen task of version 1 can't be traced: it may see `EINTR`.
    pub fn thaw(&self) -> io::Result<()> {
        if self.unified {
            restart::frozen(&self.cgroup.processes());
        }
        self.write(false)
    }

    /// Lets every task run on after a dump that may have been cut off: what CRIU had taken over of
    /// their connections is theirs again before the first of them runs.
    pub fn release(&self) -> io::Result<()> {
        // One that is stuck in the kernel does not run either.
        let _ = self.freeze(FREEZE_PATIENCE);
        match repair::end(&self.cgroup.processes()) {
            Ok(0) => {}
            Ok(sockets) => tracing::info!(sockets, "connections taken back from a cut off dump"),
            Err(error) => tracing::warn!(%error, "connections may be lost"),
        }
        link_remap::remove(&self.cgroup.processes());
        self.thaw()
    }

    fn write(&self, frozen: bool) -> io::Result<()> {
        let (file, value) = match (self.unified, frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        fs::write(self.dir.join(file), value)
    }

    /// Kills every task without letting one of them execute another instruction.
    ///
    /// A task frozen by version 1 takes no signal, SIGKILL neither, until it is thawed; so every
    /// task gets its SIGKILL first, and finds it when the thaw wakes it, before it returns to its
    /// program.
    pub fn kill(&self) -> io::Result<()> {
        let end = Instant::now() + DEATH_PATIENCE;
        loop {
            let tasks = self.cgroup.processes();
            for pid in &tasks {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            self.write(false)?;
            if tasks.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let text = format!("{} killed tasks do not go away", tasks.len());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}
