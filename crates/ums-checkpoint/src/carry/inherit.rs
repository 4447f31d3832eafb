//! What only a thread itself can set, and hands on to those that it makes: CRIU is started with what the
//! service's first thread has, and all that it restores inherits that.
//!
//! What some other thread has instead can't be set from outside: [`differing`] tells it before a move.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use nix::libc::{self, c_int, c_ulong};
use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::Lost;
use super::process::Process;
use super::task::{inner, number, tids};

/// The parts of a personality that CRIU itself runs well with: ADDR_NO_RANDOMIZE, ADDR_COMPAT_LAYOUT,
/// SHORT_INODE, WHOLE_SECONDS and STICKY_TIMEOUTS (personality(2)). The others give it another name
/// or version of the kernel, or other mappings.
const HARMLESS: u32 = 0x004_0000 | 0x020_0000 | 0x100_0000 | 0x200_0000 | 0x400_0000;
/// PF_MCE_PROCESS and PF_MCE_EARLY (Linux `linux/sched.h`): what PR_MCE_KILL sets.
const MACHINE_CHECK: u64 = 0x80 | 0x800_0000;
/// PF_MCE_EARLY alone.
const EARLY: u64 = 0x800_0000;
/// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which PR_SET_IO_FLUSHER sets together.
const IO_FLUSHER: u64 = 0x8_0000 | 0x10_0000;
/// PR_SET_MEMORY_MERGE (Linux `linux/prctl.h`).
const SET_MEMORY_MERGE: c_int = 67;

/// What a thread hands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inherited {
    personality: u32,
    /// Flags of the task about machine checks.
    machine_check: u64,
    /// Whether its memory is merged with equal memory (PR_SET_MEMORY_MERGE).
    merged: bool,
}

impl Inherited {
    /// Of a thread of a process.
    pub(super) fn of(pid: i32, tid: i32) -> io::Result<Self> {
        let personality = number(&format!("/proc/{pid}/task/{tid}/personality"), 16)?;
        let machine_check = flags(pid, tid)? & MACHINE_CHECK;
        Ok(Self {
            personality: personality as u32,
            // EARLY alone is left over, and means nothing.
            machine_check: match machine_check {
                EARLY => 0,
                flags => flags,
            },
            merged: is_merged(pid),
        })
    }

    /// What this thread has.
    fn here() -> Self {
        let own = std::process::id() as i32;
        Self::of(own, nix::unistd::gettid().as_raw()).unwrap_or_default()
    }

    /// As far as it is harmless.
    fn harmless(&self) -> Self {
        Self {
            personality: self.personality & HARMLESS,
            ..*self
        }
    }

    /// Whether whatever is started by threads as this one has it already, as far as it is harmless.
    pub fn is_here(&self) -> bool {
        self.harmless() == Self::here()
    }

    /// Calls `start` in a thread and process that has it, as far as it is harmless.
    pub fn hand_on<T>(&self, start: impl FnOnce() -> T) -> T {
        let (here, wanted) = (Self::here(), self.harmless());
        let changed = wanted != here;
        if changed {
            wanted.set();
        }
        let started = start();
        if changed {
            here.set();
        }
        started
    }

    /// That it could not be set shows in what is restored, and is told then.
    fn set(&self) {
        set_personality(self.personality);
        let (policy, how) = match self.machine_check {
            0 => (libc::PR_MCE_KILL_CLEAR, 0),
            flags if flags & EARLY == 0 => (libc::PR_MCE_KILL_SET, libc::PR_MCE_KILL_LATE),
            _ => (libc::PR_MCE_KILL_SET, libc::PR_MCE_KILL_EARLY),
        };
        prctl(libc::PR_MCE_KILL, policy as c_ulong, how as c_ulong);
        if is_merged(std::process::id() as i32) != self.merged {
            prctl(SET_MEMORY_MERGE, self.merged.into(), 0);
        }
    }

    /// In what another one differs, in words.
    fn differs(&self, other: &Self) -> Vec<String> {
        let mut words = Vec::new();
        if self.personality != other.personality {
            words.push(format!("personality {:#x}", self.personality));
        }
        if self.machine_check != other.machine_check {
            words.push("what happens at a memory error (PR_MCE_KILL)".to_owned());
        }
        if self.merged != other.merged {
            words.push("merging of its memory (PR_SET_MEMORY_MERGE)".to_owned());
        }
        words
    }
}

/// What all threads of a service have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Family {
    first: Inherited,
    /// Threads that have something else, by process and thread id in the service.
    others: BTreeMap<i32, BTreeMap<i32, Inherited>>,
}

impl Family {
    /// Of frozen processes.
    pub(super) fn of(processes: &[Process]) -> io::Result<Self> {
        let Some(first) = processes.iter().find(|process| process.inner == 1) else {
            return Ok(Self::default());
        };
        let mut family = Self {
            first: Inherited::of(first.pid, first.pid)?,
            ..Self::default()
        };
        for process in processes {
            for tid in tids(process.pid)? {
                let has = Inherited::of(process.pid, tid)?;
                if has != family.first {
                    let of_process = family.others.entry(process.inner).or_default();
                    of_process.insert(inner(tid)?, has);
                }
            }
        }
        Ok(family)
    }

