//! The image store: root filesystems by their content, `images/<ImageId>/rootfs`.
//!
//! An image is never changed once it stands under its id: services see it as the lower layer of
//! an overlay. It appears by a rename of a whole, synchronised directory, so that what is found
//! under an id after a crash is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ums_core::specification::ImageId;

mod copy;
mod manifest;
mod stamp;
#[cfg(test)]
mod test;
mod walk;

pub use walk::Bounds;

/// Why an image could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or directory could not be handled.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What was named is not a directory.
    #[error("`{}` is not a directory: name the root filesystem's top directory", .0.display())]
    NotADirectory(PathBuf),
    /// Another filesystem is mounted inside.
    #[error(
        "another filesystem is mounted at `{}`: unmount it, or name a copy of the root filesystem",
        .0.display()
    )]
    Mounted(PathBuf),
    /// More than the bounds allow.
    #[error("the root filesystem has more than {limit} {what}: make it smaller")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A file was changed while it was read.
    #[error("`{}` changed while it was read: stop what writes there and try again", .0.display())]
    Changed(PathBuf),
    /// The image isn't in the store.
    #[error("image {0} is not in the store: import it, or let the source send it")]
    Unknown(String),
    /// The content isn't what the id promises.
    #[error(
        "image {expected} has other content than its id says (found {found}): it was damaged or tampered with"
    )]
    Mismatch {
        /// The id it goes by.
        expected: String,
        /// The id of what was found.
        found: String,
    },
}

impl ImageError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// What begins the name of everything in the store that isn't an image (yet).
const UNFINISHED: &str = ".unfinished-";
/// What begins the name of an image that was taken out.
const RETIRED: &str = ".unfinished-remove-";
/// Where the stamps of imported directories are.
const STAMPS: &str = ".stamps";
const ROOTFS: &str = "rootfs";

/// The images of one system.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
    bounds: Bounds,
    /// Sizes that were asked for: an image never changes.
    sizes: Arc<Mutex<BTreeMap<ImageId, u64>>>,
}

impl ImageStore {
    /// Opens the store below `state_dir`, and clears away what a crash left unfinished.
    ///
    /// One process at a time may have it open for writing: the agent, whose receptions end with it.
    pub fn open(state_dir: &Path, bounds: Bounds) -> Result<Self, ImageError> {
        let dir = state_dir.join("images");
        let stamps = dir.join(STAMPS);
        fs::create_dir_all(&stamps).map_err(ImageError::io("create", &stamps))?;
        let store = Self {
            dir,
            bounds,
            sizes: Arc::default(),
        };
        store.clear(UNFINISHED)?;
        Ok(store)
    }

    /// The root filesystem of an image; only valid while it is [`present`](Self::present).
    pub fn rootfs(&self, id: &ImageId) -> PathBuf {
        self.dir.join(id.as_str()).join(ROOTFS)
    }

    /// Whether the image is there.
    pub fn present(&self, id: &ImageId) -> bool {
        self.rootfs(id).is_dir()
    }

    /// Bytes in an image's files; 0 if it is not there. Walks through it the first time.
    pub fn bytes(&self, id: &ImageId) -> Result<u64, ImageError> {
        if !self.present(id) {
            return Ok(0);
        }
        let sizes = || self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = sizes().get(id) {
            return Ok(*bytes);
        }
        let bytes = ums_node::inspect::files_bytes(&self.rootfs(id));
        sizes().insert(id.clone(), bytes);
        Ok(bytes)
    }

    /// All images that are there.
    pub fn list(&self) -> Result<BTreeSet<ImageId>, ImageError> {
        let ids = self
            .names()?
            .into_iter()
            .filter_map(|name| ImageId::try_from(name).ok());
        Ok(ids.filter(|id| self.present(id)).collect())
    }

    /// Takes a copy of a directory into the store, unless the same content is there.
    ///
    /// Nothing is shared with the original (no link, no reflink), so that later changes to it
    /// can't reach services.
    pub fn import(&self, source: &Path) -> Result<ImageId, ImageError> {
        let source = source
            .canonicalize()
            .map_err(ImageError::io("find", source))?;
        let began = SystemTime::now();
        let stamp = stamp::of(&source, self.bounds)?;
        let stamps = self.dir.join(STAMPS);
        if let Some(id) = stamp::recall(&stamps, &source, &stamp).filter(|id| self.present(id)) {
            self.used(&id)?;
            return Ok(id);
        }
        let mut id = manifest::id_of(&source, self.bounds)?;
        if !self.present(&id) {
            static IMPORTS: AtomicU64 = AtomicU64::new(0);
            let number = IMPORTS.fetch_add(1, Ordering::Relaxed);
            let temporary = self.unfinished(&format!("import-{}-{number}", std::process::id()))?;
            // The id is that of what was copied: the original may have changed meanwhile.
            let copied = copy::tree(&source, &temporary.join(ROOTFS), self.bounds);
            id = copied.inspect_err(|_| discard(&temporary))?;
            self.publish(&temporary, &id)?;
        }
        self.used(&id)?;
        // Stamped with what was seen before reading: a change since then makes it useless.
        stamp::remember(&stamps, &source, &stamp, &id, began);
        Ok(id)
    }

