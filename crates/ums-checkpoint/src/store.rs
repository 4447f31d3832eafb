//! Arrived pages, in memory: filled by the agent, served from by the keeper.
//!
//! Pages that may be installed late go into one memfd, which the agent hands to the keeper with an
//! index; pages that CRIU must have at the restore go into page files beside the metadata. Nothing
//! of it has a name on a disk, and all of it is gone with the last process that holds it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::criu::image::{self, Extent};
use crate::criu::page_server::{PAGE_LEN, PE_LAZY, PE_PRESENT, PageOwner};
use crate::memory_dir::MemoryDir;

/// The most extents of one checkpoint: bounds the index however scattered the pages are.
const EXTENTS_MAX: usize = 16 << 20;

/// Pages of one process that lie together in the memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredExtent {
    /// Address of the first page in the process.
    pub address: u64,
    /// Number of pages.
    pub pages: u64,
    /// Where they begin in the memfd, bytes.
    pub offset: u64,
}

/// The pages of all processes that are to be installed late, by CRIU's process id.
pub type Index = BTreeMap<u32, Vec<StoredExtent>>;

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
    extents: usize,
}

#[derive(Debug)]
struct Owned {
    pages_id: u32,
    file: File,
    file_len: u64,
    map: Vec<Extent>,
    stored: Vec<StoredExtent>,
}

/// All pages of a checkpoint, whole.
#[derive(Debug)]
pub struct Stored {
    /// The memfd.
    pub lazy: OwnedFd,
    /// What is where in it.
    pub index: Index,
    /// Bytes in it.
    pub lazy_bytes: u64,
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
            extents: 0,
        })
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
        let path = images.path().join(image::pages_name(pages_id));
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(Error::Memory)?;
        let owned = Owned {
            pages_id,
            file,
            file_len: 0,
            map: Vec::new(),
            stored: Vec::new(),
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
        let pages = len / PAGE_LEN as u64;
        if !len.is_multiple_of(PAGE_LEN as u64) || !address.is_multiple_of(PAGE_LEN as u64) {
            return Err(Error::Nonsense(format!("{len} bytes at {address:#x}")));
        }
        self.bytes += len;
        self.extents += 1;
        if self.bytes > self.bytes_max {
            return Err(Error::TooMuch(self.bytes_max));
        }
        if self.extents > EXTENTS_MAX {
            return Err(Error::Nonsense("memory in too many pieces".to_owned()));
        }
        self.open(owner, images)?;
        let owned = self.owners.get_mut(&owner).expect("opened above");
        if self.lazy_restore && flags & PE_LAZY != 0 && owner.process().is_some() {
            self.lazy
                .write_all_at(bytes, self.lazy_len)
                .map_err(Error::Memory)?;
            push_stored(&mut owned.stored, address, pages, self.lazy_len);
            self.lazy_len += len;
            push_extent(
                &mut owned.map,
                Extent {
                    address,
                    pages,
                    flags: PE_LAZY,
                },
            );
        } else {
            owned.file.write_all(bytes).map_err(Error::Memory)?;
            owned.file_len += len;
            let flags = PE_PRESENT | flags & PE_LAZY;
            push_extent(
                &mut owned.map,
                Extent {
                    address,
                    pages,
                    flags,
                },
            );
        }
        Ok(())
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the pagemaps beside the metadata, and gives out what is to be installed late.
    pub fn finish(self, images: &MemoryDir) -> Result<Stored, Error> {
        let mut index = Index::new();
        for (owner, mut owned) in self.owners {
            owned.map.sort_by_key(|extent| extent.address);
            let overlap =
                |two: &[Extent]| two[0].address + image::byte_len(two[0].pages) > two[1].address;
            if owned.map.windows(2).any(overlap) {
                return Err(Error::Nonsense(format!(
                    "a page of owner {:#x} came twice",
                    owner.0
                )));
            }
            let name = image::pagemap_name(owner).expect("checked when opened");
            let file = image::pagemap(owned.pages_id, &owned.map);
            images.write(&name, &file).map_err(Error::Memory)?;
            if let Some(process) = owner.process() {
                index.insert(process, owned.stored);
            }
        }
        Ok(Stored {
            lazy: self.lazy.into(),
            index,
            lazy_bytes: self.lazy_len,
        })
    }
}

fn push_extent(map: &mut Vec<Extent>, extent: Extent) {
    if let Some(last) = map.last_mut()
        && last.address + image::byte_len(last.pages) == extent.address
        && last.flags == extent.flags
    {
        last.pages += extent.pages;
        return;
    }
    map.push(extent);
}

fn push_stored(stored: &mut Vec<StoredExtent>, address: u64, pages: u64, offset: u64) {
    if let Some(last) = stored.last_mut()
        && last.address + image::byte_len(last.pages) == address
        && last.offset + image::byte_len(last.pages) == offset
    {
        last.pages += pages;
        return;
    }
    stored.push(StoredExtent {
        address,
        pages,
        offset,
    });
}

