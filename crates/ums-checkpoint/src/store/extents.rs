//! Runs of pages: where they are in a process, and where they lie in a file. Pure.

use crate::criu::image::{Extent, byte_len};
use crate::criu::page_server::PAGE_LEN;

/// Pages of one process that lie together in the memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredExtent {
    /// Address of the first page in the process.
    pub address: u64,
    /// Number of pages.
    pub pages: u64,
    /// Where they begin in the file, bytes.
    pub offset: u64,
}

/// The same of any file.
pub(super) type Run = StoredExtent;

impl StoredExtent {
    /// Address behind its last page.
    pub(super) fn end(&self) -> u64 {
        self.address + byte_len(self.pages)
    }

    /// Its n-th page.
    pub(super) fn page(&self, n: u64) -> Self {
        self.part(self.address + byte_len(n), self.address + byte_len(n + 1))
    }

    /// What of it lies from `start` to `end`, which are within it.
    pub(super) fn part(&self, start: u64, end: u64) -> Self {
        Self {
            address: start,
            pages: (end - start) / PAGE_LEN as u64,
            offset: self.offset + (start - self.address),
        }
    }

    pub(super) fn extent(&self, flags: u32) -> Extent {
        Extent {
            address: self.address,
            pages: self.pages,
            flags,
        }
    }
}

/// Runs of one process, ascending as CRIU sends them; those that touch in both places are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extents {
    runs: Vec<Run>,
    /// Whether they came in another order, which nothing but a strange source does.
    unordered: bool,
}

impl Extents {
    pub(super) fn push(&mut self, run: Run) {
        if let Some(last) = self.runs.last_mut() {
            if last.end() == run.address && last.offset + byte_len(last.pages) == run.offset {
                last.pages += run.pages;
                return;
            }
            self.unordered |= last.end() > run.address;
        }
        self.runs.push(run);
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(super) fn into_runs(self) -> Vec<Run> {
        self.runs
    }

    /// What of them lies within a range. Of runs in another order nothing is found.
    pub(super) fn within(&self, start: u64, len: u64) -> Vec<Run> {
        if self.unordered {
            return Vec::new();
        }
        let end = start.saturating_add(len);
        let first = self.runs.partition_point(|run| run.end() <= start);
        let runs = self.runs[first..].iter();
        let runs = runs.take_while(|run| run.address < end);
        runs.map(|run| run.part(run.address.max(start), run.end().min(end)))
            .collect()
    }

    /// Takes ranges out, which are given as addresses and numbers of pages in any order.
    pub(super) fn take(&mut self, ranges: &[(u64, u64)]) -> Vec<Run> {
        let mut ranges: Vec<(u64, u64)> = ranges
            .iter()
            .map(|(start, pages)| (*start, start + byte_len(*pages)))
            .collect();
        ranges.sort_unstable();
        let (mut taken, mut left) = (Extents::default(), Extents::default());
        let mut ranges = ranges.into_iter().peekable();
        for run in std::mem::take(&mut self.runs) {
            let mut at = run.address;
            while let Some((start, end)) = ranges.peek().copied() {
                if end <= at {
                    ranges.next();
                    continue;
                }
                let (from, to) = (start.max(at), end.min(run.end()));
                if from >= run.end() {
                    break;
                }
                if at < from {
                    left.push(run.part(at, from));
                }
                taken.push(run.part(from, to));
                at = to;
                if at == run.end() {
                    break;
                }
            }
            if at < run.end() {
                left.push(run.part(at, run.end()));
            }
        }
        *self = left;
        taken.into_runs()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn run(address: u64, pages: u64, offset: u64) -> Run {
        Run {
            address,
            pages,
            offset,
        }
    }

    fn extents(runs: &[Run]) -> Extents {
        let mut extents = Extents::default();
        runs.iter().for_each(|run| extents.push(*run));
        extents
    }

    #[test]
    fn runs_that_touch_in_both_places_are_one() {
        let extents = extents(&[
            run(0x1000, 2, 0),
            run(0x3000, 1, 0x2000),
            run(0x4000, 1, 0x9000),
        ]);
        assert_eq!(extents.runs(), [run(0x1000, 3, 0), run(0x4000, 1, 0x9000)]);
    }

    #[test]
    fn what_lies_within_a_range() {
        let extents = extents(&[run(0x1000, 4, 0), run(0x9000, 2, 0x8000)]);
        assert_eq!(
            extents.within(0x2000, 0x8000),
            [run(0x2000, 3, 0x1000), run(0x9000, 1, 0x8000)]
        );
        assert_eq!(extents.within(0x5000, 0x4000), []);
    }

    #[test]
    fn nothing_is_found_in_disorder() {
        let extents = extents(&[run(0x9000, 1, 0), run(0x1000, 1, 0x1000)]);
        assert_eq!(extents.within(0, u64::MAX), []);
    }

    #[test]
    fn taking_ranges_leaves_the_rest() {
        let mut extents = extents(&[run(0x1000, 8, 0), run(0x20000, 4, 0x8000)]);
        let taken = extents.take(&[(0x1f000, 2), (0x2000, 1), (0x4000, 2), (0x5000, 1), (0, 1)]);
        assert_eq!(
            taken,
            [
                run(0x2000, 1, 0x1000),
                run(0x4000, 2, 0x3000),
                run(0x20000, 1, 0x8000)
            ]
        );
        assert_eq!(
            extents.runs(),
            [
                run(0x1000, 1, 0),
                run(0x3000, 1, 0x2000),
                run(0x6000, 3, 0x5000),
                run(0x21000, 3, 0x9000)
            ]
        );
    }
}
