//! Which places of the store have no content yet, because it is still at the source. Pure.
//!
//! Places are counted in the store and not in the processes: where a process has moved its memory, and
//! which of its children have it too, changes nothing about where it comes from.

use std::collections::BTreeMap;

use super::PAGE;
use crate::store::Index;
use crate::supply::PAGES_MAX;

/// Content that is to be asked of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Where it belongs in the store, bytes.
    pub place: u64,
    /// Whose page it is at the source, by CRIU's process id.
    pub process: u32,
    /// Its address there.
    pub address: u64,
    /// How many pages.
    pub pages: u32,
}

/// A part in as many questions as it takes.
fn questions(place: u64, part: &Part) -> Vec<Wanted> {
    let step = u64::from(PAGES_MAX) * PAGE;
    let skips = (0..part.len).step_by(step as usize);
    let one = |skip: u64| Wanted {
        place: place + skip,
        process: part.process,
        address: part.address + skip,
        pages: ((part.len - skip).min(step) / PAGE) as u32,
    };
    skips.map(one).collect()
}

#[derive(Debug, Clone, Copy)]
struct Part {
    len: u64,
    process: u32,
    address: u64,
    asked: bool,
}

/// Places without content.
#[derive(Debug, Default)]
pub(super) struct Away {
    parts: BTreeMap<u64, Part>,
    /// Bytes that were asked for and have not come.
    asked: u64,
}

impl Away {
    pub(super) fn new(index: &Index) -> Self {
        let mut parts = BTreeMap::new();
        for (process, extents) in index {
            for extent in extents {
                let part = Part {
                    len: extent.pages * PAGE,
                    process: *process,
                    address: extent.address,
                    asked: false,
                };
                parts.insert(extent.offset, part);
            }
        }
        Self { parts, asked: 0 }
    }

    /// Bytes under way.
    pub(super) fn asked(&self) -> u64 {
        self.asked
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many of `len` bytes from `place` on are here before the first that is not.
    pub(super) fn here(&self, place: u64, len: u64) -> u64 {
        if let Some((at, part)) = self.parts.range(..=place).next_back()
            && place < at + part.len
        {
            return 0;
        }
        let next = self.parts.range(place..place.saturating_add(len)).next();
        next.map_or(len, |(at, _)| at - place)
    }

    /// What of a range is neither here nor asked for; it counts as asked for from now on.
    pub(super) fn ask(&mut self, place: u64, len: u64) -> Vec<Wanted> {
        let end = place.saturating_add(len);
        self.cut(place);
        self.cut(end);
        let parts = self.parts.range_mut(place..end);
        let fresh = parts.filter(|(_, part)| !part.asked);
        let mut wanted = Vec::new();
        for (at, part) in fresh {
            part.asked = true;
            self.asked += part.len;
            wanted.extend(questions(*at, part));
        }
        wanted
    }

    /// A range has its content.
    pub(super) fn arrived(&mut self, place: u64, len: u64) {
        let end = place.saturating_add(len);
        self.cut(place);
        self.cut(end);
        let keys: Vec<u64> = self.parts.range(place..end).map(|(at, _)| *at).collect();
        for key in keys {
            if let Some(part) = self.parts.remove(&key).filter(|part| part.asked) {
                self.asked -= part.len;
            }
        }
    }

    /// Whether exactly this was asked for, and has not come.
    pub(super) fn awaits(&self, place: u64, len: u64) -> bool {
        let end = place.saturating_add(len);
        let before = self.parts.range(..=place).next_back();
        let first = before.map_or(place, |(at, _)| *at);
        let parts = self.parts.range(first..end);
        let covered: u64 = parts
            .filter(|(_, part)| part.asked)
            .map(|(at, part)| (at + part.len).min(end).saturating_sub((*at).max(place)))
            .sum();
        len > 0 && covered == len
    }

    /// Makes a border at a place.
    fn cut(&mut self, place: u64) {
        let Some((at, part)) = self.parts.range(..place).next_back() else {
            return;
        };
        let (at, part) = (*at, *part);
        if place >= at + part.len {
            return;
        }
        let first = place - at;
        self.parts.insert(at, Part { len: first, ..part });
        let rest = Part {
            len: part.len - first,
            address: part.address + first,
            ..part
        };
        self.parts.insert(place, rest);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::store::StoredExtent;

    fn away() -> Away {
        let extent = |address, pages, offset| StoredExtent {
            address,
            pages,
            offset,
        };
        Away::new(&Index::from([
            (1, vec![extent(0x10_0000, 4, 0x2000)]),
            (7, vec![extent(0x20_0000, 1, 0x9000)]),
        ]))
    }

    #[test]
    fn what_is_here_ends_where_something_is_away() {
        let mut away = away();
        assert_eq!(away.here(0, 0x8000), 0x2000);
        assert_eq!(away.here(0x3000, PAGE), 0);
        assert_eq!(away.here(0x6000, 0x8000), 0x3000);
        away.ask(0x3000, PAGE);
        away.arrived(0x3000, PAGE);
        assert_eq!(away.here(0x3000, 0x3000), 0x1000);
        assert!(!away.is_empty());
        away.arrived(0, 0x10000);
        assert!(away.is_empty());
        assert_eq!(away.asked(), 0);
    }

    #[test]
    fn nothing_is_asked_for_twice() {
        let mut away = away();
        let wanted = away.ask(0x3000, 2 * PAGE);
        let first = Wanted {
            place: 0x3000,
            process: 1,
            address: 0x10_1000,
            pages: 2,
        };
        assert_eq!(wanted, [first]);
        assert!(away.awaits(0x3000, 2 * PAGE));
        assert!(away.awaits(0x4000, PAGE));
        assert!(!away.awaits(0x2000, 2 * PAGE));
        assert!(!away.awaits(0x3000, 0));
        let places = |wanted: Vec<Wanted>| -> Vec<(u64, u32)> {
            wanted.iter().map(|one| (one.place, one.pages)).collect()
        };
        let rest = places(away.ask(0, 0x10000));
        assert_eq!(rest, [(0x2000, 1), (0x5000, 1), (0x9000, 1)]);
        assert_eq!(away.ask(0, 0x10000), []);
        assert_eq!(away.asked(), 5 * PAGE);
    }
}
