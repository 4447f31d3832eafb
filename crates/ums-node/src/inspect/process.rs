//! The processes of a service, and states of theirs that can't be carried.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ums_checkpoint::stuck;
use ums_core::facts::{Obstacle, ObstacleKind};

use super::parse::{self, Status};
use super::{InspectError, PROCESSES_MAX, obstacle, proc_file, proc_path};

/// How often, and how far apart, a process is looked at that waits without being interruptible. Waiting for
/// a disk looks the same and is over in milliseconds.
const PATIENCE: (u32, Duration) = (10, Duration::from_millis(20));

/// The bit of the capability.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// Namespaces that all processes of a service share. CRIU could carry nested mount and network namespaces,
/// but not together with mounts and a network that are external.
const NAMESPACES: [&str; 9] = [
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "pid_for_children",
    "time",
    "user",
    "uts",
];

/// One process of a service.
#[derive(Debug, Clone)]
pub(super) struct Process {
    /// Its id in the agent's PID namespace.
    pub pid: i32,
    /// Its id in the service's.
    pub inner: i32,
    pub threads: u32,
    status: Status,
}

impl Process {
    /// Its parent, by its id in the agent's PID namespace.
    pub(super) fn parent(&self) -> i32 {
        self.status.parent
    }

    /// Whether the first thread has ended and others go on.
    pub(super) fn main_thread_ended(&self) -> bool {
        self.status.state == 'Z' && self.threads > 1
    }

    /// Whether one of its threads has this id in the service's PID namespace.
    pub(super) fn has_thread(&self, inner: i32) -> bool {
        let threads = fs::read_dir(proc_path(self.pid, "task"));
        let mut threads = threads.into_iter().flatten().flatten();
        threads.any(|thread| {
            let text = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let status = parse::status(&text);
            status.is_some_and(|status| status.ids.last() == Some(&inner))
        })
    }
}

/// The processes in the PID namespace of `init` and in those nested in it, `init` first.
pub(super) fn tree(init: i32) -> Result<Vec<Process>, InspectError> {
    let namespace = namespace(init, "pid").ok_or(InspectError::Gone(init))?;
    let all = statuses()?;
    let depth = all.get(&init).ok_or(InspectError::Gone(init))?.ids.len();
    let mut members = BTreeSet::from([init]);
    // Parents have lower ids except where ids have wrapped: go on until nothing is added.
    loop {
        let added: Vec<i32> = all
            .iter()
            .filter(|(pid, status)| {
                !members.contains(pid)
                    && status.ids.len() >= depth
                    && (members.contains(&status.parent) || is_in(**pid, &namespace))
            })
            .map(|(pid, _)| *pid)
            .collect();
        if added.is_empty() {
            break;
        }
        members.extend(added);
    }
    if members.len() > PROCESSES_MAX {
        return Err(InspectError::TooManyProcesses);
    }
    let others = members.iter().filter(|pid| **pid != init);
    let of = |pid: &i32| {
        let status = all.get(pid)?.clone();
        let inner = *status.ids.get(depth - 1)?;
        Some(Process {
            pid: *pid,
            inner,
            threads: status.threads,
            status,
        })
    };
    Ok(std::iter::once(&init)
        .chain(others)
        .filter_map(of)
        .collect())
}

fn is_in(pid: i32, pid_namespace: &str) -> bool {
    namespace(pid, "pid").is_some_and(|found| found == pid_namespace)
}

/// The kernel's name of a namespace of a process.
fn namespace(pid: i32, kind: &str) -> Option<String> {
    let link = fs::read_link(proc_path(pid, &format!("ns/{kind}"))).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// The status of every process that is there now.
fn statuses() -> Result<BTreeMap<i32, Status>, InspectError> {
    let entries = fs::read_dir("/proc").map_err(InspectError::read("/proc"))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids
        .filter_map(|pid| Some((pid, parse::status(&proc_file(pid, "status")?)?)))
        .collect())
}

