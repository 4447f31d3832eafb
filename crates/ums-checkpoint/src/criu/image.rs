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
    const HEAD_LEN: usize = 12;
    const WIPE_ON_FORK: u64 = 1 << 18;
    let mm = Mm::decode(file.get(HEAD_LEN..).unwrap_or_default())?;
    let wiped = |vma: &&Vma| vma.madv.unwrap_or(0) & WIPE_ON_FORK != 0;
    let ranges = mm.vmas.iter().filter(wiped);
    Ok(ranges.map(|vma| (vma.start, vma.end)).collect())
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
