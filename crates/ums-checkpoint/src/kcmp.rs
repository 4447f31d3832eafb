//! Which processes share what CRIU restores for each of them alone (`kcmp(2)`).

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::process::{Command, Stdio};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// What processes may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// The address space (CLONE_VM, also a `vfork` that is under way).
    Memory,
    /// Open descriptors (CLONE_FILES).
    Descriptors,
    /// Root, working directory and umask (CLONE_FS).
    Places,
    /// What is put back in semaphores when the process ends (CLONE_SYSVSEM).
    Undo,
}

impl Shared {
    /// KCMP_VM, KCMP_FILES, KCMP_FS and KCMP_SYSVSEM of `linux/kcmp.h`.
    fn number(self) -> nix::libc::c_int {
        match self {
            Self::Memory => 1,
            Self::Descriptors => 2,
            Self::Places => 3,
            Self::Undo => 6,
        }
    }
}

/// Whether two descriptors, each a process and a number in it, are one open file.
#[expect(unsafe_code, reason = "kcmp(2) has no wrapper in what is there")]
pub(crate) fn same_file(one: (i32, i32), other: (i32, i32)) -> bool {
    /// KCMP_FILE of `linux/kcmp.h`.
    const FILE: nix::libc::c_int = 0;
    let (number, fd, other_fd) = (nix::libc::SYS_kcmp, one.1, other.1);
    // SAFETY: kcmp takes numbers alone and writes no memory of ours.
    let answer = unsafe { nix::libc::syscall(number, one.0, other.0, FILE, fd, other_fd) };
    answer == 0
}

/// Pairs of these processes that share it: one pair for each process that shares with an earlier one.
/// A process that is gone, and a kernel that does not tell, shares nothing.
pub fn pairs(pids: &[i32], what: Shared) -> Vec<(i32, i32)> {
    let (mut sorted, mut found) = (Vec::<i32>::with_capacity(pids.len()), Vec::new());
    for pid in pids {
        // What has ended has neither any more: to the kernel all of those have the same nothing.
        if has_ended(*pid) {
            continue;
        }
        let place =
            sorted.binary_search_by(|other| compare(*other, *pid, what).unwrap_or(Ordering::Less));
        match place {
            Ok(at) => found.push((sorted[at], *pid)),
            Err(at) => sorted.insert(at, *pid),
        }
    }
    found
}

/// Whether two threads or processes certainly don't share it: they run on, and the kernel tells so.
pub fn differ(one: i32, other: i32, what: Shared) -> bool {
    let differ = || compare(one, other, what).is_some_and(Ordering::is_ne);
    // What ends meanwhile gives up what it shared.
    differ() && !has_ended(one) && !has_ended(other) && differ()
}

/// Those of these processes for which the kernel keeps a list of what is put back in semaphores when
/// they end (SEM_UNDO, `semop(2)`). It makes one when a process first asks for that, and with its
/// second thread. All of them, where the kernel does not tell.
///
/// # Errors
/// When a process to compare with can't be started.
pub fn with_undo_lists(pids: &[i32]) -> io::Result<Vec<i32>> {
    // To the kernel all that have none have the same nothing, and what has ended has none.
    let mut ended = Command::new("/proc/self/exe")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let without = ended.id() as i32;
    let id = Id::Pid(Pid::from_raw(without));
    let waited = waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    let has = |pid: &i32| compare(without, *pid, Shared::Undo) != Some(Ordering::Equal);
    let found = pids.iter().copied().filter(has).collect();
    ended.wait()?;
    waited?;
    Ok(found)
}

/// Whether a process, or its first thread, waits to be reaped or is gone.
fn has_ended(pid: i32) -> bool {
    let text = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, brackets too.
    let name_end = text.iter().rposition(|byte| *byte == b')');
    let state = name_end.and_then(|at| text.get(at + 2));
    matches!(state, None | Some(b'Z' | b'X'))
}

/// How the kernel orders the objects of two processes; `None` when it can't tell.
#[expect(unsafe_code, reason = "kcmp(2) has no wrapper in what is there")]
fn compare(one: i32, other: i32, what: Shared) -> Option<Ordering> {
    // SAFETY: kcmp takes numbers alone and writes no memory of ours.
    let answer =
        unsafe { nix::libc::syscall(nix::libc::SYS_kcmp, one, other, what.number(), 0, 0) };
    match answer {
        0 => Some(Ordering::Equal),
        1 => Some(Ordering::Less),
        2 => Some(Ordering::Greater),
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn threads_share_and_children_do_not() {
        let own = std::process::id() as i32;
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let other = child.id() as i32;
        let thread = std::thread::spawn(move || {
            let thread = nix::unistd::gettid().as_raw();
            [Shared::Memory, Shared::Places].map(|what| pairs(&[own, other, thread], what))
        });
        let found = thread.join().unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        for pairs in found {
            assert_eq!(pairs.len(), 1, "{pairs:?}");
            assert_eq!(pairs[0].0, own);
        }
        let apart = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
            let thread = nix::unistd::gettid().as_raw();
            [Shared::Descriptors, Shared::Places].map(|what| differ(own, thread, what))
        });
        assert_eq!(apart.join().unwrap(), [false, true]);
    }

    #[test]
    fn who_has_threads_has_an_undo_list() {
        let own = std::process::id() as i32;
        let thread = std::thread::spawn(std::thread::park);
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let found = with_undo_lists(&[own, child.id() as i32]);
        drop(child.stdin.take());
        child.wait().unwrap();
        thread.thread().unpark();
        thread.join().unwrap();
        assert_eq!(found.unwrap(), [own]);
    }

    #[test]
    fn what_has_ended_shares_nothing() {
        let ended = [(); 2].map(|()| {
            let child = Command::new("true").spawn().unwrap();
            while !has_ended(child.id() as i32) {
                std::thread::yield_now();
            }
            child
        });
        let pids: Vec<i32> = ended.iter().map(|child| child.id() as i32).collect();
        for what in [Shared::Memory, Shared::Places] {
            assert_eq!(compare(pids[0], pids[1], what), Some(Ordering::Equal));
            assert_eq!(pairs(&pids, what), []);
        }
        for mut child in ended {
            child.wait().unwrap();
        }
    }
}
