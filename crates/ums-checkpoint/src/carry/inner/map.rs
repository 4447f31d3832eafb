//! Mappings that are locked as they are touched, sealed, or locked because all later ones are.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::libc;
use serde::{Deserialize, Serialize};

use super::locked_kib;
use crate::inside::{Inside, PAGE};

/// `mlock2(2)`, Linux `asm-generic/mman-common.h`.
const MLOCK_ONFAULT: u64 = 1;
/// `mlockall(2)`.
const MCL_FUTURE: u64 = 2;
const MCL_ONFAULT: u64 = 4;
/// `mseal(2)` (Linux 6.10), which libc lacks.
const SYS_MSEAL: libc::c_long = 462;
/// Bit of `/proc/PID/pagemap` of a page that is there.
const PRESENT: u64 = 1 << 63;

/// Addresses, from the first to the one after the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::carry) struct Range {
    pub from: u64,
    pub to: u64,
}

impl fmt::Display for Range {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:x}-{:x}", self.from, self.to)
    }
}

impl Range {
    pub(super) fn lock_on_fault(self, inside: &mut Inside) -> io::Result<()> {
        let arguments = [self.from, self.to - self.from, MLOCK_ONFAULT];
        inside.call(libc::SYS_mlock2, &arguments).map(drop)
    }

    pub(super) fn seal(self, inside: &mut Inside) -> io::Result<()> {
        let arguments = [self.from, self.to - self.from, 0];
        inside.call(SYS_MSEAL, &arguments).map(drop)
    }
}

/// A mapping, as `/proc/PID/smaps` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    pub range: Range,
    /// `rwxp`.
    pub access: String,
    pub name: String,
    pub key: u32,
    resident_kib: u64,
    flags: Vec<String>,
}

impl Region {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|one| one == flag)
    }

    /// Not of the kernel's own.
    fn is_ordinary(&self) -> bool {
        ![
            "[vdso]",
            "[vvar]",
            "[vvar_vclock]",
            "[vsyscall]",
            "[uprobes]",
        ]
        .contains(&self.name.as_str())
    }

    /// The kernel does not tell it, but what is locked otherwise is all there.
    pub(super) fn is_locked_on_fault(&self) -> bool {
        let size = self.range.to - self.range.from;
        let is_memory = !self.has("io") && !self.has("pf") && self.access.starts_with('r');
        self.has("lo") && is_memory && self.resident_kib << 10 < size
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.has("sl") && self.is_ordinary()
    }
}

/// Those of a process.
pub(super) fn regions(pid: i32) -> io::Result<Vec<Region>> {
    let text = std::fs::read(format!("/proc/{pid}/smaps"))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<Region> {
    let mut found: Vec<Region> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            found.extend(header(first, words));
            continue;
        }
        let Some(region) = found.last_mut() else {
            continue;
        };
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match first {
            "Rss:" => region.resident_kib = number(),
            "ProtectionKey:" => region.key = u32::try_from(number()).unwrap_or(0),
            "VmFlags:" => region.flags = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    found
}

/// `7f00-7f01 rw-p 00000000 00:00 0 name`.
fn header<'a>(range: &str, mut rest: impl Iterator<Item = &'a str>) -> Option<Region> {
    let (from, to) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let access = rest.next()?.to_owned();
    Some(Region {
        range: Range {
            from: number(from)?,
            to: number(to)?,
        },
        access,
        name: rest.skip(3).collect::<Vec<_>>().join(" "),
        key: 0,
        resident_kib: 0,
        flags: Vec::new(),
    })
}

/// What `mlockall(2)` was told of later mappings: a page that was mapped just now, and not touched, tells.
/// `before` is what was locked without it, KiB.
pub(super) fn future(pid: i32, before: u64, inside: &mut Inside) -> io::Result<u64> {
    let after = locked_kib(pid)?.unwrap_or(0);
    if after <= before {
        return Ok(0);
    }
    let mut entry = [0; 8];
    let at = inside.page()? / PAGE as u64 * 8;
    File::open(format!("/proc/{pid}/pagemap"))?.read_exact_at(&mut entry, at)?;
    Ok(match u64::from_ne_bytes(entry) & PRESENT {
        0 => MCL_FUTURE | MCL_ONFAULT,
        _ => MCL_FUTURE,
    })
}

/// Concerns later mappings alone.
pub(super) fn lock_future(flags: u64, inside: &mut Inside) -> io::Result<()> {
    inside.call(libc::SYS_mlockall, &[flags]).map(drop)
}

#[cfg(test)]
mod test {
    use super::*;

    const TEXT: &str = "\
7f00-9f00 rw-p 00000000 00:00 0 \nSize: 8 kB\nRss:                   4 kB\n\
ProtectionKey:         3\nVmFlags: rd wr mr mw me ac lo sd \n\
9f00-af00 ---p 00000000 00:00 0 \nRss: 0 kB\nVmFlags: mr mw me lo\n\
af00-bf00 r-xp 00000000 00:00 0                          [vdso]\nVmFlags: rd ex sl\n\
bf00-cf00 r--s 00000000 08:01 7   /a file (deleted)\nRss: 4 kB\nVmFlags: rd sl lo\n";

    #[test]
    fn regions_are_told_apart() {
        let [partly, nothing, vdso, file] = &parse(TEXT)[..] else {
            panic!("four regions")
        };
        assert!(partly.is_locked_on_fault() && partly.key == 3);
        assert!(!nothing.is_locked_on_fault(), "nothing of it can be there");
        assert!(!file.is_locked_on_fault(), "all of it is there");
        assert!(file.is_sealed() && !partly.is_sealed());
        assert!(!vdso.is_sealed(), "the kernel's own is as it is");
        assert_eq!(file.name, "/a file (deleted)");
        assert_eq!(file.range.to_string(), "bf00-cf00");
        assert_eq!(parse("VmFlags: sl\nx-y"), []);
    }
}
