//! What a process alone can be asked and told: it is [asked](crate::inside) while it is frozen.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::Lost;
use super::clock::Offsets;
use super::process::Process;
use crate::freezer::Freezer;
use crate::inside::{After, Inside, hold};

mod alarm;
mod apart;
mod attribute;
mod domain;
mod hindrance;
mod key;
mod keyring;
mod map;
mod undo;

use attribute::Attributes;
use domain::Outsiders;
use map::Region;

/// State of one process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Inner {
    /// Process id inside the service's PID namespace.
    pid: i32,
    attributes: Attributes,
    /// Protection keys that are taken (`pkey_alloc(2)`), by their numbers.
    keys: BTreeSet<u32>,
    keyed: Vec<key::Keyed>,
    /// Locked as it is touched (MLOCK_ONFAULT, `mlock2(2)`).
    on_fault: Vec<map::Range>,
    /// Sealed (`mseal(2)`).
    sealed: Vec<map::Range>,
    /// Flags of the last `mlockall(2)` that concern later mappings.
    future: u64,
    alarms: Vec<alarm::Alarm>,
    undo: Vec<undo::Undo>,
}

/// What was seen: what can be carried, and what can't.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub inner: Vec<Inner>,
    pub lost: Vec<Lost>,
}

/// What is told where nobody can be asked.
const NOT_ASKED: &str = "what processes have chosen for themselves (prctl(2), pkey_alloc(2), mlockall(2), mseal(2), \
     SEM_UNDO, the deadlines of timers, keyrings, Landlock) is neither seen nor carried: it takes a freezer of \
     version 2 (cgroup2 below /sys/fs/cgroup)";

/// What is lost of every service on a host where no process can be asked; nothing where they can.
pub fn not_asked() -> Option<Lost> {
    let is_asked = crate::cgroup::is_unified_here();
    (!is_asked).then(|| Lost::new(LossKind::ProcessAttribute, 0, NOT_ASKED.to_owned()))
}

/// What is found out while the service still runs: to look for it takes a while.
pub(crate) struct Known {
    /// Processes that have sealed memory: what is sealed stays so.
    sealed: BTreeSet<i32>,
    /// Whom those that are in a Landlock domain can't look into; or why there is nobody.
    outsiders: io::Result<Outsiders>,
}

impl Known {
    /// Of these processes, which run.
    pub(crate) fn of(processes: &[Process]) -> Self {
        let is_sealed = |process: &&Process| {
            // To look at all mappings takes a while where there is much memory.
            let regions = map::regions(process.pid).unwrap_or_default();
            regions.iter().any(Region::is_sealed)
        };
        let sealed = processes.iter().filter(is_sealed);
        Self {
            sealed: sealed.map(|process| process.pid).collect(),
            outsiders: Outsiders::of(processes),
        }
    }
}

/// Asks the processes of a frozen service, which stays frozen.
///
/// # Errors
/// When one of them can't be held, is not as it was before, or has a state that nobody can carry: it must not
/// be dumped.
pub(super) fn capture(
    freezer: &Freezer,
    processes: &[Process],
    known: &mut Known,
    within: Duration,
) -> io::Result<Seen> {
    if !freezer.is_unified() {
        return Ok(Seen {
            lost: not_asked().into_iter().collect(),
            ..Seen::default()
        });
    }
    let Some(first) = processes.first() else {
        return Ok(Seen::default());
    };
    let about = About {
        sealed: &known.sealed,
        sets: undo::Sets::of(first.pid)?,
        offsets: super::offsets(processes)?,
    };
    let pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
    let outsiders = &mut known.outsiders;
    let ask = |end: Instant| -> io::Result<Seen> {
        let mut seen = Seen::default();
        for process in processes {
            ask(*process, (&about, outsiders), end, &mut seen)?;
        }
        Ok(seen)
    };
    hold(freezer, &pids, within, After::Frozen, ask)?
}

