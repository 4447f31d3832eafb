//! A bounded walk over a directory tree, the same at every place.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::ImageError;

/// How large a root filesystem may be, and what is none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Files, directories and all else.
    pub entries: u64,
    /// Directories inside one another.
    pub depth: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// A name at its top that is not part of it; empty where all is.
    pub without: &'static str,
}

impl Default for Bounds {
    /// Ten times what a full Debian system has.
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            depth: 256,
            bytes: 1 << 40,
            without: "",
        }
    }
}

/// One entry of a tree.
pub(super) struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// The same, below the top of the tree.
    pub relative: PathBuf,
    /// What it is, without following a symbolic link.
    pub metadata: Metadata,
}

/// Calls `visit` with each entry below `top` (not `top` itself): a directory before what is in it,
/// the entries of a directory in the order of their names' bytes.
pub(super) fn walk(
    top: &Path,
    bounds: Bounds,
    visit: &mut dyn FnMut(&Entry) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let metadata = fs::symlink_metadata(top).map_err(ImageError::io("look at", top))?;
    if !metadata.is_dir() {
        return Err(ImageError::NotADirectory(top.to_path_buf()));
    }
    let mut walk = Walk {
        device: metadata.dev(),
        bounds,
        entries: 0,
        bytes: 0,
        visit,
    };
    walk.directory(top, Path::new(""), 1)
}

struct Walk<'a> {
    device: u64,
    bounds: Bounds,
    entries: u64,
    bytes: u64,
    visit: &'a mut dyn FnMut(&Entry) -> Result<(), ImageError>,
}

impl Walk<'_> {
    fn directory(&mut self, dir: &Path, relative: &Path, depth: u64) -> Result<(), ImageError> {
        within("levels of directories", depth, self.bounds.depth)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(ImageError::io("list", dir))? {
            names.push(entry.map_err(ImageError::io("list", dir))?.file_name());
            within(
                "entries",
                self.entries + names.len() as u64,
                self.bounds.entries,
            )?;
        }
        if depth == 1 {
            names.retain(|name| name != self.bounds.without);
        }
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        self.entries += names.len() as u64;
        for name in names {
            let path = dir.join(&name);
            let metadata = fs::symlink_metadata(&path).map_err(ImageError::io("look at", &path))?;
            let entry = Entry {
                path,
                relative: relative.join(&name),
                metadata,
            };
            self.entry(&entry, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, depth: u64) -> Result<(), ImageError> {
        // Only directories tell: files of an overlay may show the device of a layer.
        if entry.metadata.is_dir() && entry.metadata.dev() != self.device {
            return Err(ImageError::Mounted(entry.path.clone()));
        }
        if entry.metadata.is_file() {
            self.bytes = self.bytes.saturating_add(entry.metadata.len());
            within("bytes", self.bytes, self.bounds.bytes)?;
        }
        (self.visit)(entry)?;
        if entry.metadata.is_dir() {
            self.directory(&entry.path, &entry.relative, depth + 1)?;
        }
        Ok(())
    }
}

fn within(what: &'static str, count: u64, limit: u64) -> Result<(), ImageError> {
    if count <= limit {
        Ok(())
    } else {
        Err(ImageError::TooLarge { what, limit })
    }
}
