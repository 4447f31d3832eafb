//! What a process has forbidden itself, or chosen for itself, by prctl(2) and its like.

use std::fs;
use std::io;
use std::time::Instant;

use nix::libc;
use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::super::Lost;
use crate::inside::Inside;

/// `linux/prctl.h`.
const PR_GET_TSC: u64 = 25;
const PR_SET_TSC: u64 = 26;
const PR_TSC_SIGSEGV: u32 = 2;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_SET_SPECULATION_CTRL: u64 = 53;
const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
/// `asm/prctl.h`.
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// Number of the tile registers (AMX) among the extended ones (kernel `arch/x86/xstate.rst`).
const XTILE_DATA: u64 = 18;

/// Mitigations that a thread can choose, as `/proc/PID/status` names them, with their numbers (kernel
/// `userspace-api/spec_ctrl.rst`).
const MITIGATIONS: [(&str, u64); 2] = [
    ("Speculation_Store_Bypass:", 0),
    ("SpeculationIndirectBranch:", 1),
];

/// Those of a process. What its first thread has, all have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::carry) struct Attributes {
    /// Reading the time-stamp counter is forbidden (PR_SET_TSC).
    no_tsc: bool,
    /// The instruction CPUID is forbidden (ARCH_SET_CPUID).
    no_cpuid: bool,
    /// Flags of PR_SET_MDWE: no memory is both written to and executed.
    no_new_code: u64,
    /// PR_SET_THP_DISABLE with exceptions; CRIU carries it without.
    no_huge_pages: u64,
    /// Mitigations, by their numbers, and what was chosen.
    speculation: Vec<(u64, u64)>,
    /// It may use the tile registers (AMX, ARCH_REQ_XCOMP_PERM).
    tiles: bool,
}

/// What each thread chooses for itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OfThread {
    no_tsc: bool,
    no_cpuid: bool,
    speculation: Vec<(u64, u64)>,
}

impl OfThread {
    /// Of a thread `tid` of process `pid`; `page` is lent by the first one.
    pub(super) fn ask(
        (pid, tid): (i32, i32),
        inside: &mut Inside,
        page: u64,
        first: &mut Inside,
    ) -> Self {
        let cpuid = inside.call(libc::SYS_arch_prctl, &[ARCH_GET_CPUID]);
        let tsc = prctl(inside, &[PR_GET_TSC, page]);
        let tsc = tsc.and_then(|()| first.lent().map(u32::from_ne_bytes));
        Self {
            no_tsc: tsc.is_ok_and(|chosen| chosen == PR_TSC_SIGSEGV),
            no_cpuid: cpuid.is_ok_and(|allowed| allowed == 0),
            speculation: speculation(&format!("{pid}/task/{tid}")),
        }
    }
}

impl Attributes {
    /// What a thread chooses for itself alone.
    pub(super) fn of_thread(&self) -> OfThread {
        OfThread {
            no_tsc: self.no_tsc,
            no_cpuid: self.no_cpuid,
            speculation: self.speculation.clone(),
        }
    }

    /// What the kernel does not know, nobody has chosen.
    pub(super) fn ask(pid: i32, inside: &mut Inside) -> Self {
        let mut get = |option| inside.call(libc::SYS_prctl, &[option]).unwrap_or(0);
        let no_new_code = get(PR_GET_MDWE);
        let no_huge_pages = get(PR_GET_THP_DISABLE);
        let cpuid = inside.call(libc::SYS_arch_prctl, &[ARCH_GET_CPUID]);
        Self {
            no_tsc: tsc(inside).unwrap_or(0) == PR_TSC_SIGSEGV,
            no_cpuid: cpuid.is_ok_and(|allowed| allowed == 0),
            no_new_code,
            no_huge_pages: Some(no_huge_pages).filter(|flags| *flags > 1).unwrap_or(0),
            speculation: speculation(&pid.to_string()),
            tiles: tiles(inside).unwrap_or(false),
        }
    }

