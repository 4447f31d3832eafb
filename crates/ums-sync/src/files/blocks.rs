//! What the first pass sent of a large file, block by block, so that the second can send only the
//! blocks that are others now.

use std::ops::Range;

/// The shortest block. Shorter ones would find less to send and need more hashes; a file that is
/// no longer than one is sent whole.
pub(super) const BLOCK_LEN_MIN: u64 = 64 * 1024;

/// Hashes that are remembered at most, of all files together: 8 MiB of them, or 32 GiB of files in
/// the shortest blocks. What comes later gets longer blocks, and at last none.
pub(super) const HASHES_MAX: usize = 512 * 1024;

/// The first 16 bytes of a block's BLAKE3: nobody can find two blocks that share them.
type Hash = [u8; 16];

/// Of a block of which nothing was sent: it is a hole, whatever its length.
const HOLE: Hash = [0; 16];

const ZEROS: [u8; 4096] = [0; 4096];

/// How long the blocks of a file of `size` bytes are when `left` hashes may still be remembered;
/// `None` if it should not be divided. One file takes at most half of what is left.
pub(super) fn block_len(size: u64, left: usize) -> Option<u64> {
    let most = u64::try_from(left / 2).ok().filter(|most| *most > 0)?;
    let len = size
        .div_ceil(most)
        .max(BLOCK_LEN_MIN)
        .checked_next_power_of_two()?;
    (len < size).then_some(len)
}

/// The blocks of one file as they were sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Inode of the file.
    inode: u64,
    /// Length of each block but the last, bytes.
    len: u64,
    /// Size of the file, bytes.
    size: u64,
    hashes: Vec<Hash>,
}

impl Blocks {
    /// How many hashes it takes.
    pub(super) fn count(&self) -> usize {
        self.hashes.len()
    }

    /// Whether they are those of the file with this inode. Of another one that now has its name,
    /// what the destination has may have other names there.
    pub(super) fn are_of(&self, inode: u64) -> bool {
        self.inode == inode
    }

    /// Up to where the destination has something else than a hole, bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// For hashing the file as it is now, as far as there is something to compare it with.
    pub(super) fn hasher(&self, size: u64) -> (Hasher, u64) {
        let compared = size.min(self.len.saturating_mul(self.hashes.len() as u64));
        (Hasher::new(self.len), compared)
    }

    /// What of a file that is `size` bytes long now has to be sent, in order, neighbours joined.
    pub(super) fn changed(&self, now: &Hasher, size: u64) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for index in 0..size.div_ceil(self.len) {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            let hash = now.hashes.get(at);
            if hash.is_some() && hash == self.hashes.get(at) {
                continue;
            }
            let begin = index * self.len;
            let end = begin.saturating_add(self.len).min(size);
            match ranges.last_mut() {
                // All that was added at the end is one range, however long.
                Some(last) if last.end == begin => last.end = end,
                _ => ranges.push(begin..end),
            }
            if at >= self.hashes.len() {
                ranges
                    .last_mut()
                    .into_iter()
                    .for_each(|last| last.end = size);
                break;
            }
        }
        ranges
    }
}

/// Hashes a file's content as it goes by. What is left out is a hole.
pub(super) struct Hasher {
    len: u64,
    at: u64,
    current: blake3::Hasher,
    /// Whether anything but holes is in the current block.
    filled: bool,
    /// Bytes of hole that `current` has not been given yet.
    zeros: u64,
    hashes: Vec<Hash>,
}

impl Hasher {
    pub(super) fn new(len: u64) -> Self {
        Self {
            len,
            at: 0,
            current: blake3::Hasher::new(),
            filled: false,
            zeros: 0,
            hashes: Vec::new(),
        }
    }

    /// Content at `offset`, which is not before the end of what came before.
    pub(super) fn content(&mut self, offset: u64, mut bytes: &[u8]) {
        self.hole_to(offset);
        while !bytes.is_empty() {
            let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.put_zeros();
            self.current.update(now);
            self.filled = true;
            self.advance(now.len() as u64);
            bytes = later;
        }
    }

    /// All of a file that is `size` bytes long has gone by.
    pub(super) fn end(&mut self, size: u64) {
        self.hole_to(size);
        if !self.at.is_multiple_of(self.len) {
            self.close();
        }
    }

    /// The blocks that have gone by, of a file with this inode.
    pub(super) fn into_blocks(self, inode: u64) -> Blocks {
        Blocks {
            inode,
            len: self.len,
            size: self.at,
            hashes: self.hashes,
        }
    }

    fn room(&self) -> u64 {
        self.len - self.at % self.len
    }

