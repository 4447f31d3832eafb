//! Trees of files: what a service changed in its root filesystem, its volumes, its image.
//!
//! A tree is moved in two passes. The first sends everything while the service runs and remembers,
//! in a [`Manifest`], what it saw. The second, while the service is frozen, sends what has changed
//! since and what is gone. So a file that changes or vanishes while the first pass reads it does
//! no harm.
//!
//! Of a large file that has changed, the second pass sends only the blocks that are others than
//! those that the first pass sent, by their hashes: what a database or a log changed or added, not
//! all of it.
//!
//! Carried: regular files with their holes, hard links within a tree, directories, symbolic links,
//! named pipes, devices (overlay whiteouts too), permission bits, owners, modification times to
//! the nanosecond, extended attributes and capabilities. Sockets are not: who restores the
//! process binds them anew.
//!
//! Neither side follows a symbolic link inside a tree: the source so that a service can't have it
//! read the host's files, the destination so that a source can't have it write them.

mod apply;
mod attributes;
mod blocks;
mod entry;
mod manifest;
mod mapped;
mod pass;
mod remove;
mod writer;

use std::path::PathBuf;

use crate::frame::{FrameError, RootName};
use crate::send::SendError;

pub use apply::{Applier, ApplyError};
pub use manifest::{ENTRIES_MAX, Manifest};
pub use mapped::Look;
pub use pass::{Always, Stats, first_pass, second_pass};
pub use writer::FileWriter;

/// The trees of one service: each by its name and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// In the order in which they are sent.
    pub roots: Vec<(RootName, PathBuf)>,
}

/// Why a tree can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{operation} `{path}` of {root} failed")]
    Read {
        /// What was being done.
        operation: &'static str,
        /// In which tree.
        root: RootName,
        /// To which entry; empty for the tree itself.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something that can't be carried.
    #[error("`{path}` of {root} can't be moved: {reason}")]
    Unsupported {
        /// In which tree.
        root: RootName,
        /// Which entry.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// More entries than are remembered.
    #[error(
        "{root} brings the number of files to more than {ENTRIES_MAX}, the most that a migration \
         keeps account of; keep such a volume on shared storage or remove files from it"
    )]
    TooMany {
        /// The tree in which the limit was reached.
        root: RootName,
    },
    /// The data path is gone.
    #[error("files could not be sent")]
    Send(#[from] SendError),
}

impl From<FrameError> for FileError {
    fn from(error: FrameError) -> Self {
        FileError::Send(SendError::Unsendable(error))
    }
}
