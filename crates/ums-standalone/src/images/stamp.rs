//! Stamps: what a directory looked like when it was imported, so that importing it again doesn't
//! read it again.
//!
//! A stamp covers what the kernel changes with every change of content or attributes: inode
//! number, change time, size. It is a hint only: one that is lost or unreadable costs time.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ums_core::specification::ImageId;

use super::ImageError;
use super::walk::{Bounds, walk};

/// The stamp of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(String);

/// Looks at every entry of a tree, reading none.
pub(super) fn of(top: &Path, bounds: Bounds) -> Result<Stamp, ImageError> {
    let mut hash = blake3::Hasher::new();
    let mut youngest = 0;
    walk(top, bounds, &mut |entry| {
        let metadata = &entry.metadata;
        hash.update(entry.relative.as_os_str().as_bytes());
        for number in [
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            u64::from(metadata.mode()),
        ] {
            hash.update(&number.to_le_bytes());
        }
        for number in [metadata.ctime(), metadata.ctime_nsec()] {
            hash.update(&number.to_le_bytes());
        }
        youngest = youngest.max(metadata.ctime());
        Ok(())
    })?;
    Ok(Stamp(format!("{} {youngest}", hash.finalize().to_hex())))
}

/// The id that a directory with this stamp was imported as.
pub(super) fn recall(stamps: &Path, source: &Path, stamp: &Stamp) -> Option<ImageId> {
    let text = fs::read_to_string(file(stamps, source)).ok()?;
    let mut words = text.trim_end().splitn(3, ' ');
    let (id, kept_at, known) = (words.next()?, words.next()?, words.next()?);
    if known == stamp.0 && stamp.settled(kept_at.parse().ok()?) {
        ImageId::try_from(id.to_owned()).ok()
    } else {
        None
    }
}

/// Keeps a stamp for the next import.
pub(super) fn remember(stamps: &Path, source: &Path, stamp: &Stamp, id: &ImageId, now: SystemTime) {
    let path = file(stamps, source);
    let kept_at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let text = format!("{} {kept_at} {}\n", id.as_str(), stamp.0);
    if let Err(error) = fs::write(&path, text) {
        tracing::warn!(%error, path = %path.display(), "cannot keep the stamp of an import");
    }
}

/// The image that was unpacked under a key: what the key names never changes.
pub(super) fn of_key(stamps: &Path, key: &str) -> Option<ImageId> {
    let text = fs::read_to_string(file_of_key(stamps, key)).ok()?;
    let (id, known) = text.trim_end().split_once(' ')?;
    (known == key)
        .then(|| ImageId::try_from(id.to_owned()).ok())
        .flatten()
}

/// Keeps under which key an image was unpacked.
pub(super) fn remember_key(stamps: &Path, key: &str, id: &ImageId) {
    let path = file_of_key(stamps, key);
    if let Err(error) = fs::write(&path, format!("{} {key}\n", id.as_str())) {
        tracing::warn!(%error, path = %path.display(), "cannot keep which image was unpacked");
    }
}

fn file_of_key(stamps: &Path, key: &str) -> PathBuf {
    // No path of a directory begins so.
    stamps.join(
        blake3::hash(format!("key {key}").as_bytes())
            .to_hex()
            .as_str(),
    )
}

/// Forgets the stamps that lead to an image: it is no longer there.
pub(super) fn forget(stamps: &Path, id: &ImageId) -> std::io::Result<()> {
    for entry in fs::read_dir(stamps)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        if text.split(' ').next() == Some(id.as_str()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

impl Stamp {
    /// Whether a tree that looked like this at that second had settled: the clock of the
    /// filesystem is coarse, and what changed in the tick in which the stamp was taken would look
    /// the same.
    fn settled(&self, kept_at: u64) -> bool {
        let old_enough = |youngest: u64| youngest.saturating_add(2) < kept_at;
        self.youngest().is_some_and(old_enough)
    }

    pub(super) fn youngest(&self) -> Option<u64> {
        self.0.rsplit_once(' ')?.1.parse().ok()
    }
}

fn file(stamps: &Path, source: &Path) -> PathBuf {
    stamps.join(
        blake3::hash(source.as_os_str().as_bytes())
            .to_hex()
            .as_str(),
    )
}
