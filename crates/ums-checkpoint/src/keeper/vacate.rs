//! What stays of a container that an engine has made when its service has moved: its init, frozen and without memory.
//! The engine keeps all of its network as long as it has that process; nothing of the service is ever executed again.

use std::io;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::protocol::Phase;
use super::server::Shared;
use crate::cgroup::Cgroup;
use crate::dirty::mappings::{self, Line};
use crate::freezer::Freezer;
use crate::inside::{After, Inside, hold};

/// How long the others may take to be gone, and the init to be held.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks whether they are.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// MADV_DONTNEED_LOCKED (madvise(2), since Linux 5.18): also of memory that is locked.
const DONTNEED_LOCKED: u64 = 24;

/// Ends every process but the init, which stays frozen, and frees its memory.
///
/// # Errors
/// When it is not frozen, or others do not end. That memory could not be freed is told in the log: it goes with the
/// container.
pub(super) fn vacate(shared: &Shared) -> Result<(), String> {
    if shared.config.adopted.is_none() {
        return Err("the container is the keeper's own: nobody else keeps its network".to_owned());
    }
    let init = match shared.state() {
        state if state.phase == Phase::Frozen => state.init_pid,
        state => {
            return Err(format!(
                "a container that is {:?} is not frozen",
                state.phase
            ));
        }
    };
    let init = init.ok_or("the container has no process any more")?;
    let freezer = shared.container.freezer()?;
    if !freezer.is_unified() {
        // What is frozen by version 1 takes no signal and can't be traced: it stays as it is.
        return Ok(());
    }
    end_others(shared.container.cgroup(), init).map_err(|error| error.to_string())?;
    if let Err(error) = free(&freezer, init) {
        tracing::warn!(%error, "the container keeps its memory until it is removed");
    }
    Ok(())
}

fn end_others(cgroup: &Cgroup, init: i32) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut others = cgroup.processes();
        others.retain(|pid| *pid != init);
        if others.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            let text = format!("{} killed processes do not go away", others.len());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        for pid in others {
            // Gone is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

fn free(freezer: &Freezer, init: i32) -> io::Result<()> {
    let free = |end| free_inside(init, end);
    hold(freezer, &[init], PATIENCE, After::Frozen, free)?
}

/// Its own memory is emptied, what it shares is unmapped. What it would need to go on is gone afterwards: it never does.
fn free_inside(init: i32, end: Instant) -> io::Result<()> {
    let maps = mappings::text(init, "maps")?;
    let mut inside = Inside::enter(init, end)?;
    for line in maps.lines() {
        let line = Line::understood(line)?;
        let at = line.mapping.start;
        let length = line.mapping.end - at;
        let freed = match (line.is_private(), line.is_shared()) {
            (true, _) => inside.call(libc::SYS_madvise, &[at, length, DONTNEED_LOCKED]),
            (_, true) => inside.call(libc::SYS_munmap, &[at, length]),
            // The kernel's own.
            _ => continue,
        };
        if let Err(error) = freed {
            tracing::debug!(%error, "a mapping keeps its memory");
        }
    }
    inside.leave()
}
