//! Which pages a mapping has of its own, where the kernel has no PAGEMAP_SCAN (before Linux 6.7).

use std::fs::File;
use std::io;

use crate::criu::page_server::PAGE_LEN;
use crate::dirty::Ranges;
use crate::dirty::entries::{EXCLUSIVE, FILE_OR_SHARED, PRESENT, each, has_content};
use crate::dirty::mappings::Mapping;

/// Pages with content. The kernel's page of zeros is among them: it can't be told from others here, and
/// is sent as what it is.
pub(super) fn own_pages(pagemap: &File, of: Mapping) -> io::Result<Ranges> {
    let mut all = Ranges::default();
    each(pagemap, of, |address, entry| {
        if is_own(entry) {
            all.insert(address, address + PAGE_LEN as u64);
        }
    })?;
    Ok(all)
}

/// Pages that no other process has. Those that are swapped out are not among them: it can't be told.
pub(super) fn exclusive_pages(pagemap: &File, of: Mapping) -> io::Result<Ranges> {
    let mut all = Ranges::default();
    each(pagemap, of, |address, entry| {
        if entry & PRESENT != 0 && entry & EXCLUSIVE != 0 {
            all.insert(address, address + PAGE_LEN as u64);
        }
    })?;
    Ok(all)
}

fn is_own(entry: u64) -> bool {
    has_content(entry) && entry & FILE_OR_SHARED == 0
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::dirty::entries::{GUARD, SWAPPED};

    #[test]
    fn what_a_mapping_has_of_its_own() {
        assert!(is_own(PRESENT));
        assert!(is_own(SWAPPED));
        assert!(!is_own(0));
        assert!(!is_own(PRESENT | FILE_OR_SHARED));
        assert!(!is_own(SWAPPED | GUARD));
    }
}
