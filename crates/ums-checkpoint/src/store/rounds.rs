//! Pages that arrive while the service still runs at the source, in rounds.
//!
//! They are staged: the later page wins, and what is dropped is taken out. Only the freeze makes them
//! part of the checkpoint, by naming them ([`PageStore::keep`]); whatever it does not name is thrown away.

use std::os::unix::fs::FileExt;

use super::extents::Run;
use super::staged::Part;
use super::{Error, PageStore, check_range, mapped};
use crate::criu::image::{self, byte_len};
use crate::criu::page_server::{PAGE_LEN, PE_LAZY, PageOwner};
use crate::memory_dir::MemoryDir;

/// A flag of ours beside CRIU's: these pages were read while the service ran, and stand for nothing before
/// they are confirmed.
pub const READ_RUNNING: u32 = 1 << 31;
/// Pages that are looked at together.
const CHUNK_PAGES: u64 = 64;

impl PageStore {
    /// Takes whole pages that were read while the service ran, in place of earlier ones.
    ///
    /// # Errors
    /// As of [`push`](Self::push).
    pub fn stage(&mut self, owner: PageOwner, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = check_range(address, bytes.len() as u64)?;
        if image::pagemap_name(owner).is_none() {
            return Err(Error::Nonsense(format!("a round of owner {:#x}", owner.0)));
        }
        let parts = self.staged.entry(owner).or_default().parts(address, end);
        for part in parts {
            let of =
                |from: u64, to: u64| &bytes[(from - address) as usize..(to - address) as usize];
            match part {
                Part::There(run) => {
                    let written = self
                        .lazy
                        .write_all_at(of(run.address, run.end()), run.offset);
                    written.map_err(Error::Memory)?;
                }
                Part::Missing(from, to) => self.stage_new(owner, from, of(from, to))?,
            }
        }
        Ok(())
    }

    fn stage_new(&mut self, owner: PageOwner, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let len = bytes.len() as u64;
        self.count_extent()?;
        self.count_bytes(len)?;
        let offset = self.lazy_len;
        let written = self.lazy.write_all_at(bytes, offset);
        written.map_err(Error::Memory)?;
        self.lazy_len += len;
        let pages = len / PAGE_LEN as u64;
        self.staged.entry(owner).or_default().insert(Run {
            address,
            pages,
            offset,
        });
        Ok(())
    }

    /// Forgets staged pages: they read as zeros now, or are not there any more.
    pub fn unstage(&mut self, owner: PageOwner, start: u64, end: u64) {
        let Some(staged) = self.staged.get_mut(&owner).filter(|it| !it.is_empty()) else {
            return;
        };
        for part in staged.take(start, end) {
            if let Part::There(run) = part {
                self.release(run);
            }
        }
    }

    /// Makes staged pages part of the checkpoint, in the freeze: they have not changed since. Those that
    /// aren't staged are zeros. `flags` are CRIU's.
    ///
    /// # Errors
    /// As of [`push`](Self::push).
    pub fn keep(
        &mut self,
        owner: PageOwner,
        address: u64,
        flags: u32,
        pages: u64,
        images: &MemoryDir,
    ) -> Result<(), Error> {
        let len = pages.checked_mul(PAGE_LEN as u64);
        let end = check_range(address, len.unwrap_or(u64::MAX))?;
        self.open(owner, images)?;
        let late = self.lazy_restore && flags & PE_LAZY != 0 && owner.process().is_some();
        let staged = self.staged.entry(owner).or_default();
        for part in staged.take(address, end) {
            match part {
                Part::There(run) if late => self.keep_late(owner, run)?,
                Part::There(run) => self.keep_early(owner, flags, run, images)?,
                Part::Missing(..) if late => {}
                Part::Missing(from, to) => {
                    for (at, len) in chunks(from, to) {
                        self.push(owner, at, flags, &vec![0; len], images)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Where it is, except what the parent has too.
    fn keep_late(&mut self, owner: PageOwner, run: Run) -> Result<(), Error> {
        if !self.has_parent(owner) {
            return self.keep_run(owner, run);
        }
        for (at, len) in chunks(run.address, run.end()) {
            let part = run.part(at, at + len as u64);
            let bytes = self.read(part)?;
            let mut from = at;
            for shared in self.shared_with_parent(owner, at, &bytes)? {
                self.keep_run(owner, part.part(from, shared.address))?;
                self.release(part.part(shared.address, shared.end()));
                self.share(owner, shared)?;
                from = shared.end();
            }
            self.keep_run(owner, part.part(from, part.end()))?;
        }
        Ok(())
    }

    fn keep_run(&mut self, owner: PageOwner, run: Run) -> Result<(), Error> {
        if run.pages == 0 {
            return Ok(());
        }
        self.count_extent()?;
        let owned = self.owners.get_mut(&owner).expect("opened by keep");
        owned.stored.push(run);
        Ok(())
    }

    /// CRIU wants it at the restore.
    fn keep_early(
        &mut self,
        owner: PageOwner,
        flags: u32,
        run: Run,
        images: &MemoryDir,
    ) -> Result<(), Error> {
        for (at, len) in chunks(run.address, run.end()) {
            let part = run.part(at, at + len as u64);
            let bytes = self.read(part)?;
            self.release(part);
            self.push(owner, at, flags, &bytes, images)?;
        }
        Ok(())
    }

    fn has_parent(&self, owner: PageOwner) -> bool {
        let parent = owner.process().and_then(|id| self.parents.get(&id));
        parent.is_some_and(|id| self.owners.contains_key(&PageOwner::of_process(*id)))
    }

    fn read(&self, run: Run) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; byte_len(run.pages) as usize];
        let read = self.lazy.read_exact_at(&mut bytes, run.offset);
        read.map_err(Error::Memory).map(|()| bytes)
    }

    fn release(&mut self, run: Run) {
        let len = byte_len(run.pages);
        mapped::release(&self.lazy, run.offset, len);
        self.bytes = self.bytes.saturating_sub(len);
    }

    /// What the freeze has not named.
    pub(super) fn drop_staged(&mut self) {
        for (_, staged) in std::mem::take(&mut self.staged) {
            for run in staged.into_runs() {
                self.release(run);
            }
        }
    }
}

/// A range in pieces, as address and length.
fn chunks(start: u64, end: u64) -> impl Iterator<Item = (u64, usize)> {
    let step = byte_len(CHUNK_PAGES);
    (start..end)
        .step_by(step as usize)
        .map(move |at| (at, step.min(end - at) as usize))
}
