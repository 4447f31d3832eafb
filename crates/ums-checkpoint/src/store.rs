//! Arrived pages, in memory: filled by the agent, served from by the keeper.
//!
//! Pages that may be installed late go into one memfd, which the agent hands to the keeper with an
//! index; pages that CRIU must have at the restore go into page files beside the metadata. Nothing
//! of it has a name on a disk, and all of it is gone with the last process that holds it.
//!
//! Two kinds of page that could come late must not:
//!
//! - A page that a process shares with its parent since `fork(2)`. CRIU restores the sharing where it
//!   has both pages at the restore; a page that is installed late is always a copy of its own, and a
//!   service that had enough memory would not have it any more. Which pages are shared is told by
//!   their content, as CRIU tells it. They are kept once, however many processes have them.
//! - A page that a child shall find empty (`MADV_WIPEONFORK`): the kernel does not tell when that
//!   happens.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::criu::image::{self, Extent};
use crate::criu::page_server::{PAGE_LEN, PE_LAZY, PE_PRESENT, PageOwner};
use crate::memory_dir::MemoryDir;
use crate::tree::Parents;

pub mod away;
mod early;
mod extents;
pub mod index;
mod mapped;
mod rounds;
mod staged;
#[cfg(test)]
mod test;

pub use extents::StoredExtent;
pub use index::Index;
pub use mapped::Mapped;
pub use rounds::READ_RUNNING;

use extents::{Extents, Run};
use staged::Staged;

/// The most extents of one checkpoint: bounds the index however scattered the pages are.
const EXTENTS_MAX: usize = 16 << 20;

/// Why pages could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Memory is used up, or the file system in memory is.
    #[error("no memory for arriving pages: free memory on this system or send a smaller service")]
    Memory(#[source] io::Error),
    /// More was sent than announced.
    #[error("more memory arrives than was announced ({0} bytes)")]
    TooMuch(u64),
    /// An owner of a kind that is not known, a page twice, or too many pieces.
    #[error("arriving pages make no sense: {0}")]
    Nonsense(String),
}

/// Takes arriving pages.
#[derive(Debug)]
pub struct PageStore {
    lazy: File,
    lazy_len: u64,
    lazy_restore: bool,
    bytes_max: u64,
    bytes: u64,
    owners: BTreeMap<PageOwner, Owned>,
    parents: Parents,
    extents: usize,
    /// What was read while the service ran.
    staged: BTreeMap<PageOwner, Staged>,
}

/// What has arrived of one owner.
#[derive(Debug)]
struct Owned {
    pages_id: u32,
    /// Pages that CRIU has at the restore.
    file: File,
    file_len: u64,
    present: Vec<(Run, u32)>,
    /// Pages in the memfd.
    stored: Extents,
    /// Those of them that must not come late, as addresses and numbers of pages.
    early: Vec<(u64, u64)>,
    /// Those of them whose content is still at the source.
    away: Extents,
}

/// All pages of a checkpoint, whole.
#[derive(Debug)]
pub struct Stored {
    /// The memfd.
    pub lazy: OwnedFd,
    /// What is where in it.
    pub index: Index,
    /// What of that has no content yet: it is still at the source.
    pub away: Index,
    /// Bytes in it.
    pub lazy_bytes: u64,
    /// Bytes of it that processes share and that are restored before the service runs.
    pub shared_bytes: u64,
}

impl PageStore {
    /// An empty store that takes at most `bytes_max`. Without `lazy_restore` every page goes into
    /// page files: the restore then needs no userfaultfd, and takes longer.
    pub fn new(bytes_max: u64, lazy_restore: bool) -> Result<Self, Error> {
        let lazy = memfd_create("ums-pages", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| Error::Memory(errno.into()))?;
        Ok(Self {
            lazy: File::from(lazy),
            lazy_len: 0,
            lazy_restore,
            bytes_max,
            bytes: 0,
            owners: BTreeMap::new(),
            parents: Parents::new(),
            extents: 0,
            staged: BTreeMap::new(),
        })
    }

    /// Tells who is whose child, so that what they share is kept shared. Comes before the pages.
    pub fn set_parents(&mut self, parents: Parents) {
        self.parents = parents;
    }

    /// Makes an owner known, so that it has a pagemap even when it has no page.
    pub fn open(&mut self, owner: PageOwner, images: &MemoryDir) -> Result<(), Error> {
        if self.owners.contains_key(&owner) {
            return Ok(());
        }
        if image::pagemap_name(owner).is_none() {
            return Err(Error::Nonsense(format!("owner {:#x}", owner.0)));
        }
        let pages_id = self.owners.len() as u32 + 1;
        let owned = Owned {
            pages_id,
            file: page_file(images, pages_id)?,
            file_len: 0,
            present: Vec::new(),
            stored: Extents::default(),
            early: Vec::new(),
            away: Extents::default(),
        };
        self.owners.insert(owner, owned);
        Ok(())
    }

