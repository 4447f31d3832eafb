//! Which files can change without their times showing it, while the first pass reads them.
//!
//! What is stored through a mapping (`mmap(2)`, MAP_SHARED) changes the times of a file only where a page is
//! stored to for the first time since it was written back: what comes after that shows nowhere, and once
//! the mapping is gone nothing tells that it was there. So a file is not taken for known while it is
//! mapped. Whether it is, is looked at again where it has changed since the last look: who stores to a file
//! without a trace has it mapped since before its times changed for the last time.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FileType, Stat, fstatfs};

use super::FileError;
use super::manifest::{Stamp, TICK, changed};
use super::pass::{self, Always};
use crate::frame::RootName;

/// How often it is looked at most: a look takes the time of reading the mappings of all processes.
const LOOKS_APART: Duration = Duration::from_millis(100);

/// Magic numbers of file systems that are in memory alone (`statfs(2)`): what is stored through a mapping
/// never changes a time there.
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// Tells which files are mapped shared and writable now.
pub type Look<'a> = dyn FnMut() -> io::Result<Always> + Send + 'a;

/// What is known of mapped files while a tree is read.
pub(super) struct Mapped<'a> {
    root: &'a RootName,
    base: &'a Path,
    look: &'a mut Look<'a>,
    inodes: HashSet<u64>,
    /// When the last look began.
    looked: SystemTime,
    ended: Instant,
    /// The file system never tells.
    traceless: bool,
}

impl<'a> Mapped<'a> {
    /// Takes a first look.
    pub(super) fn new(
        root: &'a RootName,
        base: &'a Path,
        look: &'a mut Look<'a>,
    ) -> Result<Self, FileError> {
        let mut mapped = Self {
            root,
            base,
            look,
            inodes: HashSet::new(),
            looked: SystemTime::UNIX_EPOCH,
            ended: Instant::now(),
            traceless: false,
        };
        mapped.look_again()?;
        Ok(mapped)
    }

    /// Which file system the tree is on.
    pub(super) fn on(&mut self, tree: impl AsFd) {
        let kind = fstatfs(tree).map(|about| about.f_type as u64 & 0xffff_ffff);
        self.traceless = kind.is_ok_and(|kind| matches!(kind, TMPFS | RAMFS));
    }

    /// What is to be remembered of an entry that is about to be read.
    pub(super) fn stamp(&mut self, stat: &Stat) -> Result<Stamp, FileError> {
        let stamp = Stamp::before_reading(stat);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stamp == Stamp::UNSURE
        {
            return Ok(stamp);
        }
        if self.traceless || !self.looked_since(stat)? || self.inodes.contains(&stat.st_ino) {
            return Ok(Stamp::UNSURE);
        }
        Ok(stamp)
    }

    /// Whether it was looked at since this changed; looks again, unless it did so only just now.
    fn looked_since(&mut self, stat: &Stat) -> Result<bool, FileError> {
        if self.is_before_the_look(stat) {
            return Ok(true);
        }
        if self.ended.elapsed() < LOOKS_APART {
            return Ok(false);
        }
        self.look_again()?;
        Ok(self.is_before_the_look(stat))
    }

    fn look_again(&mut self) -> Result<(), FileError> {
        self.looked = SystemTime::now();
        let mapped = (self.look)().map_err(|source| FileError::Read {
            operation: "looking for mapped files below",
            root: self.root.clone(),
            path: String::new(),
            source,
        })?;
        let found = pass::inodes(self.root, self.base, &mapped)?;
        self.inodes.extend(found);
        self.ended = Instant::now();
        Ok(())
    }

    fn is_before_the_look(&self, stat: &Stat) -> bool {
        let looked = self.looked.duration_since(SystemTime::UNIX_EPOCH);
        changed(stat) + TICK < looked.unwrap_or_default()
    }
}
