//! CRIU's image files, as far as we write them: the pagemaps of pages that came by our own path.
//!
//! A file begins with two magic numbers; then come protobuf messages, each after its length as a
//! 32-bit number (CRIU `criu/include/magic.h`, `images/pagemap.proto`). Page files are raw.

use prost::Message;

use super::page_server::{PAGE_LEN, PageOwner};

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
