//! Rounds: what the destination has of each process, what is to be sent to it, and what need not be.

use std::collections::BTreeMap;
use std::io;

use super::reader::Reader;
use super::{Moment, PAGE, Ranges, Seen, Tracker};
use crate::carry::Process;
use crate::criu::page_server::PageOwner;

/// Pages that are read at once.
const CHUNK: usize = 64 * PAGE as usize;

/// Copies the memory of a running service again and again, and knows in the freeze which copies are right.
pub struct Rounds {
    tracker: Box<dyn Tracker + Send>,
    /// By the id inside the service.
    copies: BTreeMap<i32, Copies>,
}

/// What the destination has of one process.
#[derive(Debug, Default)]
struct Copies {
    /// Id of the process here.
    pid: i32,
    /// Pages that are there as they were at the last look.
    right: Ranges,
    /// Pages to be sent.
    wanted: Ranges,
    /// Pages to be dropped.
    dropped: Ranges,
}

/// Why a round came to nothing.
#[derive(Debug)]
pub enum RoundError<E> {
    /// The pages of a process can't be read.
    Read(io::Error),
    /// They can't be sent.
    Send(E),
}

/// Pages of which the destination has a right copy.
#[derive(Debug, Default)]
pub struct Unchanged(BTreeMap<PageOwner, Ranges>);

impl std::fmt::Debug for Rounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rounds")
            .field("copies", &self.copies)
            .finish_non_exhaustive()
    }
}

impl Rounds {
    /// Begins with nothing copied.
    pub fn new(tracker: Box<dyn Tracker + Send>) -> Self {
        Self {
            tracker,
            copies: BTreeMap::new(),
        }
    }

    /// Finds out what is to be sent; returns how many bytes that is.
    ///
    /// # Errors
    /// When nothing is known any more of what has changed.
    pub fn look(&mut self, processes: &[Process]) -> io::Result<u64> {
        let all = self.tracker.look(processes, Moment::Running)?;
        let mut before = std::mem::take(&mut self.copies);
        for seen in &all {
            let id = seen.process.inner;
            let mut copies = before.remove(&id).unwrap_or_default();
            copies.update(seen);
            self.copies.insert(id, copies);
        }
        for (id, mut gone) in before {
            gone.forget();
            if !gone.dropped.is_empty() {
                self.copies.insert(id, gone);
            }
        }
        Ok(self.copies.values().map(|it| it.wanted.bytes()).sum())
    }

    /// Sends what the last look has found: each piece of memory to `send`, with zeros for what is gone.
    ///
    /// # Errors
    /// Of `send`. A process that ends meanwhile is none.
    pub fn send<E>(
        &mut self,
        mut send: impl FnMut(PageOwner, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), RoundError<E>> {
        let mut buffer = vec![0; CHUNK];
        for (id, copies) in &mut self.copies {
            let owner = PageOwner::of_process(*id as u32);
            copies.send(&mut buffer, |address, bytes| send(owner, address, bytes))?;
        }
        Ok(())
    }

    /// The last look, at a frozen service.
    ///
    /// # Errors
    /// When it is not known what has changed: everything has.
    pub fn unchanged(&mut self, processes: &[Process]) -> io::Result<Unchanged> {
        let all = self.tracker.look(processes, Moment::Frozen)?;
        let mut unchanged = Unchanged::default();
        for seen in &all {
            let id = seen.process.inner;
            let Some(mut copies) = self.copies.remove(&id) else {
                continue;
            };
            copies.update(seen);
            let owner = PageOwner::of_process(id as u32);
            unchanged.0.insert(owner, copies.right);
        }
        Ok(unchanged)
    }

    /// Undoes what was set up in the processes, which run on.
    pub fn disarm(&mut self, processes: &[Process]) {
        self.copies.clear();
        self.tracker.disarm(processes);
    }
}

impl Copies {
    fn update(&mut self, seen: &Seen) {
        if self.pid != seen.process.pid {
            // Another process under the same number: all that it holds is new.
            self.forget();
            self.pid = seen.process.pid;
        }
        for (start, end) in seen.written.iter() {
            self.right.remove(start, end);
        }
        let gone = self.right.without(&seen.held);
        for (start, end) in gone.iter() {
            self.right.remove(start, end);
        }
        self.dropped.extend(gone.iter());
        // What changes at every look is for the freeze.
        self.wanted = match seen.untracked {
            None => seen.held.without(&self.right),
            Some(_) => Ranges::default(),
        };
    }

    fn forget(&mut self) {
        let right = std::mem::take(&mut self.right);
        self.dropped.extend(right.iter());
        self.wanted = Ranges::default();
    }

