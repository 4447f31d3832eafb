//! Runs of pages: where they are in a process, and where they lie in a file. Pure.

use std::collections::BTreeMap;

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

/// Runs of one process, by their addresses; those that touch in both places are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extents {
    runs: BTreeMap<u64, Run>,
    /// Whether a page came twice.
    overlap: bool,
}

impl Extents {
    pub(super) fn push(&mut self, run: Run) {
        if run.pages == 0 {
            return;
        }
        let behind = self.runs.range(run.address..).next();
        self.overlap |= behind.is_some_and(|(address, _)| *address < run.end());
        if let Some((_, before)) = self.runs.range_mut(..run.address).next_back() {
            self.overlap |= before.end() > run.address;
            if before.end() == run.address && before.offset + byte_len(before.pages) == run.offset {
                before.pages += run.pages;
                return;
            }
        }
        self.runs.insert(run.address, run);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether a page is in it twice: nothing else is right then.
    pub(super) fn has_overlap(&self) -> bool {
        self.overlap
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    pub(super) fn into_runs(self) -> Vec<Run> {
        self.runs.into_values().collect()
    }

    /// What of them lies within a range.
    pub(super) fn within(&self, start: u64, len: u64) -> Vec<Run> {
        let end = start.saturating_add(len);
        let first = self.runs.range(..=start).next_back();
        let first = first.map_or(start, |(address, _)| *address);
        let runs = self.runs.range(first..end.max(first)).map(|(_, run)| run);
        runs.map(|run| (run, run.address.max(start), run.end().min(end)))
            .filter(|(_, from, to)| from < to)
            .map(|(run, from, to)| run.part(from, to))
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
        for run in std::mem::take(self).into_runs() {
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
        assert_eq!(
            extents.into_runs(),
            [run(0x1000, 3, 0), run(0x4000, 1, 0x9000)]
        );
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
    fn any_order_will_do() {
        let extents = extents(&[run(0x9000, 1, 0), run(0x1000, 1, 0x1000)]);
        let ordered = [run(0x1000, 1, 0x1000), run(0x9000, 1, 0)];
        assert_eq!(extents.within(0, u64::MAX), ordered);
        assert!(!extents.has_overlap());
    }

    #[test]
    fn a_page_that_comes_twice_is_seen() {
        let of = |second| extents(&[run(0x3000, 2, 0), second]).has_overlap();
        assert!(of(run(0x4000, 1, 0x9000)));
        assert!(of(run(0x2000, 2, 0x9000)));
        assert!(of(run(0x3000, 2, 0x9000)));
        assert!(of(run(0x1000, 9, 0x9000)));
        assert!(!of(run(0x5000, 1, 0x9000)));
        assert!(!of(run(0x2000, 1, 0x9000)));
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
            extents.into_runs(),
            [
                run(0x1000, 1, 0),
                run(0x3000, 1, 0x2000),
                run(0x6000, 3, 0x5000),
                run(0x21000, 3, 0x9000)
            ]
        );
    }
}