    fn hole_to(&mut self, offset: u64) {
        while self.at < offset {
            let hole = self.room().min(offset - self.at);
            self.zeros += hole;
            self.advance(hole);
        }
    }

    fn advance(&mut self, length: u64) {
        self.at += length;
        if self.at.is_multiple_of(self.len) {
            self.close();
        }
    }

    fn put_zeros(&mut self) {
        while self.zeros > 0 {
            let length = self.zeros.min(ZEROS.len() as u64);
            self.current.update(&ZEROS[..length as usize]);
            self.zeros -= length;
        }
    }

    fn close(&mut self) {
        let mut hash = HOLE;
        if self.filled {
            self.put_zeros();
            hash.copy_from_slice(&self.current.finalize().as_bytes()[..16]);
        }
        self.hashes.push(hash);
        self.current.reset();
        (self.filled, self.zeros) = (false, 0);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const LEN: u64 = BLOCK_LEN_MIN;

    fn blocks(content: &[(u64, &[u8])], size: u64) -> Blocks {
        let mut hasher = Hasher::new(LEN);
        for (offset, bytes) in content {
            hasher.content(*offset, bytes);
        }
        hasher.end(size);
        hasher.into_blocks(1)
    }

    fn changed(before: &Blocks, content: &[(u64, &[u8])], size: u64) -> Vec<Range<u64>> {
        let (mut now, compared) = before.hasher(size);
        for (offset, bytes) in content {
            now.content(*offset, bytes);
        }
        now.end(compared);
        before.changed(&now, size)
    }

    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    #[test]
    fn lengths_grow_with_files_and_with_what_is_remembered() {
        assert_eq!(block_len(LEN, HASHES_MAX), None);
        assert_eq!(block_len(LEN + 1, HASHES_MAX), Some(LEN));
        assert_eq!(block_len(16 << 30, HASHES_MAX), Some(LEN));
        assert_eq!(block_len(1 << 40, HASHES_MAX), Some(4 << 20));
        assert_eq!(block_len(1 << 30, 16), Some(128 << 20));
        assert_eq!(block_len(1 << 30, 2), None, "one block is the whole file");
        assert_eq!(block_len(1 << 30, 1), None);
        assert_eq!(block_len(u64::MAX, HASHES_MAX), Some(1 << 46));
    }

    #[test]
    fn pieces_of_any_length_hash_alike_and_holes_read_as_zeros() {
        let content: Vec<u8> = (0..LEN * 2 + 10).map(|at| (at % 251) as u8).collect();
        let whole = blocks(&[(0, &content)], LEN * 2 + 10);
        let (front, back) = content.split_at(1000);
        assert_eq!(blocks(&[(0, front), (1000, back)], LEN * 2 + 10), whole);
        assert_eq!(whole.count(), 3);
        let zeros = vec![0; 5000];
        let told = blocks(&[(0, &content[..100]), (100, &zeros), (5100, b"x")], LEN);
        assert_eq!(blocks(&[(0, &content[..100]), (5100, b"x")], LEN), told);
    }

    #[test]
    fn only_other_blocks_are_sent() {
        let content = vec![7; 3 * LEN as usize];
        let before = blocks(&[(0, &content)], 3 * LEN);
        assert_eq!(changed(&before, &[(0, &content)], 3 * LEN), []);
        let mut other = content.clone();
        other[LEN as usize + 5] = 8;
        assert_eq!(changed(&before, &[(0, &other)], 3 * LEN), one(LEN..2 * LEN));
        // Appended: only what is new, in one range however long.
        let sent = changed(&before, &[(0, &content)], 3 * LEN + (1 << 40));
        assert_eq!(sent, one(3 * LEN..3 * LEN + (1 << 40)));
        // Cut off: what is gone needs no sending, the block that was cut does.
        assert_eq!(changed(&before, &[(0, &content[..LEN as usize])], LEN), []);
        let cut = changed(&before, &[(0, &content[..LEN as usize + 9])], LEN + 9);
        assert_eq!(cut, one(LEN..LEN + 9));
        // A hole where there was content, and content where there was a hole.
        let hole = [
            (0, &content[..LEN as usize]),
            (2 * LEN, &content[..LEN as usize]),
        ];
        assert_eq!(changed(&before, &hole, 3 * LEN), one(LEN..2 * LEN));
        let sparse = blocks(&hole, 3 * LEN);
        assert_eq!(
            changed(&sparse, &[(0, &content)], 3 * LEN),
            one(LEN..2 * LEN)
        );
        assert_eq!(changed(&sparse, &hole, 3 * LEN), []);
    }
}
