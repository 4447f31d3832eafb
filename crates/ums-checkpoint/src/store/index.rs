//! The index of stored pages, as an image file: read while the service is frozen, so it is numbers
//! in a row.
//!
//! ```text
//! "UMSPAGES" version processes { process extents { address pages offset } }
//! ```
//!
//! Each is 64 bits long, little-endian.

use std::collections::BTreeMap;

use super::StoredExtent;

/// The pages of all processes that are to be installed late, by CRIU's process id.
pub type Index = BTreeMap<u32, Vec<StoredExtent>>;

const MAGIC: u64 = u64::from_le_bytes(*b"UMSPAGES");
const VERSION: u64 = 1;
const WORD: usize = 8;

/// Why an index can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the index of pages is malformed: {0}")]
pub struct Malformed(&'static str);

/// Writes an index.
pub fn encode(index: &Index) -> Vec<u8> {
    let extents: usize = index.values().map(Vec::len).sum();
    let mut bytes = Vec::with_capacity(WORD * (3 + 2 * index.len() + 3 * extents));
    let mut word = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
    word(MAGIC);
    word(VERSION);
    word(index.len() as u64);
    for (process, extents) in index {
        word(u64::from(*process));
        word(extents.len() as u64);
        for extent in extents {
            word(extent.address);
            word(extent.pages);
            word(extent.offset);
        }
    }
    bytes
}

/// Reads an index.
pub fn decode(bytes: &[u8]) -> Result<Index, Malformed> {
    let mut words = bytes.chunks_exact(WORD).map(|word| {
        let word = word.try_into().expect("eight bytes");
        u64::from_le_bytes(word)
    });
    let mut word = || words.next().ok_or(Malformed("it ends too early"));
    if (word()?, word()?) != (MAGIC, VERSION) {
        return Err(Malformed("another version wrote it"));
    }
    let mut index = Index::new();
    for _ in 0..word()? {
        let process = u32::try_from(word()?).map_err(|_| Malformed("a process id"))?;
        let count = word()?;
        // Not believed: what isn't there is not made room for.
        let mut extents = Vec::new();
        for _ in 0..count {
            extents.push(StoredExtent {
                address: word()?,
                pages: word()?,
                offset: word()?,
            });
        }
        if index.insert(process, extents).is_some() {
            return Err(Malformed("a process twice"));
        }
    }
    match words.next() {
        None => Ok(index),
        Some(_) => Err(Malformed("it goes on after its end")),
    }
}

/// Whether two processes have pages at one place of the store.
pub fn has_shared_places(index: &Index) -> bool {
    let mut places: Vec<(u64, u64)> = index
        .values()
        .flatten()
        .map(|extent| (extent.offset, extent.pages))
        .collect();
    places.sort_unstable();
    places
        .windows(2)
        .any(|two| two[0].0 + crate::criu::image::byte_len(two[0].1) > two[1].0)
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

    #[test]
    fn what_is_written_is_read() {
        let two = vec![extent(0x1000, 2, 0), extent(0x9000, 1, 0x2000)];
        let index = Index::from([(1, two), (7, vec![]), (9, vec![extent(0, 1, 0x3000)])]);
        assert_eq!(decode(&encode(&index)), Ok(index));
        assert_eq!(decode(&encode(&Index::new())), Ok(Index::new()));
    }

    #[test]
    fn what_is_cut_short_or_goes_on_is_malformed() {
        let index = Index::from([(1, vec![extent(0x1000, 2, 0)])]);
        let bytes = encode(&index);
        for len in (0..bytes.len()).step_by(WORD) {
            assert!(decode(&bytes[..len]).is_err(), "{len}");
        }
        assert!(decode(&[bytes.clone(), vec![0; WORD]].concat()).is_err());
        let mut endless = bytes.clone();
        endless[2 * WORD..3 * WORD].fill(0xff);
        assert!(decode(&endless).is_err());
        assert!(decode(b"UMSPAGES").is_err());
    }

    #[test]
    fn places_of_two_processes_are_seen() {
        let one = |offset| vec![extent(0x1000, 2, offset)];
        let apart = Index::from([(1, one(0)), (2, one(0x2000))]);
        assert!(!has_shared_places(&apart));
        let together = Index::from([(1, one(0)), (2, one(0x1000))]);
        assert!(has_shared_places(&together));
    }
}
