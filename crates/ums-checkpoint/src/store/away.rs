//! Pages that stay at the source until the service runs (post-copy): their places are kept, their content
//! comes later.

use super::extents::{Extents, Run};
use super::{Error, Owned, PageStore, check_range};
use crate::criu::image::byte_len;
use crate::criu::page_server::{PAGE_LEN, PE_LAZY, PageOwner};
use crate::memory_dir::MemoryDir;

/// A flag of ours beside CRIU's: these pages exist, and their content stays at the source for now. Only
/// a destination that has agreed to it knows the flag.
pub const STAYS_AWAY: u32 = 1 << 30;

/// Name of the image file that tells which stored pages have no content yet, as an
/// [`index`](super::index); absent when all have.
pub const AWAY_NAME: &str = "ums-away";

impl PageStore {
    /// Keeps a place for pages whose content comes when the service runs already.
    ///
    /// # Errors
    /// As of [`push`](Self::push); and of pages that a restore needs, which nobody could install later.
    pub fn keep_place(
        &mut self,
        owner: PageOwner,
        address: u64,
        flags: u32,
        pages: u64,
        images: &MemoryDir,
    ) -> Result<(), Error> {
        let len = pages.saturating_mul(PAGE_LEN as u64);
        let end = check_range(address, len)?;
        if !self.lazy_restore || flags & PE_LAZY == 0 || owner.process().is_none() {
            let what = format!("pages at {address:#x} that must be here stay away");
            return Err(Error::Nonsense(what));
        }
        // What was read before is not what it holds now.
        self.unstage(owner, address, end);
        self.count_bytes(len)?;
        self.count_extent()?;
        self.open(owner, images)?;
        let offset = self.lazy_len;
        self.lazy_len += len;
        self.lazy.set_len(self.lazy_len).map_err(Error::Memory)?;
        let run = Run {
            address,
            pages,
            offset,
        };
        let owned = self.owners.get_mut(&owner).expect("opened above");
        owned.stored.push(run);
        owned.away.push(run);
        Ok(())
    }
}

impl Owned {
    /// Pages that CRIU is to have at the restore must be here.
    pub(super) fn has_what_is_early(&self) -> Result<(), Error> {
        let mut early = self.early.iter();
        let away =
            early.find(|(start, pages)| !self.away.within(*start, byte_len(*pages)).is_empty());
        match away {
            None => Ok(()),
            Some((start, _)) => Err(Error::Nonsense(format!(
                "the page at {start:#x} must be here before the service runs, and stays away"
            ))),
        }
    }
}

/// Whether the page at an address is among these.
pub(super) fn has_page(of: &Extents, address: u64) -> bool {
    !of.within(address, PAGE_LEN as u64).is_empty()
}