/// What is known of the service as a whole.
struct About<'a> {
    /// Processes that have sealed memory.
    sealed: &'a BTreeSet<i32>,
    sets: undo::Sets,
    offsets: Offsets,
}

fn ask(
    process: Process,
    (about, outsiders): (&About<'_>, &mut io::Result<Outsiders>),
    end: Instant,
    seen: &mut Seen,
) -> io::Result<()> {
    let Some(locked) = locked_kib(process.pid)? else {
        return Ok(());
    };
    let mut inside = match Inside::enter(process.pid, end) {
        Ok(inside) => inside,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let what = format!("what it has chosen for itself (prctl(2)) is not seen: {error}");
            let pid = process.inner;
            seen.lost
                .push(Lost::new(LossKind::ProcessAttribute, pid, what));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if let Some(reason) = hindrance::of_thread(&inside)? {
        inside.leave()?;
        return Err(in_the_way(process.inner, reason));
    }
    let asked = look(process, (locked, about), &mut inside, &mut seen.lost).and_then(|inner| {
        let attributes = &inner.attributes;
        let lost = apart::look(process, &mut inside, outsiders, attributes, end)?;
        seen.lost.extend(lost);
        Ok(inner)
    });
    inside.leave()?;
    let inner = asked?;
    if let Some(reason) = inner.attributes.in_the_way() {
        return Err(in_the_way(inner.pid, reason));
    }
    let nothing = Inner {
        pid: inner.pid,
        ..Inner::default()
    };
    seen.inner.extend((inner != nothing).then_some(inner));
    Ok(())
}

/// Why process `inner` must not be dumped.
fn in_the_way(inner: i32, reason: &str) -> io::Error {
    io::Error::other(format!("process {inner} {reason}"))
}

fn look(
    process: Process,
    (locked, about): (u64, &About<'_>),
    inside: &mut Inside,
    lost: &mut Vec<Lost>,
) -> io::Result<Inner> {
    let pid = process.inner;
    let mut inner = Inner {
        pid,
        ..Inner::default()
    };
    if let Some(reason) = hindrance::of_process(inside)? {
        return Err(in_the_way(pid, reason));
    }
    inner.future = map::future(process.pid, locked, inside)?;
    inner.keys = key::taken(inside);
    inner.attributes = Attributes::ask(process.pid, inside);
    inner.alarms = alarm::ask(process.pid, about.offsets, inside)?;
    lost.extend(keyring::lost(pid, inside));
    if !about.sets.is_empty() {
        let (undo, unknown) = undo::ask(pid, &about.sets, inside);
        inner.undo = undo;
        lost.extend(unknown);
    }
    if locked > 0 || about.sealed.contains(&process.pid) || !inner.keys.is_empty() {
        let regions = map::regions(process.pid)?;
        let ranges = |is: fn(&Region) -> bool| -> Vec<map::Range> {
            let of = regions.iter().filter(|region| is(region));
            of.map(|region| region.range).collect()
        };
        inner.on_fault = ranges(Region::is_locked_on_fault);
        inner.sealed = ranges(Region::is_sealed);
        inner.keyed = regions.iter().filter_map(key::Keyed::of).collect();
    }
    Ok(inner)
}

/// Locked memory of a process; `None` of one that has ended.
fn locked_kib(pid: i32) -> io::Result<Option<u64>> {
    let status = fs::read(format!("/proc/{pid}/status"))?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    Ok(line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()))
}

/// Tells restored processes, which are frozen and have not run yet; they are held, and run in the end.
pub(super) fn apply(
    inner: &[Inner],
    freezer: &Freezer,
    processes: &[Process],
    within: Duration,
) -> Vec<Lost> {
    let pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
    let tell = |end: Instant| -> Vec<Lost> {
        let offsets = match super::offsets(processes) {
            Ok(offsets) => offsets,
            Err(error) => return untold(inner, &error),
        };
        let told = inner.iter().flat_map(|inner| {
            let process = processes.iter().find(|process| process.pid_is(inner.pid));
            let told = match process {
                Some(process) => inner.tell(process.pid, offsets, end),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            told.unwrap_or_else(|error| inner.all_lost(&error))
        });
        told.collect()
    };
    let told = hold(freezer, &pids, within, After::Running, tell);
    told.unwrap_or_else(|error| untold(inner, &error))
}

/// What is lost where nothing can be told.
pub(super) fn untold(inner: &[Inner], error: &io::Error) -> Vec<Lost> {
    let all = inner.iter().flat_map(|inner| inner.all_lost(error));
    all.collect()
}

impl Inner {
    fn tell(&self, pid: i32, offsets: Offsets, end: Instant) -> io::Result<Vec<Lost>> {
        let mut lost = Vec::new();
        let mut inside = Inside::enter(pid, end)?;
        self.tell_first(offsets, &mut inside, &mut lost);
        inside.leave()?;
        lost.extend(self.attributes.tell_threads(pid, self.pid, end)?);
        Ok(lost)
    }

    /// What is forbidden comes last.
    fn tell_first(&self, offsets: Offsets, inside: &mut Inside, lost: &mut Vec<Lost>) {
        let mut told = |kind, what: String, result: io::Result<()>| {
            let detail = |error| format!("{what}: {error}");
            lost.extend(
                result
                    .err()
                    .map(|error| Lost::new(kind, self.pid, detail(error))),
            );
        };
        if !self.keys.is_empty() {
            let what = "protection keys (pkey_alloc(2))".to_owned();
            told(LossKind::Other, what, key::take(&self.keys, inside));
        }
        for keyed in &self.keyed {
            told(LossKind::Other, keyed.to_string(), keyed.set(inside));
        }
        for range in &self.on_fault {
            let what = format!("memory {range}, locked as it is touched (mlock2(2))");
            told(
                LossKind::ProcessAttribute,
                what,
                range.lock_on_fault(inside),
            );
        }
        if self.future != 0 {
            let what = "later mappings are to be locked (mlockall(2))".to_owned();
            told(
                LossKind::ProcessAttribute,
                what,
                map::lock_future(self.future, inside),
            );
        }
        for undo in &self.undo {
            told(LossKind::SemaphoreUndo, undo.to_string(), undo.set(inside));
        }
        for alarm in &self.alarms {
            told(
                LossKind::RelativeTimeout,
                alarm.to_string(),
                alarm.set(offsets, inside),
            );
        }
        for (what, result) in self.attributes.tell(inside) {
            told(LossKind::ProcessAttribute, what, result);
        }
        for range in &self.sealed {
            let what = format!("memory {range} is to be sealed (mseal(2))");
            told(LossKind::SealedMemory, what, range.seal(inside));
        }
    }

    fn all_lost(&self, error: &io::Error) -> Vec<Lost> {
        let lost = |kind, what: String| Lost::new(kind, self.pid, format!("{what}: {error}"));
        let chosen = "what it has chosen for itself (prctl(2), pkey_alloc(2), mlock2(2), mseal(2))";
        let mut all = Vec::new();
        let of_memory = self.on_fault.len() + self.sealed.len();
        if !self.keys.is_empty() {
            all.push(lost(LossKind::Other, chosen.to_owned()));
        } else if self.attributes != Attributes::default() || of_memory > 0 || self.future != 0 {
            all.push(lost(LossKind::ProcessAttribute, chosen.to_owned()));
        }
        let undo = self.undo.iter();
        all.extend(undo.map(|undo| lost(LossKind::SemaphoreUndo, undo.to_string())));
        let alarms = self.alarms.iter();
        all.extend(alarms.map(|alarm| lost(LossKind::RelativeTimeout, alarm.to_string())));
        all
    }
}
