//! Which tasks don't come to a halt, and why: by what the kernel tells of each (proc(5)).

use std::fs;

/// The most tasks that a message names.
const NAMED_MAX: usize = 4;
/// CLONE_VFORK, of clone(2).
const CLONE_VFORK: u64 = 0x4000;

/// A task that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Process id inside its PID namespace.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// What it waits for, for people.
    pub why: &'static str,
}

/// Those of these processes that wait for a child which they have made by vfork(2).
pub fn waiting_for_vfork(pids: &[i32]) -> Vec<Task> {
    tasks(pids, |dir, state| {
        let waits = state == 'D' && is_vfork(dir);
        waits.then_some("waits for a child that it has made by vfork(2)")
    })
}

/// Those that run although their group is to be frozen.
pub(crate) fn unfrozen(pids: &[i32]) -> Vec<Task> {
    tasks(pids, |dir, state| match state {
        'D' if is_vfork(dir) => Some("waits for a child that it has made by vfork(2)"),
        'D' => Some(
            "is stuck in the kernel, for example on a disk or network mount that does not answer",
        ),
        'R' => Some("goes on executing"),
        _ => None,
    })
}

/// Those that a signal has stopped (job control).
pub fn stopped(pids: &[i32]) -> Vec<Task> {
    tasks(pids, |_, state| {
        (state == 'T').then_some("is stopped by a signal")
    })
}

/// Those that CRIU, which is this process, has not stopped.
pub(crate) fn untraced(pids: &[i32], criu: u32) -> Vec<Task> {
    let traced = format!("TracerPid:\t{criu}");
    tasks(pids, |dir, state| {
        let status = fs::read_to_string(format!("{dir}/status")).unwrap_or_default();
        let is_traced = status.lines().any(|line| line == traced);
        (!is_traced && state != 'Z').then_some("could not be stopped by CRIU")
    })
}

/// The tasks in words.
pub fn describe(tasks: &[Task]) -> String {
    if tasks.is_empty() {
        return "no task of it can be blamed".to_owned();
    }
    let named = tasks.iter().take(NAMED_MAX).map(|task| {
        let Task { pid, name, why } = task;
        format!("process {pid} (`{name}`) {why}")
    });
    let mut text = named.collect::<Vec<_>>().join(", ");
    if tasks.len() > NAMED_MAX {
        text.push_str(&format!(", and {} more", tasks.len() - NAMED_MAX));
    }
    text
}

/// Every thread of the processes for which `judge`, given its directory and its state, has a reason;
/// one for each process.
fn tasks(pids: &[i32], judge: impl Fn(&str, char) -> Option<&'static str>) -> Vec<Task> {
    let mut found = Vec::new();
    for pid in pids {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        for thread in threads.filter_map(Result::ok) {
            let dir = thread.path().display().to_string();
            let stat = fs::read_to_string(format!("{dir}/stat")).unwrap_or_default();
            let Some((name, state)) = name_and_state(&stat) else {
                continue;
            };
            if let Some(why) = judge(&dir, state) {
                let name = name.to_owned();
                let pid = inner_id(*pid);
                found.push(Task { pid, name, why });
                break;
            }
        }
    }
    found
}

fn name_and_state(stat: &str) -> Option<(&str, char)> {
    let (front, back) = stat.rsplit_once(") ")?;
    let name = front.split_once(" (")?.1;
    Some((name, back.chars().next()?))
}

/// The system call in which a task is (`/proc/PID/syscall`): vfork(2), or clone(2) and clone3(2) with
/// CLONE_VFORK. Of clone3 the flags are in the task's memory; what it waits for tells as well.
fn is_vfork(dir: &str) -> bool {
    let call = fs::read_to_string(format!("{dir}/syscall")).unwrap_or_default();
    let mut words = call.split(' ');
    let number = words.next().and_then(|word| word.parse::<i64>().ok());
    let first = words.next().and_then(|word| word.strip_prefix("0x"));
    let first = first.and_then(|word| u64::from_str_radix(word, 16).ok());
    match number {
        Some(nix::libc::SYS_vfork | nix::libc::SYS_clone3) => true,
        Some(nix::libc::SYS_clone) => first.is_some_and(|flags| flags & CLONE_VFORK != 0),
        _ => false,
    }
}

fn inner_id(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inner = ids.and_then(|ids| ids.split_whitespace().next_back()?.parse().ok());
    inner.unwrap_or(pid)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        assert_eq!(
            name_and_state("7 (od) d S \\ (x) D 1 7"),
            Some(("od) d S \\ (x", 'D'))
        );
        assert_eq!(name_and_state(""), None);
    }

    #[test]
    fn a_few_are_named_and_the_others_counted() {
        let task = |pid| Task {
            pid,
            name: "x".to_owned(),
            why: "waits",
        };
        let tasks: Vec<Task> = (1..=6).map(task).collect();
        let text = describe(&tasks);
        assert!(
            text.starts_with("process 1 (`x`) waits, process 2"),
            "{text}"
        );
        assert!(text.ends_with("and 2 more"), "{text}");
    }

    #[test]
    fn who_sleeps_is_not_in_the_way() {
        let me = std::process::id() as i32;
        assert_eq!(waiting_for_vfork(&[me]), []);
        assert_eq!(inner_id(me), me);
    }
}
