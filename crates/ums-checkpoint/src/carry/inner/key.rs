//! Protection keys of memory (pkeys(7)).

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use nix::libc;
use serde::{Deserialize, Serialize};

use super::map::{Range, Region};
use crate::inside::Inside;

/// Keys that x86 has; the first is everybody's.
const KEYS: u32 = 16;
/// An address below which nothing is mapped (`vm.mmap_min_addr` is above it).
const NOWHERE: u64 = 4096;
const PAGE: u64 = 4096;

/// A mapping with a key of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::carry) struct Keyed {
    range: Range,
    protection: u64,
    key: u32,
}

impl fmt::Display for Keyed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, key, .. } = self;
        write!(
            formatter,
            "memory {range} is to have the protection key {key}"
        )
    }
}

impl Keyed {
    pub(super) fn of(region: &Region) -> Option<Self> {
        let has = |letter, flag: libc::c_int| match region.access.contains(letter) {
            true => flag as u64,
            false => 0,
        };
        let protection =
            has('r', libc::PROT_READ) | has('w', libc::PROT_WRITE) | has('x', libc::PROT_EXEC);
        (region.key != 0).then_some(Self {
            range: region.range,
            protection,
            key: region.key,
        })
    }

    pub(super) fn set(&self, inside: &mut Inside) -> io::Result<()> {
        let Range { from, to } = self.range;
        let arguments = [from, to - from, self.protection, u64::from(self.key)];
        inside.call(libc::SYS_pkey_mprotect, &arguments).map(drop)
    }
}

/// Keys that are taken. Who has taken some has taken one of the first two, which are given out first: the
/// others are not asked for then.
pub(super) fn taken(inside: &mut Inside) -> BTreeSet<u32> {
    let mut is_taken = |key: u32| {
        // Where nothing is mapped a key that is taken is answered otherwise than one that is not
        // (`mm/mprotect.c`, `do_mprotect_pkey`).
        let arguments = [NOWHERE, PAGE, 0, u64::from(key)];
        let answer = inside.call(libc::SYS_pkey_mprotect, &arguments);
        answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENOMEM))
    };
    let first: BTreeSet<u32> = (1..3).filter(|key| is_taken(*key)).collect();
    match first.is_empty() {
        true => first,
        false => (1..KEYS).filter(|key| is_taken(*key)).collect(),
    }
}

/// Takes them in a process that has none. The rights of the calling thread to them are among its extended
/// registers, which are put back.
pub(super) fn take(keys: &BTreeSet<u32>, inside: &mut Inside) -> io::Result<()> {
    inside.keep_extended()?;
    let last = keys.last().copied().unwrap_or(0);
    let mut others = Vec::new();
    for _ in 1..KEYS {
        let key = inside.call(libc::SYS_pkey_alloc, &[0, 0])?;
        if !keys.contains(&(key as u32)) {
            others.push(key);
        }
        if key >= u64::from(last) {
            break;
        }
    }
    for key in others {
        inside.call(libc::SYS_pkey_free, &[key])?;
    }
    Ok(())
}
