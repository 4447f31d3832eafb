//! What the kernel keeps of a thread or process that CRIU does not carry: where and when it runs, how
//! late its timers may be, what a core dump of it holds.
//!
//! What nobody has chosen is not written down: it is as the destination has it.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::process::{Process, ids};
use super::{Lost, sched};

/// What the threads of a process that does nothing special have: those of this one's.
pub(super) struct Usual {
    cpus: Vec<usize>,
    scheduling: sched::Attr,
    slack_ns: u64,
}

impl Usual {
    pub(super) fn here() -> io::Result<Self> {
        let own = std::process::id() as i32;
        Ok(Self {
            cpus: cpus(own)?,
            scheduling: sched::get(own)?,
            slack_ns: number(&format!("/proc/{own}/timerslack_ns"), 10)?,
        })
    }
}

/// What somebody has chosen for a thread.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Thread {
    /// Process id inside the service's PID namespace.
    pid: i32,
    /// Thread id, likewise.
    tid: i32,
    cpus: Option<Vec<usize>>,
    scheduling: Option<sched::Attr>,
    io_priority: Option<i32>,
    slack_ns: Option<u64>,
}

/// What somebody has chosen for a process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Whole {
    /// Process id inside the service's PID namespace.
    pid: i32,
    core_filter: u64,
    /// Nice value of its session's autogroup (sched(7)), where it has one.
    autogroup_nice: i32,
}

/// Looks at the threads of a frozen process.
pub(super) fn threads(process: Process, usual: &Usual) -> io::Result<Vec<Thread>> {
    let mut found = Vec::new();
    for tid in tids(process.pid)? {
        let scheduling = sched::get(tid)?;
        let slack_ns = match scheduling.is_prompt() {
            true => None,
            false => Some(number(&format!("/proc/{tid}/timerslack_ns"), 10)?),
        };
        let thread = Thread {
            pid: process.inner,
            tid: 0,
            cpus: Some(cpus(tid)?).filter(|cpus| *cpus != usual.cpus),
            scheduling: Some(scheduling)
                .filter(|scheduling| scheduling.is_more_than_criu_carries(&usual.scheduling)),
            io_priority: Some(sched::io_priority(tid)?).filter(|priority| *priority != 0),
            slack_ns: slack_ns.filter(|slack| *slack != usual.slack_ns),
        };
        let pid = process.inner;
        if thread
            != (Thread {
                pid,
                ..Thread::default()
            })
        {
            let tid = inner(tid)?;
            found.push(Thread { tid, ..thread });
        }
    }
    Ok(found)
}

/// Looks at a frozen process; one that has ended has nothing.
pub(super) fn whole(process: Process) -> io::Result<Option<Whole>> {
    let path = format!("/proc/{}/coredump_filter", process.pid);
    let text = fs::read_to_string(path)?;
    if text.is_empty() {
        return Ok(None);
    }
    let core_filter = parse(&text, 16)?;
    Ok(Some(Whole {
        pid: process.inner,
        core_filter,
        autogroup_nice: autogroup_nice(process.pid),
    }))
}

/// `/autogroup-17 nice 5`; a kernel without autogroups has no such file.
fn autogroup_nice(pid: i32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/autogroup")).unwrap_or_default();
    let nice = text.split_whitespace().nth(2);
    nice.and_then(|nice| nice.parse().ok()).unwrap_or(0)
}

/// Sets them in restored processes.
pub(super) fn apply(threads: &[Thread], wholes: &[Whole], processes: &[Process]) -> Vec<Lost> {
    let usual = match Usual::here() {
        Ok(usual) => usual,
        Err(error) => return vec![lost(0, format!("attributes of threads: {error}"))],
    };
    let mut found = Vec::new();
    let pids: BTreeMap<i32, i32> = processes
        .iter()
        .map(|process| (process.inner, process.pid))
        .collect();
    let outer = |pid: &i32| pids.get(pid).copied().ok_or(io::ErrorKind::NotFound.into());
    for of_process in threads.chunk_by(|one, other| one.pid == other.pid) {
        let pid = of_process[0].pid;
        match outer(&pid).and_then(outer_tids) {
            Ok(tids) => found.extend(of_process.iter().flat_map(|it| it.apply(&tids, &usual))),
            Err(error) => found.push(lost(pid, format!("attributes of its threads: {error}"))),
        }
    }
    for Whole {
        pid,
        core_filter,
        autogroup_nice: nice,
    } in wholes
    {
        // All of a session have the same: it is set once, since the kernel bounds how often it is.
        let differs = |outer: &i32| autogroup_nice(*outer) != *nice;
        if let Some(outer) = pids.get(pid).copied().filter(differs) {
            let result = fs::write(format!("/proc/{outer}/autogroup"), nice.to_string());
            let what = |error| format!("nice value {nice} of its session (autogroup): {error}");
            found.extend(result.err().map(|error| lost(*pid, what(error))));
        }
        let result = outer(pid).and_then(|outer| set_core_filter(outer, *core_filter));
        found.extend(result.err().map(|error| {
            let what =
                format!("what a core dump holds (coredump_filter {core_filter:#x}): {error}");
            lost(*pid, what)
        }));
    }
    found
}

