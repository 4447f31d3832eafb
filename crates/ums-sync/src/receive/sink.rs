//! Where what arrives goes: the caller's part of the destination.

use crate::frame::{BLOCK_PAGES, Entry, PAGE_BYTES, RelativePath, RootName};

/// Why a sink can't take something. The source is told the whole chain of causes.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Takes what arrives, in the order it was sent, on a thread of its own where it may block.
///
/// # Guarantees
///
/// Everything handed over has been checked against the protocol and the limits, but not yet
/// against the stream's digest: nothing may be made use of before [`finish`](Sink::finish), but what
/// is verified by something else.
pub trait Sink: Send + 'static {
    /// A whole metadata image. Each name comes once.
    fn image(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), SinkError>;

    /// A range of pages.
    fn pages(&mut self, block: &Block<'_>) -> Result<(), SinkError>;

    /// A step in writing a tree of files; [`crate::files::Applier`] carries them out.
    fn file(&mut self, operation: &FileOperation<'_>) -> Result<(), SinkError>;

    /// The source waits, and its service still runs: what came so far is in its place when this
    /// returns, and no work on what will not change any more is left for the freeze.
    fn settle(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Everything has arrived and agrees with what was sent. After this succeeds, the source is
    /// told that it was delivered.
    fn finish(&mut self) -> Result<(), SinkError>;
}

/// Pages that follow each other in the memory of one process.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Whose memory: the page server's destination id as the source gave it.
    pub process: u64,
    /// Address of the first page.
    pub address: u64,
    /// How many pages.
    pub count: u32,
    /// CRIU's flags of the range as the source gave them.
    pub flags: u32,
    /// What is in them; `None` when the range was only described.
    pub content: Option<PageContent<'a>>,
}

/// The content of up to 64 pages, unpacked.
#[derive(Debug, Clone, Copy)]
pub struct PageContent<'a> {
    /// Bit `n` is page `n` of the range; a page without its bit is zero.
    pub present: u64,
    /// The pages that have their bit, one after the other.
    pub bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Every page with content: its address, and its bytes or `None` where it is zero.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Option<&'a [u8]>)> + use<'a> {
        let (address, count) = (self.address, self.count as usize);
        let content = self.content;
        let mut left = content.map_or(&[][..], |content| content.bytes);
        let present = content.map_or(0, |content| content.present);
        let count = content.map_or(0, |_| count.min(BLOCK_PAGES));
        (0..count).map(move |page| {
            let at = address + (page * PAGE_BYTES) as u64;
            if present >> page & 1 == 0 {
                return (at, None);
            }
            let (bytes, rest) = left.split_at_checked(PAGE_BYTES).unwrap_or((left, &[]));
            left = rest;
            (at, Some(bytes))
        })
    }
}

/// One step in writing a tree of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileOperation<'a> {
    /// An entry. If it is a file, its content and then `End` follow before any other step.
    Entry(Entry<'a>),
    /// Content of the file that was begun.
    Data {
        /// Where in the file.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The file that was begun is complete.
    End {
        /// Its size.
        size: u64,
    },
    /// An entry and all below it is no more.
    Remove {
        /// In which tree.
        root: RootName,
        /// Which.
        path: RelativePath<'a>,
    },
}
