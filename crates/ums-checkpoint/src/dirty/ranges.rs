//! Sets of addresses as ranges that neither touch nor overlap.

use std::collections::BTreeMap;

/// A set of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges {
    /// Start → end.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Puts `start..end` in.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start, end);
        // Ranges that overlap it or touch it become one with it; only the first may begin before it.
        while let Some((&near, &near_end)) = self.ranges.range(..=to).next_back() {
            if near_end < from {
                break;
            }
            self.ranges.remove(&near);
            (from, to) = (from.min(near), to.max(near_end));
        }
        self.ranges.insert(from, to);
    }

    /// Takes `start..end` out.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((&near, &near_end)) = self.ranges.range(..end).next_back() {
            if near_end <= start {
                break;
            }
            self.ranges.remove(&near);
            if near < start {
                self.ranges.insert(near, start);
            }
            if near_end > end {
                self.ranges.insert(end, near_end);
            }
        }
    }

    /// Whether all of `start..end` is in it.
    pub fn contains(&self, start: u64, end: u64) -> bool {
        let mut inside = self.within(start, end);
        start >= end || inside.next() == Some((start, end))
    }

    /// What is in this set and not in the other.
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        for (start, end) in self.iter() {
            let mut at = start;
            for (from, to) in other.within(start, end) {
                rest.insert(at, from);
                at = to;
            }
            rest.insert(at, end);
        }
        rest
    }

    /// The parts of this set that lie between two addresses, in order.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.ranges.range(..=start).next_back();
        let first = first.map_or(start, |(from, _)| *from);
        let near = self.ranges.range(first..end.max(first));
        near.map(move |(from, to)| (*from.max(&start), *to.min(&end)))
            .filter(|(from, to)| from < to)
    }

    /// Its ranges in order, as start and end.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().map(|(start, end)| (*start, *end))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes in it.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|(start, end)| end - start).sum()
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(ranges: T) -> Self {
        let mut set = Self::default();
        set.extend(ranges);
        set
    }
}

impl Extend<(u64, u64)> for Ranges {
    fn extend<T: IntoIterator<Item = (u64, u64)>>(&mut self, ranges: T) {
        for (start, end) in ranges {
            self.insert(start, end);
        }
    }
}

#[cfg(test)]
mod test {
    use std::collections::BTreeSet;

    use super::*;

    /// Numbers without a pattern, the same in every run (xorshift).
    fn numbers() -> impl FnMut(u64) -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        }
    }

    fn members(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.iter().flat_map(|(start, end)| start..end).collect()
    }

    #[test]
    fn it_is_what_a_set_of_addresses_is() {
        let mut number = numbers();
        let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
        for _ in 0..2000 {
            let start = number(200);
            let end = start + number(20);
            if number(2) == 0 {
                ranges.insert(start, end);
                model.extend(start..end);
            } else {
                ranges.remove(start, end);
                model.retain(|address| !(start..end).contains(address));
            }
            assert_eq!(members(&ranges), model);
            let all: Vec<_> = ranges.iter().collect();
            assert!(all.windows(2).all(|two| two[0].1 < two[1].0), "{all:?}");
            let inside: Ranges = ranges.within(start, end).collect();
            let wanted = model.range(start..end).copied().collect();
            assert_eq!(members(&inside), wanted);
            let all_in = (start..end).all(|address| model.contains(&address));
            assert_eq!(ranges.contains(start, end), all_in);
        }
    }

    #[test]
    fn what_the_other_has_is_left_out() {
        let mut number = numbers();
        for _ in 0..500 {
            let mut any = || -> Ranges {
                let starts: Vec<u64> = (0..number(8)).map(|_| number(100)).collect();
                let ranges = starts.into_iter().map(|start| (start, start + 7));
                ranges.collect()
            };
            let (one, other) = (any(), any());
            let wanted = &members(&one) - &members(&other);
            assert_eq!(members(&one.without(&other)), wanted);
        }
    }

    #[test]
    fn what_is_empty_is_nothing() {
        let mut ranges = Ranges::default();
        ranges.insert(5, 5);
        ranges.remove(7, 7);
        assert!(ranges.is_empty());
        assert_eq!(ranges.bytes(), 0);
    }
}