impl Thread {
    fn apply(&self, tids: &BTreeMap<i32, i32>, usual: &Usual) -> Vec<Lost> {
        let mut found = Vec::new();
        let Some(tid) = tids.get(&self.tid).copied() else {
            return vec![lost(self.pid, format!("thread {} is not there", self.tid))];
        };
        let mut told = |what: String, result: io::Result<()>| {
            let detail = |error| format!("thread {}: {what}: {error}", self.tid);
            found.extend(result.err().map(|error| lost(self.pid, detail(error))));
        };
        // CPUs before a deadline, which is not given to what may not run everywhere.
        let placed = self.cpus.as_ref().and_then(|cpus| {
            let result = place(tid, cpus);
            Some(format!("CPUs {cpus:?}: {}", result.err()?))
        });
        if let Some(attr) = &self.scheduling {
            told(
                format!("{attr:?}"),
                sched::set(tid, attr, &usual.scheduling),
            );
        }
        if let Some(priority) = self.io_priority {
            let what = format!("I/O priority {priority:#x}");
            told(what, sched::set_io_priority(tid, priority));
        }
        if let Some(slack) = self.slack_ns {
            let path = format!("/proc/{tid}/timerslack_ns");
            told(
                format!("timer slack {slack} ns"),
                fs::write(path, slack.to_string()),
            );
        }
        found.extend(placed.map(|detail| Lost {
            kind: LossKind::CpuAffinity,
            ..lost(self.pid, format!("thread {}: {detail}", self.tid))
        }));
        found
    }
}

/// Binds a thread to those of the CPUs that it may use here.
fn place(tid: i32, wanted: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    // The set is as large as the C library's: what is beyond it is not here.
    wanted
        .iter()
        .for_each(|cpu| set.set(*cpu).unwrap_or_default());
    sched_setaffinity(Pid::from_raw(tid), &set)?;
    let found = cpus(tid)?;
    match found == wanted {
        true => Ok(()),
        false => Err(io::Error::other(format!("only {found:?} are here"))),
    }
}

fn lost(pid: i32, detail: String) -> Lost {
    Lost {
        kind: LossKind::ProcessAttribute,
        pid,
        detail,
    }
}

/// The CPUs that a thread may run on; none of them on a host that has more than the C library's set.
fn cpus(tid: i32) -> io::Result<Vec<usize>> {
    let set = match sched_getaffinity(Pid::from_raw(tid)) {
        Ok(set) => set,
        Err(Errno::EINVAL) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let is_in = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    Ok((0..CpuSet::count()).filter(is_in).collect())
}

fn set_core_filter(pid: i32, filter: u64) -> io::Result<()> {
    let path = format!("/proc/{pid}/coredump_filter");
    match number(&path, 16)? == filter {
        true => Ok(()),
        false => fs::write(path, format!("{filter:#x}")),
    }
}

/// A file of the kernel's that is a number.
pub(super) fn number(path: &str, radix: u32) -> io::Result<u64> {
    parse(&fs::read_to_string(path)?, radix)
}

fn parse(text: &str, radix: u32) -> io::Result<u64> {
    u64::from_str_radix(text.trim(), radix).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The threads of a process by their ids in this PID namespace.
pub(super) fn tids(pid: i32) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        found.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    Ok(found)
}

/// A thread's id in the innermost of its PID namespaces, which is the service's.
pub(super) fn inner(tid: i32) -> io::Result<i32> {
    let status = fs::read(format!("/proc/{tid}/status"))?;
    let ids = ids(&String::from_utf8_lossy(&status));
    let last = ids.and_then(|ids| ids.last().copied());
    last.ok_or(io::ErrorKind::InvalidData.into())
}

/// The threads of a process: id in the service → id here.
fn outer_tids(pid: i32) -> io::Result<BTreeMap<i32, i32>> {
    let of = |tid: i32| Ok((inner(tid)?, tid));
    tids(pid)?.into_iter().map(of).collect()
}

#[cfg(test)]
mod test {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper() -> (Child, Process) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        (child, Process { pid, inner: pid })
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn what_nobody_has_chosen_is_not_written_down() {
        let (child, process) = sleeper();
        assert_eq!(threads(process, &Usual::here().unwrap()).unwrap(), []);
        end(child);
    }

    #[test]
    fn what_was_chosen_is_seen_and_set_again() {
        let usual = Usual::here().unwrap();
        let (source, from) = sleeper();
        let last = *usual.cpus.last().unwrap();
        place(from.pid, &[last]).unwrap();
        sched::set_io_priority(from.pid, 2 << 13 | 6).unwrap();
        fs::write(format!("/proc/{}/timerslack_ns", from.pid), "1234567").unwrap();
        set_core_filter(from.pid, 0x7f).unwrap();
        let seen = threads(from, &usual).unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].slack_ns, Some(1_234_567));
        assert_eq!(seen[0].io_priority, Some(2 << 13 | 6));

        let (restored, to) = sleeper();
        let (of, tid) = (to.inner, to.inner);
        let there = Thread {
            pid: of,
            tid,
            ..seen[0].clone()
        };
        let whole_there = Whole {
            pid: of,
            ..whole(from).unwrap().unwrap()
        };
        let lost = apply(std::slice::from_ref(&there), &[whole_there], &[to]);
        assert_eq!(lost, []);
        assert_eq!(threads(to, &usual).unwrap(), [there]);
        assert_eq!(whole(to).unwrap().unwrap().core_filter, 0x7f);
        end(source);
        end(restored);
    }

    #[test]
    fn cpus_that_are_not_here_are_told() {
        let (child, to) = sleeper();
        let thread = Thread {
            pid: to.inner,
            tid: to.inner,
            cpus: Some(vec![0, CpuSet::count() - 1]),
            ..Thread::default()
        };
        let lost = apply(&[thread], &[], &[to]);
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert_eq!(lost[0].kind, LossKind::CpuAffinity);
        end(child);
    }
}
