//! Digests of pages, by object and offset.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use crate::criu::page_server::{PAGE_LEN, PageOwner};
use crate::dirty::Ranges;

/// Of a page: BLAKE3 with a key that nobody else knows, so that no service can make two pages of which one
/// passes for the other. 128 bits of it: that two of 2^32 pages are alike has a chance of 2^-65.
type Digest = [u8; 16];

/// Pages that are kept together.
const GROUP_PAGES: u64 = 512;
const GROUP_BYTES: u64 = GROUP_PAGES * PAGE_LEN as u64;
/// The most groups, 8 KiB each: digests of 8 GiB of memory take 32 MiB.
const GROUPS_MAX: usize = 4096;

type Group = Box<[Option<Digest>]>;

/// By object, and by the number of the group in it.
pub(super) struct Digests {
    key: [u8; blake3::KEY_LEN],
    groups: BTreeMap<(PageOwner, u64), Group>,
}

impl std::fmt::Debug for Digests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digests")
            .field("groups", &self.groups.len())
            .finish_non_exhaustive()
    }
}

impl Digests {
    pub(super) fn new() -> io::Result<Self> {
        let mut key = [0; blake3::KEY_LEN];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        Ok(Self {
            key,
            groups: BTreeMap::new(),
        })
    }

    /// Whether there is no room for another part of an object.
    pub(super) fn is_full(&self) -> bool {
        self.groups.len() >= GROUPS_MAX
    }

    /// Objects of which there is any.
    pub(super) fn owners(&self) -> Vec<PageOwner> {
        let mut owners: Vec<_> = self.groups.keys().map(|(owner, _)| *owner).collect();
        owners.dedup();
        owners
    }

    /// Keeps that of a page; false when there is no room for it.
    pub(super) fn insert(&mut self, owner: PageOwner, offset: u64, page: &[u8]) -> bool {
        let digest = self.digest(page);
        let key = (owner, offset / GROUP_BYTES);
        if self.is_full() && !self.groups.contains_key(&key) {
            return false;
        }
        let empty = || vec![None; GROUP_PAGES as usize].into_boxed_slice();
        let group = self.groups.entry(key).or_insert_with(empty);
        group[index(offset)] = Some(digest);
        true
    }

    pub(super) fn holds(&self, owner: PageOwner, offset: u64, page: &[u8]) -> bool {
        let group = self.groups.get(&(owner, offset / GROUP_BYTES));
        let kept = group.and_then(|group| group[index(offset)]);
        kept.is_some_and(|kept| kept == self.digest(page))
    }

    /// Whether there is one of a page that begins in a range.
    pub(super) fn has_any(&self, owner: PageOwner, from: u64, to: u64) -> bool {
        self.within(owner, from, to).next().is_some()
    }

    /// Forgets those of a range; returns which pages had one.
    pub(super) fn remove(&mut self, owner: PageOwner, from: u64, to: u64) -> Ranges {
        let offsets: Vec<u64> = self.within(owner, from, to).collect();
        let mut touched: Vec<_> = offsets.iter().map(|at| (owner, at / GROUP_BYTES)).collect();
        for (offset, key) in offsets.iter().zip(&touched) {
            if let Some(group) = self.groups.get_mut(key) {
                group[index(*offset)] = None;
            }
        }
        touched.dedup();
        for key in touched {
            if self
                .groups
                .get(&key)
                .is_some_and(|it| it.iter().all(Option::is_none))
            {
                self.groups.remove(&key);
            }
        }
        let pages = offsets.into_iter();
        pages.map(|at| (at, at + PAGE_LEN as u64)).collect()
    }

    fn within(&self, owner: PageOwner, from: u64, to: u64) -> impl Iterator<Item = u64> {
        let groups = (owner, from / GROUP_BYTES)..=(owner, to / GROUP_BYTES);
        let groups = (from <= to).then(|| self.groups.range(groups));
        let pages = groups.into_iter().flatten().flat_map(|((_, at), group)| {
            let kept = group.iter().enumerate().filter(|(_, it)| it.is_some());
            kept.map(move |(page, _)| at * GROUP_BYTES + (page * PAGE_LEN) as u64)
        });
        pages.filter(move |offset| (from..to).contains(offset))
    }

    fn digest(&self, page: &[u8]) -> Digest {
        let mut digest = Digest::default();
        let hash = blake3::keyed_hash(&self.key, page);
        digest.copy_from_slice(&hash.as_bytes()[..size_of::<Digest>()]);
        digest
    }
}

fn index(offset: u64) -> usize {
    (offset % GROUP_BYTES) as usize / PAGE_LEN
}

#[cfg(test)]
mod test {
    use super::*;

    const OBJECT: PageOwner = PageOwner((9 << 8) | 2);
    const OTHER: PageOwner = PageOwner((10 << 8) | 2);
    const PAGE: u64 = PAGE_LEN as u64;

    #[test]
    fn what_is_kept_and_what_is_forgotten() {
        let mut digests = Digests::new().unwrap();
        let page = |fill: u8| vec![fill; PAGE_LEN];
        for at in [0, PAGE, 3 * PAGE, GROUP_BYTES - PAGE, GROUP_BYTES] {
            assert!(digests.insert(OBJECT, at, &page(1)));
        }
        assert!(digests.insert(OTHER, PAGE, &page(2)));
        assert!(digests.holds(OBJECT, PAGE, &page(1)));
        assert!(!digests.holds(OBJECT, PAGE, &page(2)));
        assert!(!digests.holds(OBJECT, 2 * PAGE, &page(1)));
        assert!(!digests.holds(OTHER, 0, &page(1)));
        assert!(digests.has_any(OBJECT, 2 * PAGE, 4 * PAGE));
        assert!(!digests.has_any(OBJECT, 4 * PAGE, 5 * PAGE));
        assert!(!digests.has_any(OBJECT, 5 * PAGE, 4 * PAGE));

        let gone = digests.remove(OBJECT, PAGE, GROUP_BYTES);
        let gone: Vec<_> = gone
            .iter()
            .map(|(from, to)| (from / PAGE, to / PAGE))
            .collect();
        assert_eq!(gone, [(1, 2), (3, 4), (511, 512)]);
        assert!(digests.holds(OBJECT, 0, &page(1)));
        assert!(digests.holds(OBJECT, GROUP_BYTES, &page(1)));
        assert!(!digests.holds(OBJECT, PAGE, &page(1)));
        assert_eq!(digests.owners(), [OBJECT, OTHER]);
        digests.remove(OBJECT, 0, u64::MAX);
        assert_eq!(digests.owners(), [OTHER]);
        assert!(digests.holds(OTHER, PAGE, &page(2)));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut digests = Digests::new().unwrap();
        let page = vec![1; PAGE_LEN];
        for group in 0..GROUPS_MAX as u64 {
            assert!(digests.insert(OBJECT, group * GROUP_BYTES, &page));
        }
        let behind = GROUPS_MAX as u64 * GROUP_BYTES;
        assert!(!digests.insert(OBJECT, behind, &page));
        assert!(!digests.holds(OBJECT, behind, &page));
        assert!(digests.insert(OBJECT, behind - GROUP_BYTES + PAGE, &page));
    }
}