    /// Takes whole pages that lie together. `bytes` is a multiple of the page length.
    pub fn push(
        &mut self,
        owner: PageOwner,
        address: u64,
        flags: u32,
        bytes: &[u8],
        images: &MemoryDir,
    ) -> Result<(), Error> {
        let len = bytes.len() as u64;
        let end = check_range(address, len)?;
        // What was read before is not what it holds now.
        self.unstage(owner, address, end);
        self.count_bytes(len)?;
        self.open(owner, images)?;
        if self.lazy_restore && flags & PE_LAZY != 0 && owner.process().is_some() {
            return self.push_late(owner, address, bytes);
        }
        self.count_extent()?;
        let owned = self.owners.get_mut(&owner).expect("opened above");
        owned.file.write_all(bytes).map_err(Error::Memory)?;
        let run = Run {
            address,
            pages: len / PAGE_LEN as u64,
            offset: owned.file_len,
        };
        owned.file_len += len;
        owned.present.push((run, PE_PRESENT | flags & PE_LAZY));
        Ok(())
    }

    /// Takes pages that may come late, except those that the parent has too.
    fn push_late(&mut self, owner: PageOwner, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut at = 0;
        for shared in self.shared_with_parent(owner, address, bytes)? {
            let before = (shared.address - address) as usize;
            self.store(owner, address + at as u64, &bytes[at..before])?;
            self.share(owner, shared)?;
            at = before + image::byte_len(shared.pages) as usize;
        }
        self.store(owner, address + at as u64, &bytes[at..])
    }

    fn store(&mut self, owner: PageOwner, address: u64, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.count_extent()?;
        let offset = self.lazy_len;
        self.lazy
            .write_all_at(bytes, offset)
            .map_err(Error::Memory)?;
        self.lazy_len += bytes.len() as u64;
        let owned = self.owners.get_mut(&owner).expect("opened by push");
        owned.stored.push(Run {
            address,
            pages: (bytes.len() / PAGE_LEN) as u64,
            offset,
        });
        Ok(())
    }

    /// The runs of `bytes` that are at the same addresses of the parent, with its place of them.
    fn shared_with_parent(
        &self,
        owner: PageOwner,
        address: u64,
        bytes: &[u8],
    ) -> Result<Vec<Run>, Error> {
        let process = owner.process().expect("only processes have late pages");
        let parent = self
            .parents
            .get(&process)
            .map(|id| PageOwner::of_process(*id));
        let Some(parent) = parent.and_then(|parent| self.owners.get(&parent)) else {
            return Ok(Vec::new());
        };
        let mut shared = Extents::default();
        let mut buffer = Vec::new();
        for run in parent.stored.within(address, bytes.len() as u64) {
            let len = image::byte_len(run.pages) as usize;
            buffer.resize(len, 0);
            self.lazy
                .read_exact_at(&mut buffer, run.offset)
                .map_err(Error::Memory)?;
            let from = (run.address - address) as usize;
            let pairs = bytes[from..from + len].chunks_exact(PAGE_LEN);
            let pairs = pairs.zip(buffer.chunks_exact(PAGE_LEN)).enumerate();
            let same = pairs.filter(|(_, (ours, theirs))| ours == theirs);
            // What the parent has there is not known yet.
            let at = |page: usize| run.address + image::byte_len(page as u64);
            let same = same.filter(|(page, _)| !away::has_page(&parent.away, at(*page)));
            same.for_each(|(page, _)| shared.push(run.page(page as u64)));
        }
        Ok(shared.into_runs())
    }

    fn share(&mut self, owner: PageOwner, run: Run) -> Result<(), Error> {
        self.count_extent()?;
        let process = owner.process().expect("only processes have late pages");
        let parent = self
            .parents
            .get(&process)
            .map(|id| PageOwner::of_process(*id));
        for of in parent.into_iter().chain([owner]) {
            if let Some(owned) = self.owners.get_mut(&of) {
                owned.early.push((run.address, run.pages));
            }
        }
        let owned = self.owners.get_mut(&owner).expect("opened by push");
        owned.stored.push(run);
        Ok(())
    }

    fn count_bytes(&mut self, len: u64) -> Result<(), Error> {
        self.bytes += len;
        match self.bytes > self.bytes_max {
            true => Err(Error::TooMuch(self.bytes_max)),
            false => Ok(()),
        }
    }

    fn count_extent(&mut self) -> Result<(), Error> {
        self.extents += 1;
        if self.extents > EXTENTS_MAX {
            return Err(Error::Nonsense("memory in too many pieces".to_owned()));
        }
        Ok(())
    }

