//! Which pages of one process are still to be installed, and where they lie. Pure.

use std::collections::BTreeMap;

use super::PAGE;
use crate::store::StoredExtent;

/// Bytes installed at once in the background: long enough to be efficient, short enough that a
/// fault waits no longer than a few hundred microseconds.
const CHUNK: u64 = 256 * 1024;

/// Pages that lie together, and where they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Address of the first page in the process, now.
    pub(super) address: u64,
    /// Bytes.
    pub(super) len: u64,
    /// Where they begin in the store, bytes.
    pub(super) offset: u64,
}

impl Piece {
    /// What is left behind its first `done` bytes.
    pub(super) fn after(self, done: u64) -> Self {
        Self {
            address: self.address + done,
            len: self.len - done,
            offset: self.offset + done,
        }
    }
}

/// Pages of one process that are still to be installed.
///
/// A page leaves for one of these reasons alone: it was installed, the kernel says that there is
/// one already, or the kernel has told that its mapping, or its content, is gone.
#[derive(Debug, Clone, Default)]
pub(super) struct Missing {
    /// Address to length and place, bytes.
    ranges: BTreeMap<u64, (u64, u64)>,
    pages: u64,
}

impl Missing {
    pub(super) fn from_extents(extents: &[StoredExtent]) -> Self {
        let mut missing = Self::default();
        for extent in extents {
            missing.put(Piece {
                address: extent.address,
                len: extent.pages * PAGE,
                offset: extent.offset,
            });
        }
        missing
    }

    /// Number of pages.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Takes out what lies in `[start, start + len)`.
    pub(super) fn take(&mut self, start: u64, len: u64) -> Vec<Piece> {
        let end = start.saturating_add(len);
        let before = self.ranges.range(..=start).next_back();
        let first = before.map_or(start, |(at, _)| *at);
        let keys: Vec<u64> = self.ranges.range(first..end).map(|(at, _)| *at).collect();
        let mut taken = Vec::new();
        for at in keys {
            let (range_len, offset) = self.ranges[&at];
            let (from, to) = (at.max(start), (at + range_len).min(end));
            if from >= to {
                continue;
            }
            self.ranges.remove(&at);
            if at < from {
                self.ranges.insert(at, (from - at, offset));
            }
            if to < at + range_len {
                let rest = (at + range_len - to, offset + (to - at));
                self.ranges.insert(to, rest);
            }
            self.pages -= (to - from) / PAGE;
            taken.push(Piece {
                address: from,
                len: to - from,
                offset: offset + (from - at),
            });
        }
        taken
    }

    /// Puts a piece (back) in, where nothing is.
    pub(super) fn put(&mut self, piece: Piece) {
        if piece.len > 0 {
            self.pages += piece.len / PAGE;
            self.ranges.insert(piece.address, (piece.len, piece.offset));
        }
    }

    /// The piece that begins with `page`, of at most `len` bytes; `None` if that page is not missing.
    pub(super) fn at(&self, page: u64, len: u64) -> Option<Piece> {
        let (at, (range_len, offset)) = self.ranges.range(..=page).next_back()?;
        let skip = page - at;
        (skip < *range_len).then(|| Piece {
            address: page,
            len: (range_len - skip).min(len),
            offset: offset + skip,
        })
    }

    /// The next piece to install: at or after `hint`, else from the beginning; at most a chunk.
    pub(super) fn next(&self, hint: u64) -> Option<Piece> {
        self.at(hint, CHUNK).or_else(|| {
            let mut behind = self.ranges.range(hint..);
            let (at, _) = behind.next().or_else(|| self.ranges.iter().next())?;
            self.at(*at, CHUNK)
        })
    }

    /// The first page that is missing in a range.
    pub(super) fn first_within(&self, start: u64, end: u64) -> Option<u64> {
        if self.at(start, PAGE).is_some() {
            return Some(start);
        }
        self.ranges
            .range(start..end.max(start))
            .next()
            .map(|(at, _)| *at)
    }

    /// Follows pages that the process has moved (`mremap(2)`).
    pub(super) fn remap(&mut self, from: u64, to: u64, len: u64) {
        // What was there is unmapped by the move; its own event may come later.
        let moved = self.take(from, len);
        self.take(to, len);
        for piece in moved {
            self.put(Piece {
                address: piece.address - from + to,
                ..piece
            });
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn extent(address: u64, pages: u64, offset: u64) -> StoredExtent {
        StoredExtent {
            address,
            pages,
            offset,
        }
    }

    fn missing() -> Missing {
        Missing::from_extents(&[extent(0x1000, 4, 0), extent(0x9000, 2, 0x4000)])
    }

    fn piece(address: u64, pages: u64, offset: u64) -> Piece {
        Piece {
            address,
            len: pages * PAGE,
            offset,
        }
    }

    #[test]
    fn taking_a_page_splits_its_range() {
        let mut missing = missing();
        assert_eq!(missing.take(0x2000, PAGE), [piece(0x2000, 1, 0x1000)]);
        assert_eq!(missing.take(0x2000, PAGE), []);
        assert_eq!(missing.pages(), 5);
        assert_eq!(
            missing.take(0, 0x10000),
            [
                piece(0x1000, 1, 0),
                piece(0x3000, 2, 0x2000),
                piece(0x9000, 2, 0x4000),
            ]
        );
        assert_eq!(missing.pages(), 0);
        missing.put(piece(0x3000, 2, 0x2000));
        missing.put(piece(0x8000, 0, 0));
        assert_eq!(missing.pages(), 2);
    }

    #[test]
    fn a_remap_moves_what_is_missing() {
        let mut missing = missing();
        missing.remap(0x2000, 0x20000, 2 * PAGE);
        assert_eq!(missing.take(0x20000, PAGE), [piece(0x20000, 1, 0x1000)]);
        assert_eq!(missing.pages(), 5);
    }

    #[test]
    fn a_remap_onto_missing_pages_replaces_them() {
        let mut missing = missing();
        missing.remap(0x1000, 0x9000, 2 * PAGE);
        assert_eq!(missing.pages(), 4);
        assert_eq!(missing.at(0x9000, 4 * PAGE), Some(piece(0x9000, 2, 0)));
    }

    #[test]
    fn the_next_piece_is_near_the_last_fault_and_wraps_around() {
        let missing = missing();
        assert_eq!(missing.next(0x2000), Some(piece(0x2000, 3, 0x1000)));
        assert_eq!(missing.next(0x6000), Some(piece(0x9000, 2, 0x4000)));
        assert_eq!(missing.next(0xf0000), Some(piece(0x1000, 4, 0)));
        assert_eq!(missing.at(0x4000, PAGE), Some(piece(0x4000, 1, 0x3000)));
        assert_eq!(missing.at(0x5000, PAGE), None);
        assert_eq!(missing.at(0, PAGE), None);
    }
}
