//! Archives of the formats ustar, pax and GNU (`pax(1)`; GNU tar's manual, "Basic Tar Format"), as layers and
//! docker-archives are.
//!
//! Headers of bounded size only: one that is as long as it likes could fill the memory.

mod header;
mod pax;
mod read;
#[cfg(test)]
mod test;
mod write;

pub use read::Reader;
pub use write::Writer;

/// Length of a block, bytes.
pub const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a file before it.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// An entry of an archive. Paths are as they are there: to be distrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Of links: where they lead.
    pub link: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of its content.
    pub size: u64,
    /// When it was changed, seconds and nanoseconds since the Unix epoch.
    pub mtime: (i64, u32),
    /// Of devices: major and minor number.
    pub device: (u32, u32),
    /// Extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where its content begins in the archive.
    pub offset: u64,
}

impl Entry {
    /// An entry of root's, from the beginning of time.
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind, mode: u32) -> Self {
        Self {
            path: path.into(),
            kind,
            link: Vec::new(),
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: (0, 0),
            device: (0, 0),
            attributes: Vec::new(),
            offset: 0,
        }
    }
}