    /// Bytes that are here.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the pagemaps beside the metadata, and gives out what is to be installed late.
    pub fn finish(mut self, images: &MemoryDir) -> Result<Stored, Error> {
        self.drop_staged();
        for (owner, owned) in &mut self.owners {
            owned.check(*owner)?;
            owned.put_in_order(images)?;
            owned.keep_wiped_pages(*owner, images)?;
            owned.has_what_is_early()?;
        }
        let shared_bytes = early::restore_early(&self.lazy, &mut self.owners, images)?;
        let (mut index, mut away) = (Index::new(), Index::new());
        for (owner, owned) in self.owners {
            let Some(process) = owner.process() else {
                write_pagemap(images, owner, owned.pages_id, &owned.map())?;
                continue;
            };
            if owned.early.is_empty() {
                write_pagemap(images, owner, owned.pages_id, &owned.map())?;
            }
            index.insert(process, owned.stored.into_runs());
            if !owned.away.is_empty() {
                away.insert(process, owned.away.into_runs());
            }
        }
        Ok(Stored {
            lazy: self.lazy.into(),
            index,
            away,
            lazy_bytes: self.lazy_len,
            shared_bytes,
        })
    }
}

impl Owned {
    /// Each page once.
    fn check(&mut self, owner: PageOwner) -> Result<(), Error> {
        let present = self.present.iter().map(|(run, _)| *run);
        let mut runs: Vec<Run> = present.chain(self.stored.runs().copied()).collect();
        runs.sort_by_key(|run| run.address);
        let twice = runs.windows(2).any(|two| two[0].end() > two[1].address);
        match twice || self.stored.has_overlap() {
            true => Err(Error::Nonsense(format!(
                "a page of owner {:#x} came twice",
                owner.0
            ))),
            false => Ok(()),
        }
    }

    /// CRIU reads a page file from its beginning to its end, in the order of addresses. A source sends in that
    /// order what can't come late; only where nothing may come late something else has come in between.
    fn put_in_order(&mut self, images: &MemoryDir) -> Result<(), Error> {
        self.present.sort_by_key(|(run, _)| run.address);
        let offsets = self.present.iter().map(|(run, _)| run.offset);
        if offsets.is_sorted() {
            return Ok(());
        }
        let name = image::pages_name(self.pages_id);
        std::fs::remove_file(images.path().join(name)).map_err(Error::Memory)?;
        let mut file = page_file(images, self.pages_id)?;
        self.file_len = 0;
        for (run, _) in &mut self.present {
            let len = image::byte_len(run.pages);
            early::copy(&self.file, run.offset, len, &mut file).map_err(Error::Memory)?;
            // Never all of it twice.
            mapped::release(&self.file, run.offset, len);
            run.offset = self.file_len;
            self.file_len += len;
        }
        self.file = file;
        Ok(())
    }

    /// Pages that a child shall not have must be there before there can be a child.
    fn keep_wiped_pages(&mut self, owner: PageOwner, images: &MemoryDir) -> Result<(), Error> {
        let Some(process) = owner.process().filter(|_| !self.stored.is_empty()) else {
            return Ok(());
        };
        let path = images.path().join(image::mm_name(process));
        let Ok(bytes) = std::fs::read(path) else {
            // CRIU, which needs it too, will say so.
            return Ok(());
        };
        let wiped = image::wiped_on_fork(&bytes)
            .map_err(|error| Error::Nonsense(format!("mappings of process {process}: {error}")))?;
        for (start, end) in wiped {
            let runs = self.stored.within(start, end.saturating_sub(start));
            self.early
                .extend(runs.iter().map(|run| (run.address, run.pages)));
        }
        Ok(())
    }

    /// The pagemap of an owner with page files of its own.
    fn map(&self) -> Vec<Extent> {
        let late = self.stored.runs().map(|run| (*run, PE_LAZY));
        let mut all: Vec<(Run, u32)> = self.present.iter().copied().chain(late).collect();
        all.sort_by_key(|(run, _)| run.address);
        let mut map = Vec::new();
        for (run, flags) in all {
            image::push_extent(&mut map, run.extent(flags));
        }
        map
    }
}

/// The end of whole pages from `address` on.
fn check_range(address: u64, len: u64) -> Result<u64, Error> {
    let whole = len.is_multiple_of(PAGE_LEN as u64) && address.is_multiple_of(PAGE_LEN as u64);
    let end = address.checked_add(len).filter(|_| whole);
    end.ok_or_else(|| Error::Nonsense(format!("{len} bytes at {address:#x}")))
}

fn page_file(images: &MemoryDir, pages_id: u32) -> Result<File, Error> {
    let path = images.path().join(image::pages_name(pages_id));
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true);
    options.open(path).map_err(Error::Memory)
}

fn write_pagemap(
    images: &MemoryDir,
    owner: PageOwner,
    pages_id: u32,
    map: &[Extent],
) -> Result<(), Error> {
    let name = image::pagemap_name(owner).expect("checked when opened");
    let file = image::pagemap(pages_id, map);
    images.write(&name, &file).map_err(Error::Memory)
}
