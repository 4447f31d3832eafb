//! Pages of one process that were read while it ran: they are part of the checkpoint only when the freeze
//! has confirmed them. Pure.

use std::collections::BTreeMap;

use super::extents::Run;

/// Where each page lies in the memfd. Runs that touch in both places are one.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// By the address of the first page.
    runs: BTreeMap<u64, Run>,
}

/// A part of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Pages that are there.
    There(Run),
    /// Addresses of pages that are not, from start to end.
    Missing(u64, u64),
}

impl Staged {
    /// Puts a run in where nothing is.
    pub(super) fn insert(&mut self, run: Run) {
        if let Some((_, before)) = self.runs.range_mut(..run.address).next_back()
            && before.end() == run.address
            && before.offset + (before.end() - before.address) == run.offset
        {
            before.pages += run.pages;
            return;
        }
        self.runs.insert(run.address, run);
    }

    /// The parts of a range in order.
    pub(super) fn parts(&self, start: u64, end: u64) -> Vec<Part> {
        let first = self.runs.range(..=start).next_back();
        let first = first.map_or(start, |(address, _)| *address);
        let (mut parts, mut at) = (Vec::new(), start);
        for run in self.runs.range(first..end.max(first)).map(|(_, run)| run) {
            let (from, to) = (run.address.max(start), run.end().min(end));
            if from >= to {
                continue;
            }
            if at < from {
                parts.push(Part::Missing(at, from));
            }
            parts.push(Part::There(run.part(from, to)));
            at = to;
        }
        if at < end {
            parts.push(Part::Missing(at, end));
        }
        parts
    }

    /// Takes out what lies in a range, and returns the range's parts.
    pub(super) fn take(&mut self, start: u64, end: u64) -> Vec<Part> {
        let parts = self.parts(start, end);
        while let Some((&address, &run)) = self.runs.range(..end).next_back() {
            if run.end() <= start {
                break;
            }
            self.runs.remove(&address);
            if address < start {
                self.runs.insert(address, run.part(address, start));
            }
            if run.end() > end {
                self.runs.insert(end, run.part(end, run.end()));
            }
        }
        parts
    }

    /// All of it.
    pub(super) fn into_runs(self) -> impl Iterator<Item = Run> {
        self.runs.into_values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod test {
    use std::collections::BTreeMap;

    use super::*;

    const PAGE: u64 = 4096;

    fn run(page: u64, pages: u64, offset: u64) -> Run {
        Run {
            address: page * PAGE,
            pages,
            offset: offset * PAGE,
        }
    }

    /// Page → page of the file.
    fn pages(parts: &[Part]) -> BTreeMap<u64, u64> {
        let mut all = BTreeMap::new();
        for part in parts {
            if let Part::There(run) = part {
                let numbers = 0..run.pages;
                all.extend(numbers.map(|n| (run.address / PAGE + n, run.offset / PAGE + n)));
            }
        }
        all
    }

    #[test]
    fn it_is_what_a_map_of_pages_is() {
        let mut state = 7_u64;
        let mut number = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let (mut staged, mut model) = (Staged::default(), BTreeMap::new());
        let mut offset = 0;
        for _ in 0..3000 {
            let (start, count) = (number(100), 1 + number(8));
            let end = start + count;
            let taken = staged.take(start * PAGE, end * PAGE);
            let wanted: BTreeMap<u64, u64> =
                model.range(start..end).map(|(p, o)| (*p, *o)).collect();
            assert_eq!(pages(&taken), wanted);
            model.retain(|page, _| !(start..end).contains(page));
            if number(3) > 0 {
                staged.insert(run(start, count, offset));
                model.extend((0..count).map(|n| (start + n, offset + n)));
                // Now and then what follows in memory follows in the file.
                offset += count + number(2);
            }
            let all = staged.parts(0, 200 * PAGE);
            assert_eq!(pages(&all), model);
            let covered: u64 = all
                .iter()
                .map(|part| match part {
                    Part::There(run) => run.pages,
                    Part::Missing(from, to) => (to - from) / PAGE,
                })
                .sum();
            assert_eq!(covered, 200);
        }
    }

    #[test]
    fn runs_that_touch_in_both_places_are_one() {
        let mut staged = Staged::default();
        staged.insert(run(1, 2, 0));
        staged.insert(run(3, 1, 2));
        staged.insert(run(4, 1, 9));
        let runs: Vec<Run> = staged.into_runs().collect();
        assert_eq!(runs, [run(1, 3, 0), run(4, 1, 9)]);
    }
}
