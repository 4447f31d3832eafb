//! System V semaphores that are put back when a process ends (SEM_UNDO, `semop(2)`).
//!
//! CRIU carries the semaphores and not what every process has to put back, which a process alone can be
//! asked: the keeper does it, where the freezer is of version 2. Where it is not, the kernel tells who
//! may have something, and whether anybody has ever operated on a semaphore.

use std::fs::File;
use std::io;
use std::thread;

use nix::sched::{CloneFlags, setns};
use ums_checkpoint::{cgroup, kcmp};
use ums_core::facts::{Loss, LossKind};

use super::process::Process;
use super::{loss, proc_path};

/// What every process may have to put back.
pub(super) fn losses(init: i32, tree: &[Process]) -> Vec<Loss> {
    // What can't be looked at may be there.
    if cgroup::is_unified_here() || sets_in(init).is_ok_and(|sets| sets == 0) {
        return Vec::new();
    }
    let pids: Vec<i32> = tree.iter().map(|process| process.pid).collect();
    let holders = kcmp::with_undo_lists(&pids).unwrap_or(pids);
    let of = |process: &&Process| holders.contains(&process.pid);
    let what = "what it has taken of a System V semaphore with SEM_UNDO, if anything, stays taken";
    let named = |process: &Process| loss(LossKind::SemaphoreUndo, process.inner, what);
    tree.iter().filter(of).map(named).collect()
}

/// Number of sets of semaphores in the IPC namespace of a process that somebody has operated on.
fn sets_in(init: i32) -> io::Result<usize> {
    let namespace = File::open(proc_path(init, "ns/ipc"))?;
    // A thread of its own, which ends with the namespace it has entered.
    let asking = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWIPC)?;
        let table = std::fs::read_to_string("/proc/sysvipc/sem")?;
        Ok(operated(&table))
    });
    let answer = asking.join();
    answer.unwrap_or_else(|_| Err(io::Error::other("the asking thread panicked")))
}

/// Of the lines of `/proc/sysvipc/sem` below the first, the ninth word is the time of the last operation.
fn operated(table: &str) -> usize {
    let times = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(8));
    times.filter(|time| *time != "0").count()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_sets_of_a_namespace_are_counted() {
        let here = sets_in(std::process::id() as i32);
        let table = std::fs::read_to_string("/proc/sysvipc/sem").unwrap();
        assert_eq!(here.unwrap(), operated(&table));
        let table = "key semid perms nsems uid gid cuid cgid otime ctime\n\
                     0 3 600 2 0 0 0 0 1700000000 1700000000\n 0 4 600 1 0 0 0 0 0 1700000000\n";
        assert_eq!(operated(table), 1);
    }
}
