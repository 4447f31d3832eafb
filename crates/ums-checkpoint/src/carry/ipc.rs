//! What of System V queues and segments CRIU makes as if they were new (its `ipc_ns.c`): how much a queue takes
//! (`msgctl(2)`, IPC_SET) and that a segment is locked (`shmctl(2)`, SHM_LOCK).

use std::fs::{self, File};
use std::io;
use std::thread;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::process::Process;
use super::{Lost, raw};

/// A queue or segment that is not as a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Object {
    /// A queue, and how many bytes it takes.
    Queue { id: i32, bytes: u64 },
    /// A segment that is locked.
    Locked { id: i32 },
}

/// Those in the IPC namespace that all processes of a frozen service are in.
///
/// # Errors
/// When that can't be entered.
pub(super) fn capture(processes: &[Process]) -> io::Result<Vec<Object>> {
    processes
        .first()
        .map_or_else(|| Ok(Vec::new()), |first| inside(first.pid, || Ok(look())))
}

/// Sets them in that of restored processes.
pub(super) fn apply(objects: &[Object], processes: &[Process]) -> Vec<Lost> {
    let Some(first) = processes.first().filter(|_| !objects.is_empty()) else {
        return Vec::new();
    };
    let own = objects.to_vec();
    let set = inside(first.pid, move || {
        let set = own.iter().map(|object| (*object, object.set()));
        Ok(set.collect::<Vec<_>>())
    });
    let lost = |object: &Object, error: &io::Error| {
        let what = format!("{}: {error}", object.told());
        Lost::new(LossKind::ProcessAttribute, 0, what)
    };
    match set {
        Ok(set) => {
            let failed = set.iter().filter_map(|(object, set)| {
                let error = set.as_ref().err()?;
                Some(lost(object, error))
            });
            failed.collect()
        }
        Err(error) => objects.iter().map(|object| lost(object, &error)).collect(),
    }
}

/// Does something in the IPC namespace of a process: in a thread of its own, which ends with that.
fn inside<T: Send + 'static>(
    pid: i32,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/ipc"))?;
    let working = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWIPC)?;
        work()
    });
    let done = working.join();
    done.unwrap_or_else(|_| Err(io::Error::other("the thread in the IPC namespace panicked")))
}

/// Those that are not as new ones. What is removed meanwhile is none.
fn look() -> Vec<Object> {
    let usual = fs::read_to_string("/proc/sys/kernel/msgmnb").unwrap_or_default();
    let usual = usual.trim().parse::<u64>().ok();
    let queues = ids("/proc/sysvipc/msg").into_iter().filter_map(|id| {
        let bytes = raw::queue_bytes(id).ok()?;
        (Some(bytes) != usual).then_some(Object::Queue { id, bytes })
    });
    let segments = ids("/proc/sysvipc/shm").into_iter();
    let locked = segments.filter(|id| raw::is_locked(*id).unwrap_or(false));
    queues
        .chain(locked.map(|id| Object::Locked { id }))
        .collect()
}

/// The second word of each line below the first.
fn ids(table: &str) -> Vec<i32> {
    let text = fs::read_to_string(table).unwrap_or_default();
    let lines = text.lines().skip(1);
    lines
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .collect()
}

impl Object {
    fn set(self) -> io::Result<()> {
        match self {
            Self::Queue { id, bytes } => raw::set_queue_bytes(id, bytes),
            Self::Locked { id } => raw::lock(id),
        }
    }

    fn told(self) -> String {
        match self {
            Self::Queue { id, bytes } => {
                format!("System V queue {id} is to take {bytes} bytes (msgctl(2))")
            }
            Self::Locked { id } => format!("System V segment {id} is to be locked (shmctl(2))"),
        }
    }
}
