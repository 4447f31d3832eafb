//! CRIU's image files, as far as we write them: the pagemaps of pages that came by our own path.
//!
//! A file begins with two magic numbers; then come protobuf messages, each after its length as a
//! 32-bit number (CRIU `criu/include/magic.h`, `images/pagemap.proto`). Page files are raw.

use prost::Message;

use super::page_server::{PAGE_LEN, PageOwner};

#[cfg(test)]
pub(crate) use test_images::{mm_with, read_pagemap};

const COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// Two magic numbers and the length of the one message of an image of mappings.
const MM_HEAD_LEN: usize = 12;

#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    compat_nr_pages: u32,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    nr_pages: Option<u64>,
}

/// A run of pages in a pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Address of the first page.
    pub address: u64,
    /// Number of pages.
    pub pages: u64,
    /// CRIU's `PE_*` flags.
    pub flags: u32,
}

/// Encodes a pagemap file whose pages are in `pages-<pages_id>.img`.
pub fn pagemap(pages_id: u32, extents: &[Extent]) -> Vec<u8> {
    let mut file = COMMON_MAGIC.to_ne_bytes().to_vec();
    file.extend(PAGEMAP_MAGIC.to_ne_bytes());
    push(&mut file, &Head { pages_id });
    for extent in extents {
        // Older readers know the 32-bit count alone; the 64-bit one, where known, takes its place.
        let compat = u32::try_from(extent.pages).unwrap_or(u32::MAX);
        push(
            &mut file,
            &Entry {
                vaddr: extent.address,
                compat_nr_pages: compat,
                flags: Some(extent.flags),
                nr_pages: Some(extent.pages),
            },
        );
    }
    file
}

fn push(file: &mut Vec<u8>, message: &impl Message) {
    let len = u32::try_from(message.encoded_len()).expect("pagemap messages are tens of bytes");
    file.extend(len.to_ne_bytes());
    message.encode(file).expect("a Vec grows");
}

/// Adds a run to a pagemap; one that goes on where the last one ends is part of it.
pub fn push_extent(map: &mut Vec<Extent>, extent: Extent) {
    if let Some(last) = map.last_mut()
        && last.address + byte_len(last.pages) == extent.address
        && last.flags == extent.flags
    {
        last.pages += extent.pages;
        return;
    }
    map.push(extent);
}

#[derive(Clone, PartialEq, Message)]
struct Mm {
    #[prost(message, repeated, tag = "14")]
    vmas: Vec<Vma>,
}

#[derive(Clone, PartialEq, Message)]
struct Vma {
    #[prost(uint64, required, tag = "1")]
    start: u64,
    #[prost(uint64, required, tag = "2")]
    end: u64,
    #[prost(uint64, optional, tag = "9")]
    madv: Option<u64>,
}

/// Name of the image of a process's mappings.
pub fn mm_name(process: u32) -> String {
    format!("mm-{process}.img")
}

/// The mappings that a child finds empty (`MADV_WIPEONFORK`), as first address and the one behind the
/// last, from an image of a process's mappings (CRIU `images/mm.proto`, `criu/proc_parse.c`).
pub fn wiped_on_fork(file: &[u8]) -> Result<Vec<(u64, u64)>, prost::DecodeError> {
    const WIPE_ON_FORK: u64 = 1 << 18;
    let mm = Mm::decode(file.get(MM_HEAD_LEN..).unwrap_or_default())?;
    let wiped = |vma: &&Vma| vma.madv.unwrap_or(0) & WIPE_ON_FORK != 0;
    let ranges = mm.vmas.iter().filter(wiped);
    Ok(ranges.map(|vma| (vma.start, vma.end)).collect())
}