    /// The image that was unpacked under this key, if it is there.
    pub fn unpacked(&self, key: &str) -> Result<Option<ImageId>, ImageError> {
        let known = stamp::of_key(&self.dir.join(STAMPS), key);
        let known = known.filter(|id| self.present(id));
        if let Some(id) = &known {
            self.used(id)?;
        }
        Ok(known)
    }

    /// An empty directory that an image is to be unpacked to.
    pub fn unpacking(&self) -> Result<Unpacking, ImageError> {
        static UNPACKINGS: AtomicU64 = AtomicU64::new(0);
        let number = UNPACKINGS.fetch_add(1, Ordering::Relaxed);
        let unpacking = Unpacking {
            store: self.clone(),
            temporary: self.unfinished(&format!("unpack-{}-{number}", std::process::id()))?,
        };
        let rootfs = unpacking.rootfs();
        fs::create_dir(&rootfs).map_err(ImageError::io("create", &rootfs))?;
        // As engines make it; an image may say otherwise.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&rootfs, open).map_err(ImageError::io("create", &rootfs))?;
        Ok(unpacking)
    }

    /// Copies a directory to a place where nothing is, with all that belongs to it.
    pub fn copy_out(&self, from: &Path, to: &Path) -> Result<(), ImageError> {
        copy::tree(from, to, self.bounds).map(drop)
    }

    /// The id that a directory would have as an image; nothing is taken into the store. Reads all of it.
    pub fn id_of(&self, rootfs: &Path) -> Result<ImageId, ImageError> {
        manifest::id_of(rootfs, self.bounds)
    }

    /// A place to receive an image in; each has one of its own, so that two migrations that bring
    /// the same image do not meet.
    pub fn staging(&self, id: &ImageId) -> Result<Staging, ImageError> {
        static STAGINGS: AtomicU64 = AtomicU64::new(0);
        let number = STAGINGS.fetch_add(1, Ordering::Relaxed);
        let name = format!("receive-{}-{number}", std::process::id());
        let staging = Staging {
            store: self.clone(),
            id: id.clone(),
            temporary: self.unfinished(&name)?,
        };
        let rootfs = staging.rootfs();
        fs::create_dir(&rootfs).map_err(ImageError::io("create", &rootfs))?;
        Ok(staging)
    }

    /// Recomputes the id of an image that is there.
    pub fn verify(&self, id: &ImageId) -> Result<(), ImageError> {
        if !self.present(id) {
            return Err(ImageError::Unknown(id.as_str().to_owned()));
        }
        same(id, &manifest::id_of(&self.rootfs(id), self.bounds)?)
    }

    /// Takes the images out that have not been used for so long; says which. Quick: what is taken
    /// out is removed by [`clear_retired`](Self::clear_retired).
    ///
    /// An image's directory bears the time of its last use, by the wall clock: one that jumps only
    /// removes something early that can be sent again.
    pub fn retire_unused(
        &self,
        in_use: &BTreeSet<ImageId>,
        keep: Duration,
    ) -> Result<Vec<ImageId>, ImageError> {
        let mut retired = Vec::new();
        for id in self.list()? {
            if in_use.contains(&id) {
                self.used(&id)?;
                continue;
            }
            let from = self.dir.join(id.as_str());
            let metadata = fs::metadata(&from).map_err(ImageError::io("look at", &from))?;
            let used = metadata
                .modified()
                .map_err(ImageError::io("look at", &from))?;
            if used.elapsed().is_ok_and(|unused| unused >= keep) {
                // Renamed first: what is found under an id is whole, also while it is removed.
                let to = self.dir.join(format!("{RETIRED}{}", id.as_str()));
                fs::rename(&from, &to).map_err(ImageError::io("rename", &from))?;
                let stamps = self.dir.join(STAMPS);
                stamp::forget(&stamps, &id).map_err(ImageError::io("tidy", &stamps))?;
                retired.push(id);
            }
        }
        Ok(retired)
    }