    fn send<E>(
        &mut self,
        buffer: &mut [u8],
        mut send: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), RoundError<E>> {
        let dropped = std::mem::take(&mut self.dropped).without(&self.wanted);
        buffer.fill(0);
        for (address, len) in chunks(&dropped) {
            send(address, &buffer[..len]).map_err(RoundError::Send)?;
        }
        let wanted = std::mem::take(&mut self.wanted);
        if wanted.is_empty() {
            return Ok(());
        }
        // One that has ended is left out at the next look.
        let Ok(reader) = Reader::open(self.pid) else {
            return Ok(());
        };
        for (address, len) in chunks(&wanted) {
            self.send_chunk(&reader, address, &mut buffer[..len], &mut send)?;
        }
        Ok(())
    }

    fn send_chunk<E>(
        &mut self,
        reader: &Reader,
        address: u64,
        buffer: &mut [u8],
        send: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), RoundError<E>> {
        let mut at = 0;
        while at < buffer.len() {
            let from = address + at as u64;
            let read = reader
                .read(from, &mut buffer[at..])
                .map_err(RoundError::Read)?;
            if read == 0 {
                // A page that has gone since the look.
                at += PAGE as usize;
                continue;
            }
            send(from, &buffer[at..at + read]).map_err(RoundError::Send)?;
            self.right.insert(from, from + read as u64);
            at += read;
        }
        Ok(())
    }
}

fn chunks(ranges: &Ranges) -> impl Iterator<Item = (u64, usize)> {
    ranges.iter().flat_map(|(start, end)| {
        let starts = (start..end).step_by(CHUNK);
        starts.map(move |at| (at, (end - at).min(CHUNK as u64) as usize))
    })
}

impl Unchanged {
    /// The parts of a run of pages, in order: start, number of pages, and whether the destination's copy
    /// is right.
    pub fn split(&self, owner: PageOwner, address: u64, pages: u64) -> Vec<(u64, u64, bool)> {
        let end = address.saturating_add(pages.saturating_mul(PAGE));
        let (mut parts, mut at) = (Vec::new(), address);
        let right = self.0.get(&owner).into_iter();
        for (from, to) in right.flat_map(|ranges| ranges.within(address, end)) {
            if at < from {
                parts.push((at, (from - at) / PAGE, false));
            }
            parts.push((from, (to - from) / PAGE, true));
            at = to;
        }
        if at < end {
            parts.push((at, (end - at) / PAGE, false));
        }
        parts
    }

    /// Bytes of it.
    pub fn bytes(&self) -> u64 {
        self.0.values().map(Ranges::bytes).sum()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn ranges(all: &[(u64, u64)]) -> Ranges {
        all.iter()
            .map(|(start, end)| (start * PAGE, end * PAGE))
            .collect()
    }

    fn seen(pid: i32, held: &[(u64, u64)], written: &[(u64, u64)]) -> Seen {
        Seen {
            process: Process { pid, inner: 1 },
            held: ranges(held),
            written: ranges(written),
            untracked: None,
        }
    }

    #[test]
    fn what_is_wanted_and_what_is_dropped() {
        let mut copies = Copies::default();
        copies.update(&seen(7, &[(1, 9)], &[(1, 9)]));
        assert_eq!(copies.wanted, ranges(&[(1, 9)]));
        copies.right = std::mem::take(&mut copies.wanted);
        copies.update(&seen(7, &[(1, 4), (6, 9)], &[(3, 4)]));
        assert_eq!(copies.wanted, ranges(&[(3, 4)]));
        assert_eq!(copies.dropped, ranges(&[(4, 6)]));
        assert_eq!(copies.right, ranges(&[(1, 3), (6, 9)]));
        // What was not sent stays wanted, though nobody writes it again.
        copies.update(&seen(7, &[(1, 4), (6, 9)], &[]));
        assert_eq!(copies.wanted, ranges(&[(3, 4)]));
    }

    #[test]
    fn another_process_of_the_same_number_has_nothing() {
        let mut copies = Copies {
            pid: 7,
            right: ranges(&[(1, 9)]),
            ..Copies::default()
        };
        copies.update(&seen(8, &[(1, 2)], &[]));
        assert_eq!(copies.wanted, ranges(&[(1, 2)]));
        assert_eq!(copies.dropped, ranges(&[(1, 9)]));
        assert!(copies.right.is_empty());
    }

    #[test]
    fn a_run_is_split_by_what_is_right() {
        let owner = PageOwner::of_process(1);
        let unchanged = Unchanged(BTreeMap::from([(owner, ranges(&[(2, 4), (6, 20)]))]));
        let parts = unchanged.split(owner, PAGE, 6);
        let pages: Vec<_> = parts
            .iter()
            .map(|(at, n, right)| (at / PAGE, *n, *right))
            .collect();
        assert_eq!(
            pages,
            [(1, 1, false), (2, 2, true), (4, 2, false), (6, 1, true)]
        );
        let other = unchanged.split(PageOwner::of_process(2), PAGE, 2);
        assert_eq!(other, [(PAGE, 2, false)]);
    }
}