/// A mapping of guards (`criu/include/image.h`, `VMA_AREA_GUARD`; `images/vma.proto`).
#[derive(Clone, PartialEq, Message)]
struct GuardVma {
    #[prost(uint64, required, tag = "1")]
    start: u64,
    #[prost(uint64, required, tag = "2")]
    end: u64,
    #[prost(uint64, required, tag = "3")]
    pgoff: u64,
    #[prost(uint64, required, tag = "4")]
    shmid: u64,
    #[prost(uint32, required, tag = "5")]
    prot: u32,
    #[prost(uint32, required, tag = "6")]
    flags: u32,
    #[prost(uint32, required, tag = "7")]
    status: u32,
    #[prost(sint64, required, tag = "8")]
    fd: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Guards {
    #[prost(message, repeated, tag = "14")]
    vmas: Vec<GuardVma>,
}

/// An image of a process's mappings with these guards (`MADV_GUARD_INSTALL`) behind them, as CRIU has them
/// (`criu/mem.c`, `collect_madv_guards`). What is in the image already stays as it is: a repeated field of a
/// message may come in pieces.
pub fn with_guards(mut file: Vec<u8>, guards: &[(u64, u64)]) -> Vec<u8> {
    const AREA_GUARD: u32 = 1 << 16;
    let vmas = guards.iter().map(|(start, end)| GuardVma {
        start: *start,
        end: *end,
        status: AREA_GUARD,
        fd: -1,
        ..GuardVma::default()
    });
    let guards = Guards {
        vmas: vmas.collect(),
    };
    guards.encode(&mut file).expect("a Vec grows");
    if let Some(len) = file.len().checked_sub(MM_HEAD_LEN)
        && let Ok(len) = u32::try_from(len)
    {
        file[MM_HEAD_LEN - size_of::<u32>()..MM_HEAD_LEN].copy_from_slice(&len.to_ne_bytes());
    }
    file
}

/// Names of the pagemap file of an owner; `None` for an owner of a kind we don't know.
pub fn pagemap_name(owner: PageOwner) -> Option<String> {
    match (owner.process(), owner.shared_memory()) {
        (Some(process), _) => Some(format!("pagemap-{process}.img")),
        (_, Some(object)) => Some(format!("pagemap-shmem-{object}.img")),
        _ => None,
    }
}

/// Name of a page file.
pub fn pages_name(pages_id: u32) -> String {
    format!("pages-{pages_id}.img")
}

/// Bytes in a number of pages.
pub fn byte_len(pages: u64) -> u64 {
    pages * PAGE_LEN as u64
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn guards_come_behind_the_mappings() {
        let before = mm_with(&[(0x1000, 0x9000, 7)]);
        let file = with_guards(before, &[(0x2000, 0x3000), (0x5000, 0x6000)]);
        let len = u32::from_ne_bytes(file[8..12].try_into().unwrap()) as usize;
        assert_eq!(len, file.len() - MM_HEAD_LEN);
        let mm = Mm::decode(&file[MM_HEAD_LEN..]).unwrap();
        let ranges: Vec<_> = mm.vmas.iter().map(|vma| (vma.start, vma.end)).collect();
        assert_eq!(
            ranges,
            [(0x1000, 0x9000), (0x2000, 0x3000), (0x5000, 0x6000)]
        );
        assert_eq!(mm.vmas[0].madv, Some(7));
        let guards = Guards::decode(&file[MM_HEAD_LEN..]);
        assert!(guards.is_ok_and(|all| all.vmas[2].status == 1 << 16 && all.vmas[2].fd == -1));
    }
}

/// What tests read back and make up.
#[cfg(test)]
mod test_images {
    use super::*;

    /// The page file's number and the runs of a pagemap.
    pub(crate) fn read_pagemap(file: &[u8]) -> (u32, Vec<Extent>) {
        let mut messages = Vec::new();
        let mut rest = &file[8..];
        while let Some((len, behind)) = rest.split_first_chunk::<4>() {
            let (message, behind) = behind.split_at(u32::from_ne_bytes(*len) as usize);
            messages.push(message);
            rest = behind;
        }
        let head = Head::decode(messages[0]).unwrap();
        let entries = messages[1..].iter().map(|message| {
            let entry = Entry::decode(*message).unwrap();
            Extent {
                address: entry.vaddr,
                pages: entry.nr_pages.unwrap(),
                flags: entry.flags.unwrap(),
            }
        });
        (head.pages_id, entries.collect())
    }

    /// An image of mappings: first address, address behind the last, advice.
    pub(crate) fn mm_with(mappings: &[(u64, u64, u64)]) -> Vec<u8> {
        let vma = |(start, end, madv): &(u64, u64, u64)| Vma {
            start: *start,
            end: *end,
            madv: Some(*madv),
        };
        let vmas = mappings.iter().map(vma).collect();
        let mut file = vec![0; 8];
        push(&mut file, &Mm { vmas });
        file
    }
}
