//! The keeper's view of the memfd: mapped, read page by page, given back as pages are installed.
#![expect(
    unsafe_code,
    reason = "mapping a memfd, whose pages are the source of UFFDIO_COPY"
)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::criu::page_server::PAGE_LEN;

/// Stored pages, mapped to be installed.
#[derive(Debug)]
pub struct Mapped {
    file: File,
    base: std::ptr::NonNull<std::ffi::c_void>,
    len: usize,
}

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

    /// Puts content that has come later where its place was kept.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn fill(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Gives the memory of a range back to the system.
    pub fn release(&self, offset: u64, len: u64) {
        release(&self.file, offset, len);
    }
}

/// Gives the memory of a range of a memfd back to the system.
pub(super) fn release(file: &File, offset: u64, len: u64) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // Only memory use depends on it, so a failure changes nothing else.
    let _ = fallocate(file, flags, offset as i64, len as i64);
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `new`, and nothing
        // borrows from it: addresses are used within one call only.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}