/// What of the processes themselves can't be carried.
pub(super) fn obstacles(init: i32, tree: &[Process]) -> Result<Vec<Obstacle>, InspectError> {
    let own: Vec<_> = NAMESPACES
        .iter()
        .map(|kind| namespace(init, kind))
        .collect();
    let members: BTreeSet<i32> = tree.iter().map(|process| process.pid).collect();
    let mut found = user_namespace(init)?;
    found.extend(another_user(&own_status()?, tree));
    for process in tree {
        let Process {
            pid, inner, status, ..
        } = process;
        let mut refuse =
            |what: String| found.push(obstacle(ObstacleKind::Descriptor, *inner, what));
        if *pid != init && !members.contains(&status.parent) {
            refuse("process that was put into the service from outside (an `exec`)".to_owned());
        }
        if status.tracer != 0 {
            refuse("process that is being traced (a debugger)".to_owned());
        }
        if status.state == 'D' && stays_uninterruptible(*pid) {
            let what = match stuck::waiting_for_vfork(&[*pid]).is_empty() {
                false => "process that waits for a child which it has made by vfork(2)",
                true => {
                    "process that waits in the kernel, for a disk or a device, and can't be interrupted"
                }
            };
            refuse(what.to_owned());
        }
        for (kind, own) in NAMESPACES.iter().zip(&own) {
            let nested = namespace(*pid, kind);
            // A zombie has no namespaces left; `pid_for_children` is empty until a first child.
            if nested.is_some() && own.is_some() && nested != *own {
                refuse(format!("{kind} namespace inside the service's own"));
            }
        }
    }
    Ok(found)
}

/// A service in a user namespace of its own isn't ours: we make none, and CRIU would need its maps.
fn user_namespace(init: i32) -> Result<Vec<Obstacle>, InspectError> {
    let path = PathBuf::from("/proc/self/ns/user");
    let ours = fs::read_link(&path).map_err(InspectError::read(path))?;
    let theirs = fs::read_link(proc_path(init, "ns/user")).map_err(|_| InspectError::Gone(init))?;
    let same = ours == theirs;
    let what = "user namespace of the service's own";
    Ok(if same {
        vec![]
    } else {
        vec![obstacle(ObstacleKind::Descriptor, 1, what)]
    })
}

/// CRIU asks for the limits of each task (`prlimit(2)`): of those of another user only CAP_SYS_RESOURCE
/// lets it. One process is named, for all are alike.
fn another_user(us: &Status, tree: &[Process]) -> Option<Obstacle> {
    if us.capabilities & CAP_SYS_RESOURCE != 0 {
        return None;
    }
    let [[user, ..], [group, ..]] = us.user;
    let ours = [[user; 3], [group; 3]];
    let process = tree.iter().find(|process| process.status.user != ours)?;
    let [[_, user, _], [_, group, _]] = process.status.user;
    let what = format!("user {user}, group {group}");
    Some(obstacle(ObstacleKind::OtherUser, process.inner, what))
}

/// What this agent is, and with it CRIU, which it starts.
fn own_status() -> Result<Status, InspectError> {
    let path = PathBuf::from("/proc/self/status");
    let text = fs::read_to_string(&path).map_err(InspectError::read(&path))?;
    let not_understood = || io::Error::new(io::ErrorKind::InvalidData, "not understood");
    parse::status(&text).ok_or_else(|| InspectError::read(path)(not_understood()))
}

fn stays_uninterruptible(pid: i32) -> bool {
    let (times, pause) = PATIENCE;
    (0..times).all(|_| {
        thread::sleep(pause);
        let status = proc_file(pid, "status").and_then(|text| parse::status(&text));
        status.is_some_and(|status| status.state == 'D')
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn status(user: u32, group: u32, capabilities: u64) -> Status {
        Status {
            state: 'S',
            parent: 1,
            tracer: 0,
            threads: 1,
            ids: vec![70, 1],
            user: [[user; 3], [group; 3]],
            capabilities,
        }
    }

    fn process(inner: i32, status: Status) -> Process {
        Process {
            pid: inner + 100,
            inner,
            threads: 1,
            status,
        }
    }

    #[test]
    fn another_users_processes_need_a_capability() {
        let bare = status(0, 0, !CAP_SYS_RESOURCE);
        let root = process(1, status(0, 0, 0));
        assert_eq!(another_user(&bare, std::slice::from_ref(&root)), None);
        for (user, group) in [(33, 33), (0, 33), (33, 0)] {
            let tree = [root.clone(), process(2, status(user, group, 0))];
            let found = another_user(&bare, &tree).unwrap();
            assert_eq!(found.kind, ObstacleKind::OtherUser);
            assert_eq!(found.pid, 2);
            assert_eq!(found.detail, format!("user {user}, group {group}"));
            let able = status(0, 0, CAP_SYS_RESOURCE);
            assert_eq!(another_user(&able, &tree), None);
        }
    }

    #[test]
    fn a_saved_user_id_is_asked_for_too() {
        let mut disguised = status(0, 0, 0);
        disguised.user[0][2] = 33;
        let found = another_user(&status(0, 0, 0), &[process(1, disguised)]);
        assert!(found.is_some(), "{found:?}");
    }
}
