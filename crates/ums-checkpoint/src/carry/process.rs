//! The processes of a service, as the keeper sees them.

use std::fs;

use crate::cgroup::Cgroup;

/// One process of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id in this PID namespace.
    pub pid: i32,
    /// Its id in the service's, which stays when the service moves.
    pub inner: i32,
}

impl Process {
    /// Whether this is its id in the service's PID namespace.
    pub(super) fn pid_is(&self, inner: i32) -> bool {
        self.inner == inner
    }
}

/// The processes of the service in a control group. During a restore CRIU is in the group too: it has
/// no id in the service's PID namespace, and is left out. One that ends meanwhile is passed over.
pub fn processes(cgroup: &Cgroup) -> Vec<Process> {
    let depth = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| Some(ids(&status)?.len()))
        .unwrap_or(1);
    let of = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let inner = *ids(&status)?.get(depth)?;
        Some(Process { pid, inner })
    };
    cgroup.processes().into_iter().filter_map(of).collect()
}

/// The ids of a process's threads in the innermost PID namespace that it is in; none once it has ended.
pub(crate) fn threads_of(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter();
    let statuses = tasks.flatten().flatten().filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status"));
        ids(&status.ok()?)?.last().copied()
    });
    statuses.collect()
}

/// The ids of a process in the PID namespaces that it is in, outermost first (`NSpid`, proc(5)).
pub(super) fn ids(status: &str) -> Option<Vec<i32>> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace()
        .map(|word| word.parse().ok())
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ids_in_each_namespace() {
        let status = "Name:\tsh\nNSpid:\t4711\t7\nNSpgid:\t1\t1\n";
        assert_eq!(ids(status), Some(vec![4711, 7]));
        assert_eq!(ids("Name:\tsh\n"), None);
        assert_eq!(ids("NSpid:\tx\n"), None);
    }
}
