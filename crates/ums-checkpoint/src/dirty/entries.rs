//! The entries of `/proc/PID/pagemap` (`admin-guide/mm/pagemap.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::PAGE;
use super::mappings::Mapping;

/// Bits of an entry.
pub(crate) const SOFT_DIRTY: u64 = 1 << 55;
pub(crate) const EXCLUSIVE: u64 = 1 << 56;
/// A guard region (Linux 6.15).
pub(crate) const GUARD: u64 = 1 << 58;
pub(crate) const FILE_OR_SHARED: u64 = 1 << 61;
pub(crate) const SWAPPED: u64 = 1 << 62;
pub(crate) const PRESENT: u64 = 1 << 63;
/// Length of an entry.
const ENTRY: u64 = 8;
/// Entries read at once.
const ENTRIES: u64 = 64 << 10;

/// Calls `take` with the address of each page of a mapping, and its entry.
pub(crate) fn each(pagemap: &File, of: Mapping, mut take: impl FnMut(u64, u64)) -> io::Result<()> {
    let mut bytes = Vec::new();
    let (mut page, end) = (of.start / PAGE, of.end / PAGE);
    while page < end {
        let count = (end - page).min(ENTRIES);
        bytes.resize((count * ENTRY) as usize, 0);
        pagemap.read_exact_at(&mut bytes, page * ENTRY)?;
        for (entry, page) in bytes.chunks_exact(ENTRY as usize).zip(page..) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
            take(page * PAGE, entry);
        }
        page += count;
    }
    Ok(())
}

/// Whether a page is there or swapped out, and no guard.
pub(crate) fn has_content(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & GUARD == 0
}
