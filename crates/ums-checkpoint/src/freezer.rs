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
use crate::{link_remap, repair};

/// How long tasks may take to freeze. A task in uninterruptible sleep (a hung disk) takes longer.
pub const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks at the freezer, which has no event to wait for in version 1.
const LOOK_PAUSE: Duration = Duration::from_micros(200);
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

    /// Freezes every task, and returns when all are frozen.
    ///
    /// # Errors
    /// `TimedOut` when a task does not freeze; the group is thawed again then.
    pub fn freeze(&self) -> io::Result<()> {
        self.write(true)?;
        let end = Instant::now() + FREEZE_PATIENCE;
        while !self.is_frozen()? {
            if Instant::now() > end {
                self.thaw()?;
                let text = "a task of the service does not freeze: it is stuck in the kernel, \
                            for example on a disk or network mount that does not answer";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        Ok(())
    }

    /// Freezes every task before it executes another instruction of its program; does not wait for it.
    pub fn begin(&self) -> io::Result<()> {
        self.write(true)
    }

    /// Whether every task is frozen.
    pub fn is_frozen(&self) -> io::Result<bool> {
        if self.unified {
            let events = fs::read_to_string(self.dir.join("cgroup.events"))?;
            return Ok(events.lines().any(|line| line == "frozen 1"));
        }
        Ok(fs::read_to_string(self.dir.join("freezer.state"))?.trim() == "FROZEN")
    }

    /// Lets every task run on.
    pub fn thaw(&self) -> io::Result<()> {
        self.write(false)
    }

    /// Lets every task run on after a dump that may have been cut off: what CRIU had taken over of
    /// their connections is theirs again before the first of them runs.
    pub fn release(&self) -> io::Result<()> {
        // One that is stuck in the kernel does not run either.
        let _ = self.freeze();
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
            self.thaw()?;
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
