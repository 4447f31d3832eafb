//! Pages that CRIU's restore leaves where late ones belong.
//!
//! CRIU makes the private mappings of a process where its parent made them, so that what they share
//! stays shared, and drops of what the process inherits the pages that it had itself put in for the parent
//! (`criu/mem.c`, `restore_priv_vma_content`). The kernel may have put in more: all of a locked mapping, and
//! what lies around a page in a mapping of huge pages. That is left, and holds zeros. Nobody ever faults
//! there, and the kernel would answer an attempt to install the page that there is one already.
//!
//! So before a restored service executes, each late page that is there and empty gets its content.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::criu::page_server::PAGE_LEN;
use crate::store::StoredExtent;

/// Entries of `/proc/PID/pagemap` that are read at once.
const ENTRIES_MAX: u64 = 4096;
/// Bytes of one entry.
const ENTRY_LEN: u64 = 8;
/// In memory, or swapped out (kernel `admin-guide/mm/pagemap.rst`).
const IS_THERE: u64 = 1 << 63 | 1 << 62;

/// Puts the content of late pages into those that are there and empty, in a process that has not
/// executed since it was restored. Returns how many there were.
///
/// # Errors
/// The process's memory can't be read or written: it must not run.
pub fn fill(pid: i32, extents: &[StoredExtent], stored: &File) -> io::Result<u64> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut memory = OpenOptions::new();
    let memory = memory.read(true).write(true);
    let memory = memory.open(format!("/proc/{pid}/mem"))?;
    let mut filled = 0;
    for extent in extents {
        for page in pages_there(&pagemap, extent)? {
            let from = page * PAGE_LEN as u64;
            let (address, offset) = (extent.address + from, extent.offset + from);
            filled += u64::from(fill_page(&memory, address, stored, offset)?);
        }
    }
    Ok(filled)
}

/// The parts of extents whose pages are there, as places in the store and lengths.
///
/// # Errors
/// When the process's page tables can't be read.
pub fn there(pid: i32, extents: &[StoredExtent]) -> io::Result<Vec<(u64, u64)>> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let len = PAGE_LEN as u64;
    let mut all = Vec::new();
    for extent in extents {
        let pages = pages_there(&pagemap, extent)?.into_iter();
        all.extend(pages.map(|page| (extent.offset + page * len, len)));
    }
    Ok(all)
}

/// Which pages of an extent are there, counted from its first.
fn pages_there(pagemap: &File, extent: &StoredExtent) -> io::Result<Vec<u64>> {
    let mut there = Vec::new();
    let mut at = 0;
    while at < extent.pages {
        let count = (extent.pages - at).min(ENTRIES_MAX);
        let mut entries = vec![0; (count * ENTRY_LEN) as usize];
        let first = extent.address / PAGE_LEN as u64 + at;
        pagemap.read_exact_at(&mut entries, first * ENTRY_LEN)?;
        let (entries, _) = entries.as_chunks::<{ ENTRY_LEN as usize }>();
        let found = entries.iter().zip(at..);
        let found = found.filter(|(entry, _)| u64::from_ne_bytes(**entry) & IS_THERE != 0);
        there.extend(found.map(|(_, page)| page));
        at += count;
    }
    Ok(there)
}

/// Whether a page was empty, and is not to be.
fn fill_page(memory: &File, address: u64, stored: &File, offset: u64) -> io::Result<bool> {
    let mut page = [0; PAGE_LEN];
    memory.read_exact_at(&mut page, address)?;
    if !is_empty(&page) {
        return Ok(false);
    }
    stored.read_exact_at(&mut page, offset)?;
    if is_empty(&page) {
        return Ok(false);
    }
    // Also where the process itself may not write.
    memory.write_all_at(&page, address)?;
    Ok(true)
}

fn is_empty(page: &[u8; PAGE_LEN]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
#[expect(
    unsafe_code,
    reason = "memory of which each page is in a state of its own"
)]
mod test {
    use std::io::Write;
    use std::num::NonZeroUsize;
    use std::ptr::{read_volatile, write_volatile};

    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::*;

    const PAGES: usize = 4;

    #[test]
    fn what_is_there_and_empty_is_filled_and_nothing_else() {
        let len = NonZeroUsize::new(PAGES * PAGE_LEN).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let memory = unsafe { mmap_anonymous(None, len, access, MapFlags::MAP_PRIVATE) }.unwrap();
        // SAFETY: each page is within the mapping, which nobody else has.
        let page = |number: usize| unsafe { memory.cast::<u8>().add(number * PAGE_LEN).as_ptr() };
        // SAFETY: as above. The first page is written, the second read, the others never touched.
        unsafe {
            write_volatile(page(0), b'x');
            assert_eq!(read_volatile(page(1)), 0);
        }
        let mut stored = tempfile::tempfile().unwrap();
        stored.write_all(&[7; PAGES * PAGE_LEN]).unwrap();
        let extents = [StoredExtent {
            address: memory.as_ptr() as u64,
            pages: PAGES as u64,
            offset: 0,
        }];
        let own = std::process::id() as i32;
        assert_eq!(fill(own, &extents, &stored).unwrap(), 1);
        assert_eq!(fill(own, &extents, &stored).unwrap(), 0, "it is there now");
        // SAFETY: as above.
        let found: Vec<u8> = (0..PAGES)
            .map(|number| unsafe { read_volatile(page(number)) })
            .collect();
        assert_eq!(found, [b'x', 7, 0, 0]);
        // SAFETY: it is this test's own, and not used any more.
        unsafe { munmap(memory, len.get()) }.unwrap();
    }
}
