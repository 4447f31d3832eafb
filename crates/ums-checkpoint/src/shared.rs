//! Memory that is an object of its own (shared anonymous mappings, System V segments, memfds), copied while
//! the service runs.
//!
//! Nobody tells which pages of such an object change: they are written through any mapping of any process,
//! by write(2), and while nobody has them mapped. So their content is compared. Of each page that the
//! destination has got, its digest is kept; a page counts as unchanged where what is in it has that digest. That
//! needs nothing of the service's processes and of the kernel's trackers, and can't be wrong by a write that
//! was missed; it costs a read of the objects at each look, and in the freeze.
//!
//! The kernel has all these objects in one file system of its own (`shmem_init`, `mm/shmem.c`); CRIU numbers
//! their pages by inode (`criu/memfd.c`, `criu/proc_parse.c`), so that their owner is known before it looks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use crate::carry::Process;
use crate::criu::page_server::{PAGE_LEN, PageOwner};
use crate::dirty::{Ranges, RoundError};

mod digests;
mod object;

use digests::Digests;

/// Pages that are read at once.
const CHUNK: usize = 64 * PAGE_LEN;
/// How long all looks together may take: none begins after that, and what would be found by it is for the
/// freeze.
const LOOKS_MAX: Duration = Duration::from_secs(30);

/// Copies the objects of a running service, and knows in the freeze which copies are right.
#[derive(Debug)]
pub struct SharedRounds {
    known: Known,
    wanted: BTreeMap<PageOwner, Wanted>,
    /// Pages of which the destination's copy is of no use any more.
    dropped: BTreeMap<PageOwner, Ranges>,
    looked: Duration,
}

/// What the destination has got of the objects.
#[derive(Debug)]
pub struct Known(Digests);

/// What is to be sent of an object.
#[derive(Debug)]
struct Wanted {
    file: File,
    offsets: Ranges,
}

impl SharedRounds {
    /// Begins with nothing copied.
    ///
    /// # Errors
    /// A kernel without random numbers.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            known: Known(Digests::new()?),
            wanted: BTreeMap::new(),
            dropped: BTreeMap::new(),
            looked: Duration::ZERO,
        })
    }

    /// Finds out what is to be sent; returns how many bytes that is. An object that can't be read is left for
    /// the freeze.
    pub fn look(&mut self, processes: &[Process]) -> u64 {
        self.wanted.clear();
        if self.looked > LOOKS_MAX {
            return 0;
        }
        let begin = Instant::now();
        let objects = object::all(processes);
        for owner in self.known.0.owners() {
            if !objects.contains_key(&owner) {
                self.drop_pages(owner, 0, u64::MAX);
            }
        }
        let mut bytes = 0;
        for (owner, file) in objects {
            match self.changed(owner, &file) {
                Ok(offsets) => {
                    bytes += offsets.bytes();
                    self.wanted.insert(owner, Wanted { file, offsets });
                }
                Err(error) => {
                    tracing::debug!(%error, ?owner, "shared memory is left for the freeze");
                    self.drop_pages(owner, 0, u64::MAX);
                }
            }
        }
        self.looked += begin.elapsed();
        bytes
    }

    /// Pages with content that the destination has not got as they are.
    fn changed(&mut self, owner: PageOwner, file: &File) -> io::Result<Ranges> {
        let mut buffer = vec![0; CHUNK];
        let (mut changed, mut end) = (Ranges::default(), 0);
        for (from, to) in object::data(file)? {
            self.drop_pages(owner, end, from);
            end = to;
            if !self.known.0.has_any(owner, from, to) {
                // What has no room among the digests could not be found again.
                if !self.known.0.is_full() {
                    changed.insert(from, to);
                }
                continue;
            }
            for (at, len) in chunks(from, to) {
                let read = object::read(file, at, &mut buffer[..len])?;
                for (page, bytes) in pages(at, &buffer[..read]) {
                    if !self.known.is_right(owner, page, bytes) {
                        changed.insert(page, page + PAGE_LEN as u64);
                    }
                }
            }
        }
        self.drop_pages(owner, end, u64::MAX);
        Ok(changed)
    }

    fn drop_pages(&mut self, owner: PageOwner, from: u64, to: u64) {
        let dropped = self.known.0.remove(owner, from, to);
        if !dropped.is_empty() {
            let all = self.dropped.entry(owner).or_default();
            all.extend(dropped.iter());
        }
    }

    /// Sends what the last look has found: each piece to `send`, with zeros for what is gone.
    ///
    /// # Errors
    /// Of `send`. An object that can't be read any more is none.
    pub fn send<E>(
        &mut self,
        mut send: impl FnMut(PageOwner, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), RoundError<E>> {
        let mut buffer = vec![0; CHUNK];
        // Zeros, before anything is read.
        for (owner, offsets) in std::mem::take(&mut self.dropped) {
            for (from, to) in offsets.iter() {
                for (at, len) in chunks(from, to) {
                    send(owner, at, &buffer[..len]).map_err(RoundError::Send)?;
                }
            }
        }
        for (owner, Wanted { file, offsets }) in std::mem::take(&mut self.wanted) {
            let pieces = offsets.iter().flat_map(|(from, to)| chunks(from, to));
            for (at, len) in pieces.collect::<Vec<_>>() {
                let Ok(read) = object::read(&file, at, &mut buffer[..len]) else {
                    // What is not known to be right is sent in the freeze.
                    break;
                };
                let keep = |(page, bytes): &(u64, &[u8])| self.known.0.insert(owner, *page, bytes);
                let kept = pages(at, &buffer[..read]).take_while(keep).count();
                send(owner, at, &buffer[..kept * PAGE_LEN]).map_err(RoundError::Send)?;
            }
        }
        Ok(())
    }

    /// What the destination has got.
    pub fn into_known(self) -> Known {
        self.known
    }
}

impl Known {
    /// Whether the destination's copy of a page holds this.
    pub fn is_right(&self, owner: PageOwner, offset: u64, page: &[u8]) -> bool {
        self.0.holds(owner, offset, page)
    }

    /// Whether it has any page of an object.
    pub fn has(&self, owner: PageOwner) -> bool {
        self.0.has_any(owner, 0, u64::MAX)
    }
}

/// A range in pieces, as offset and length.
fn chunks(from: u64, to: u64) -> impl Iterator<Item = (u64, usize)> {
    let starts = (from..to).step_by(CHUNK);
    starts.map(move |at| (at, (to - at).min(CHUNK as u64) as usize))
}

/// Pages with their offsets.
fn pages(from: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let offsets = (from..).step_by(PAGE_LEN);
    offsets.zip(bytes.chunks_exact(PAGE_LEN))
}

#[cfg(test)]
mod test;