    pub(super) fn first(&self) -> Inherited {
        self.first
    }

    /// What restored threads have not inherited.
    pub(super) fn lost(&self, processes: &[Process]) -> Vec<Lost> {
        if *self == Self::default() {
            return Vec::new();
        }
        let of = |process: &Process| self.lost_by(*process);
        processes.iter().flat_map(of).collect()
    }

    fn lost_by(&self, process: Process) -> Vec<Lost> {
        let others = self.others.get(&process.inner);
        let words = |tid: i32| -> io::Result<Vec<String>> {
            let wanted = others.and_then(|others| others.get(&inner(tid).ok()?));
            let found = Inherited::of(process.pid, tid)?;
            Ok(wanted.unwrap_or(&self.first).differs(&found))
        };
        let all = tids(process.pid).and_then(|tids| tids.into_iter().map(words).collect());
        match all {
            Ok(words) => once_each(process, words),
            Err(error) => vec![lost(process, format!("its personality: {error}"))],
        }
    }
}

/// What a service has and a move would change, of processes that run: `first` is its first one. Who is
/// gone is passed over.
pub fn differing(first: Process, processes: &[Process]) -> Vec<Lost> {
    let Ok(whole) = Inherited::of(first.pid, first.pid) else {
        return Vec::new();
    };
    let handed_on = whole.harmless();
    let of = |process: &Process| {
        let tids = tids(process.pid).unwrap_or_default();
        let words = |tid: &i32| {
            let mut words = Inherited::of(process.pid, *tid).ok()?.differs(&handed_on);
            if flags(process.pid, *tid).ok()? & IO_FLUSHER == IO_FLUSHER {
                words.push("PR_SET_IO_FLUSHER".to_owned());
            }
            Some(words)
        };
        once_each(*process, tids.iter().filter_map(words).collect())
    };
    processes.iter().flat_map(of).collect()
}

fn once_each(process: Process, words: Vec<Vec<String>>) -> Vec<Lost> {
    let words: BTreeSet<String> = words.into_iter().flatten().collect();
    words
        .into_iter()
        .map(|words| lost(process, words))
        .collect()
}

fn lost(process: Process, detail: String) -> Lost {
    Lost {
        kind: LossKind::ProcessAttribute,
        pid: process.inner,
        detail,
    }
}

/// The kernel's flags of a thread (proc(5), `stat`).
fn flags(pid: i32, tid: i32) -> io::Result<u64> {
    const FLAGS_BEHIND_NAME: usize = 6;
    let stat = fs::read(format!("/proc/{pid}/task/{tid}/stat"))?;
    // The name may hold anything, brackets too.
    let name_end = stat.iter().rposition(|byte| *byte == b')');
    let rest = name_end.and_then(|at| std::str::from_utf8(&stat[at + 1..]).ok());
    let field = rest.and_then(|rest| rest.split_whitespace().nth(FLAGS_BEHIND_NAME));
    field
        .and_then(|field| field.parse().ok())
        .ok_or(io::ErrorKind::InvalidData.into())
}

/// A kernel without KSM merges nothing.
fn is_merged(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/ksm_stat")).unwrap_or_default();
    text.lines().any(|line| line == "ksm_merge_any: yes")
}

#[expect(unsafe_code, reason = "no wrapper here is built with this call")]
fn set_personality(personality: u32) {
    // SAFETY: it takes a number alone, and changes how later calls of this thread behave.
    unsafe { libc::personality(personality.into()) };
}

#[expect(unsafe_code, reason = "prctl(2) options without a wrapper")]
fn prctl(option: c_int, two: c_ulong, three: c_ulong) {
    // SAFETY: the options that are used here take numbers alone and touch no memory of ours.
    unsafe { libc::prctl(option, two, three, 0 as c_ulong, 0 as c_ulong) };
}

#[cfg(test)]
mod test {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn cat() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    }

    fn process(child: &Child) -> Process {
        let pid = child.id() as i32;
        Process { pid, inner: pid }
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn what_is_started_has_it_and_this_thread_has_not() {
        let wanted = Inherited {
            personality: 0x004_0000 | 8,
            machine_check: MACHINE_CHECK,
            merged: false,
        };
        let own = || Inherited::of(std::process::id() as i32, nix::unistd::gettid().as_raw());
        let before = own().unwrap();
        let child = wanted.hand_on(cat);
        assert_eq!(own().unwrap(), before);
        let other = cat();
        let (changed, plain) = (process(&child), process(&other));
        let found = Inherited::of(changed.pid, changed.pid).unwrap();
        assert_eq!(found.personality, 0x004_0000, "without PER_LINUX32");
        assert_eq!(found.machine_check, MACHINE_CHECK);
        let told = differing(plain, &[plain, changed]);
        assert!(
            told.iter().all(|lost| lost.pid == changed.inner),
            "{told:?}"
        );
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(differing(changed, &[changed]), []);
        end(child);
        end(other);
    }
}