    /// Why CRIU can't dump a process with these.
    pub(super) fn in_the_way(&self) -> Option<&'static str> {
        (self.no_new_code != 0).then_some(
            "has forbidden itself new code (PR_SET_MDWE, prctl(2)), which CRIU's is: start it without \
             that to be able to move it",
        )
    }

    /// Tells the first thread, and with it the process.
    pub(super) fn tell(&self, inside: &mut Inside) -> Vec<(String, io::Result<()>)> {
        let mut told = self.tell_thread(inside);
        if self.tiles {
            let done = inside.call(libc::SYS_arch_prctl, &[ARCH_REQ_XCOMP_PERM, XTILE_DATA]);
            let what = "use of the tile registers (AMX, ARCH_REQ_XCOMP_PERM)";
            told.push((what.to_owned(), done.map(drop)));
        }
        if self.no_huge_pages != 0 {
            let arguments = [PR_SET_THP_DISABLE, 1, self.no_huge_pages & !1];
            let what = "no huge pages, with exceptions (PR_SET_THP_DISABLE)";
            told.push((what.to_owned(), prctl(inside, &arguments)));
        }
        if self.no_new_code != 0 {
            let arguments = [PR_SET_MDWE, self.no_new_code];
            told.push((
                "no new code (PR_SET_MDWE)".to_owned(),
                prctl(inside, &arguments),
            ));
        }
        told
    }

    fn tell_thread(&self, inside: &mut Inside) -> Vec<(String, io::Result<()>)> {
        let mut told = Vec::new();
        for (number, choice) in &self.speculation {
            let arguments = [PR_SET_SPECULATION_CTRL, *number, *choice];
            let what = format!("mitigation {number} of speculation (PR_SET_SPECULATION_CTRL)");
            told.push((what, prctl(inside, &arguments)));
        }
        if self.no_cpuid {
            let done = inside.call(libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0]);
            told.push(("no CPUID (ARCH_SET_CPUID)".to_owned(), done.map(drop)));
        }
        if self.no_tsc {
            let arguments = [PR_SET_TSC, u64::from(PR_TSC_SIGSEGV)];
            told.push((
                "no time-stamp counter (PR_SET_TSC)".to_owned(),
                prctl(inside, &arguments),
            ));
        }
        told
    }

    /// Tells the other threads of a process, `pid` here and `inner` in the service.
    pub(super) fn tell_threads(&self, pid: i32, inner: i32, end: Instant) -> io::Result<Vec<Lost>> {
        let mut lost = Vec::new();
        if !self.no_tsc && !self.no_cpuid && self.speculation.is_empty() {
            return Ok(lost);
        }
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = entry?.file_name();
            let tid = name.to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(tid) = tid.filter(|tid| *tid != pid) else {
                continue;
            };
            let mut inside = Inside::enter(tid, end)?;
            let told = self.tell_thread(&mut inside);
            inside.leave()?;
            lost.extend(told.into_iter().filter_map(|(what, result)| {
                let detail = format!("a thread: {what}: {}", result.err()?);
                Some(Lost::new(LossKind::ProcessAttribute, inner, detail))
            }));
        }
        Ok(lost)
    }
}

fn prctl(inside: &mut Inside, arguments: &[u64]) -> io::Result<()> {
    inside.call(libc::SYS_prctl, arguments).map(drop)
}

fn tsc(inside: &mut Inside) -> io::Result<u32> {
    let page = inside.lend(&[0; 4])?;
    prctl(inside, &[PR_GET_TSC, page])?;
    Ok(u32::from_ne_bytes(inside.lent()?))
}

fn tiles(inside: &mut Inside) -> io::Result<bool> {
    let page = inside.lend(&[0; 8])?;
    inside.call(libc::SYS_arch_prctl, &[ARCH_GET_XCOMP_PERM, page])?;
    Ok(u64::from_ne_bytes(inside.lent()?) & (1 << XTILE_DATA) != 0)
}

/// What a thread has chosen, which is what is otherwise here than for one that has chosen nothing.
fn speculation(thread: &str) -> Vec<(u64, u64)> {
    let read = |name: &str| {
        let bytes = fs::read(format!("/proc/{name}/status")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    chosen(&read(thread), &read("thread-self"))
}

fn chosen(theirs: &str, usual: &str) -> Vec<(u64, u64)> {
    let line = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|line| line.trim().to_owned())
    };
    let of = |(name, number): &(&str, u64)| {
        let (theirs, usual) = (line(theirs, name)?, line(usual, name)?);
        let choice = choice(&theirs).filter(|_| theirs != usual)?;
        Some((*number, choice))
    };
    MITIGATIONS.iter().filter_map(of).collect()
}

/// PR_SPEC_ENABLE, PR_SPEC_DISABLE and PR_SPEC_FORCE_DISABLE in the words of the kernel
/// (`fs/proc/array.c`).
fn choice(words: &str) -> Option<u64> {
    match words {
        "thread vulnerable" | "conditional enabled" => Some(2),
        "thread mitigated" | "conditional disabled" => Some(4),
        "thread force mitigated" | "conditional force disabled" => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_mitigation_that_was_chosen() {
        let usual = "Speculation_Store_Bypass:\tthread vulnerable\nSpeculationIndirectBranch:\talways enabled\n";
        let theirs = usual.replace("thread vulnerable", "thread force mitigated");
        assert_eq!(chosen(&theirs, usual), [(0, 8)]);
        assert_eq!(chosen(usual, usual), []);
        assert_eq!(chosen(&theirs, ""), []);
    }
}
