//! Which pages a mapping has of its own, by the entries of the pagemap (`admin-guide/mm/pagemap.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::criu::page_server::PAGE_LEN;
use crate::dirty::Ranges;
use crate::dirty::mappings::Mapping;

const PAGE: u64 = PAGE_LEN as u64;
/// A guard region (Linux 6.15).
const GUARD: u64 = 1 << 58;
const FILE_OR_SHARED: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;
/// Length of an entry.
const ENTRY: u64 = 8;
/// Entries read at once.
const ENTRIES: u64 = 64 << 10;

/// Pages with content. The kernel's page of zeros is among them: it can't be told from others here, and
/// is sent as what it is.
pub(super) fn own_pages(pagemap: &File, of: Mapping) -> io::Result<Ranges> {
    let mut all = Ranges::default();
    let mut buffer = Vec::new();
    let (mut page, end) = (of.start / PAGE, of.end / PAGE);
    while page < end {
        let count = (end - page).min(ENTRIES);
        buffer.resize((count * ENTRY) as usize, 0);
        pagemap.read_exact_at(&mut buffer, page * ENTRY)?;
        let entries = buffer.chunks_exact(ENTRY as usize);
        let entries = entries.map(|entry| u64::from_ne_bytes(entry.try_into().expect("8 bytes")));
        let held = entries.zip(page..).filter(|(entry, _)| is_held(*entry));
        all.extend(held.map(|(_, page)| (page * PAGE, (page + 1) * PAGE)));
        page += count;
    }
    Ok(all)
}

fn is_held(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & (GUARD | FILE_OR_SHARED) == 0
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_held() {
        assert!(is_held(PRESENT));
        assert!(is_held(SWAPPED));
        assert!(!is_held(0));
        assert!(!is_held(PRESENT | FILE_OR_SHARED));
        assert!(!is_held(SWAPPED | GUARD));
    }
}