/// The keeper's view of the memfd: mapped, read page by page, given back as pages are installed.
#[derive(Debug)]
pub struct Mapped {
    file: File,
    base: std::ptr::NonNull<std::ffi::c_void>,
    len: usize,
}

#[expect(
    unsafe_code,
    reason = "mapping a memfd, whose pages are the source of UFFDIO_COPY"
)]
mod mapping {
    use std::num::NonZeroUsize;

    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    // SAFETY: the mapping is shared and read-only, belongs to the value alone, and is only ever
    // read by the kernel on behalf of UFFDIO_COPY.
    unsafe impl Send for Mapped {}

    impl Mapped {
        /// Maps the memfd of a store.
        pub fn new(lazy: OwnedFd, len: u64) -> io::Result<Self> {
            let file = File::from(lazy);
            // A file of no length can't be mapped; one page of address space costs nothing.
            let len = NonZeroUsize::new((len as usize).max(PAGE_LEN)).expect("not zero");
            // SAFETY: a fresh mapping at an address that the kernel chooses; its length is kept
            // for munmap. Reading past the file's end would fault, and addresses are checked
            // against `len` in `address_of`.
            let base = unsafe {
                mmap(
                    None,
                    len,
                    ProtFlags::PROT_READ,
                    MapFlags::MAP_SHARED,
                    file.as_fd(),
                    0,
                )?
            };
            Ok(Self {
                file,
                base,
                len: len.get(),
            })
        }

        /// Address in this process of `len` bytes at `offset`; `None` beyond the end.
        pub fn address_of(&self, offset: u64, len: u64) -> Option<u64> {
            let end = offset.checked_add(len)?;
            (end <= self.len as u64).then(|| self.base.as_ptr() as u64 + offset)
        }

        /// Gives the memory of a range back to the system.
        pub fn release(&self, offset: u64, len: u64) {
            use nix::fcntl::{FallocateFlags, fallocate};
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // Only memory use depends on it, so a failure changes nothing else.
            let _ = fallocate(&self.file, flags, offset as i64, len as i64);
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: base and length are those of the mapping made in `new`, and nothing
            // borrows from it: addresses are used within one call only.
            let _ = unsafe { munmap(self.base, self.len) };
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const TASK: PageOwner = PageOwner((5 << 8) | 1);

    #[test]
    fn late_pages_are_indexed_and_the_others_go_into_files() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED late_pages_are_indexed_and_the_others_go_into_files: needs root");
            return;
        }
        let images = MemoryDir::new(1 << 20).unwrap();
        let mut store = PageStore::new(1 << 20, true).unwrap();
        store
            .push(
                TASK,
                0x1000,
                PE_LAZY | PE_PRESENT,
                &[1; 2 * PAGE_LEN],
                &images,
            )
            .unwrap();
        store
            .push(TASK, 0x3000, PE_LAZY | PE_PRESENT, &[2; PAGE_LEN], &images)
            .unwrap();
        store
            .push(TASK, 0x9000, PE_PRESENT, &[3; PAGE_LEN], &images)
            .unwrap();
        let stored = store.finish(&images).unwrap();
        assert_eq!(
            stored.index[&5],
            [StoredExtent {
                address: 0x1000,
                pages: 3,
                offset: 0
            }]
        );
        assert_eq!(stored.lazy_bytes, 3 * PAGE_LEN as u64);
        let files = images.files().unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files[1], ("pages-1.img".to_owned(), PAGE_LEN as u64));
        let mapped = Mapped::new(stored.lazy, stored.lazy_bytes).unwrap();
        assert!(
            mapped
                .address_of(2 * PAGE_LEN as u64, PAGE_LEN as u64)
                .is_some()
        );
        assert!(
            mapped
                .address_of(3 * PAGE_LEN as u64, PAGE_LEN as u64)
                .is_none()
        );
    }

    #[test]
    fn bounds_and_nonsense_are_refused() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED bounds_and_nonsense_are_refused: needs root");
            return;
        }
        let images = MemoryDir::new(1 << 20).unwrap();
        let mut store = PageStore::new(PAGE_LEN as u64, true).unwrap();
        let page = [1; PAGE_LEN];
        assert!(matches!(
            store.push(PageOwner(9), 0, 0, &page, &images),
            Err(Error::Nonsense(_))
        ));
        let mut store = PageStore::new(PAGE_LEN as u64, true).unwrap();
        store.push(TASK, 0, PE_LAZY, &page, &images).unwrap();
        assert!(matches!(
            store.push(TASK, 4096, 0, &page, &images),
            Err(Error::TooMuch(_))
        ));
        let images = MemoryDir::new(1 << 20).unwrap();
        let mut store = PageStore::new(1 << 20, true).unwrap();
        store.push(TASK, 0, PE_LAZY, &page, &images).unwrap();
        store.push(TASK, 0, PE_LAZY, &page, &images).unwrap();
        assert!(matches!(store.finish(&images), Err(Error::Nonsense(_))));
    }
}