    /// Removes what [`retire_unused`](Self::retire_unused) took out.
    pub fn clear_retired(&self) -> Result<(), ImageError> {
        self.clear(RETIRED)
    }

    fn clear(&self, prefix: &str) -> Result<(), ImageError> {
        let mut names = self.names()?;
        names.retain(|name| name.starts_with(prefix));
        names
            .iter()
            .try_for_each(|name| remove_tree(&self.dir.join(name)))
    }

    /// Notes that an image is used now.
    fn used(&self, id: &ImageId) -> Result<(), ImageError> {
        let dir = self.dir.join(id.as_str());
        fs::File::open(&dir)
            .and_then(|opened| opened.set_modified(SystemTime::now()))
            .map_err(ImageError::io("note the use of", &dir))
    }

    fn names(&self) -> Result<Vec<String>, ImageError> {
        let entries = fs::read_dir(&self.dir).map_err(ImageError::io("list", &self.dir))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ImageError::io("list", &self.dir))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }

    /// An empty directory that isn't an image.
    fn unfinished(&self, name: &str) -> Result<PathBuf, ImageError> {
        let path = self.dir.join(format!("{UNFINISHED}{name}"));
        remove_tree(&path)?;
        fs::create_dir(&path).map_err(ImageError::io("create", &path))?;
        Ok(path)
    }

    /// Puts a whole directory under its id, durably.
    fn publish(&self, temporary: &Path, id: &ImageId) -> Result<(), ImageError> {
        if self.present(id) {
            return remove_tree(temporary);
        }
        let published = self.sync(temporary).and_then(|()| {
            let to = self.dir.join(id.as_str());
            match fs::rename(temporary, &to) {
                // Somebody else has put the same there meanwhile.
                Err(_) if self.present(id) => remove_tree(temporary),
                renamed => renamed.map_err(ImageError::io("rename to", &to)),
            }
        });
        published.inspect_err(|_| discard(temporary))?;
        let dir = fs::File::open(&self.dir).map_err(ImageError::io("open", &self.dir))?;
        dir.sync_all()
            .map_err(ImageError::io("synchronise", &self.dir))
    }

    fn sync(&self, dir: &Path) -> Result<(), ImageError> {
        let file = fs::File::open(dir).map_err(ImageError::io("open", dir))?;
        nix::unistd::syncfs(&file).map_err(|errno| ImageError::io("synchronise", dir)(errno.into()))
    }
}

/// An image that is being unpacked. What was unpacked goes with it, unless it became an image.
#[derive(Debug)]
pub struct Unpacking {
    store: ImageStore,
    temporary: PathBuf,
}

impl Unpacking {
    /// Where the root filesystem is to be put.
    pub fn rootfs(&self) -> PathBuf {
        self.temporary.join(ROOTFS)
    }

    /// Makes what was unpacked an image, which is found by the key from now on.
    pub fn commit(self, key: &str) -> Result<ImageId, ImageError> {
        let id = manifest::id_of(&self.rootfs(), self.store.bounds)?;
        self.store.publish(&self.temporary, &id)?;
        self.store.used(&id)?;
        stamp::remember_key(&self.store.dir.join(STAMPS), key, &id);
        Ok(id)
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        // Of a published image nothing is left here.
        discard(&self.temporary);
    }
}

/// An image that is being received. What was received goes with it, unless it became an image.
#[derive(Debug)]
pub struct Staging {
    store: ImageStore,
    id: ImageId,
    temporary: PathBuf,
}

impl Staging {
    /// Where the root filesystem is to be put.
    pub fn rootfs(&self) -> PathBuf {
        self.temporary.join(ROOTFS)
    }

    /// Makes what was received an image, if its content is what the id says.
    pub fn commit(self) -> Result<(), ImageError> {
        let found = manifest::id_of(&self.rootfs(), self.store.bounds)?;
        same(&self.id, &found)?;
        self.store.publish(&self.temporary, &self.id)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Of a published image nothing is left here.
        discard(&self.temporary);
    }
}

fn same(expected: &ImageId, found: &ImageId) -> Result<(), ImageError> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.as_str().to_owned(), found.as_str().to_owned());
    Err(ImageError::Mismatch { expected, found })
}

fn remove_tree(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Clears away after a failure that is reported itself; the next start tries again.
fn discard(path: &Path) {
    if let Err(error) = remove_tree(path) {
        tracing::warn!(%error, "an unfinished image stays until the next start");
    }
}
