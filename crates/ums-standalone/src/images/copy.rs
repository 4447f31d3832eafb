//! A copy of a tree that keeps everything but sparseness.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, FileTimes, Metadata, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use ums_core::specification::ImageId;

use super::ImageError;
use super::manifest::{Manifest, attributes, read};
use super::walk::{Bounds, Entry, walk};

/// Copies the tree at `source` to `destination`, which must not exist; returns the id of what was copied.
pub(super) fn tree(
    source: &Path,
    destination: &Path,
    bounds: Bounds,
) -> Result<ImageId, ImageError> {
    create_dir(destination)?;
    let mut copy = Copy {
        destination,
        links: HashMap::new(),
        dirs: Vec::new(),
        manifest: Manifest::new(),
    };
    walk(source, bounds, &mut |entry| copy.entry(entry))?;
    // Times and permissions of a directory only after all is in it: each entry changes the time, and a
    // read-only directory takes none. Innermost first.
    for (path, metadata) in copy.dirs.iter().rev() {
        set_permissions(path, metadata)?;
        set_times(path, metadata)?;
    }
    let top = fs::symlink_metadata(source).map_err(ImageError::io("look at", source))?;
    own(destination, &top)?;
    set_permissions(destination, &top)?;
    set_times(destination, &top)?;
    Ok(copy.manifest.id())
}

struct Copy<'a> {
    destination: &'a Path,
    /// First copy of each file that has several names.
    links: HashMap<(u64, u64), (PathBuf, blake3::Hash)>,
    dirs: Vec<(PathBuf, Metadata)>,
    manifest: Manifest,
}

impl Copy<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), ImageError> {
        let to = self.destination.join(&entry.relative);
        let metadata = &entry.metadata;
        if metadata.is_file() {
            let digest = self.file(entry, &to)?;
            return self.manifest.add(entry, Some(digest));
        }
        if metadata.is_dir() {
            create_dir(&to)?;
            self.dirs.push((to.clone(), metadata.clone()));
        } else if metadata.is_symlink() {
            let target = fs::read_link(&entry.path).map_err(ImageError::io("read", &entry.path))?;
            symlink(target, &to).map_err(ImageError::io("create", &to))?;
        } else {
            let kind = SFlag::from_bits_truncate(metadata.mode() & SFlag::S_IFMT.bits());
            mknod(&to, kind, Mode::empty(), metadata.rdev())
                .map_err(|errno| ImageError::io("create", &to)(errno.into()))?;
        }
        own(&to, metadata)?;
        copy_attributes(&entry.path, &to)?;
        if !metadata.is_dir() {
            if !metadata.is_symlink() {
                set_permissions(&to, metadata)?;
            }
            set_times(&to, metadata)?;
        }
        self.manifest.add(entry, None)
    }

    fn file(&mut self, entry: &Entry, to: &Path) -> Result<blake3::Hash, ImageError> {
        let metadata = &entry.metadata;
        let identity = (metadata.dev(), metadata.ino());
        if let Some((first, digest)) = self.links.get(&identity) {
            fs::hard_link(first, to).map_err(ImageError::io("create", to))?;
            return Ok(*digest);
        }
        let mut file = File::create_new(to).map_err(ImageError::io("create", to))?;
        let digest = read(entry, &mut file)?;
        own(to, metadata)?;
        copy_attributes(&entry.path, to)?;
        // After the owner: changing it takes set-user-id away.
        set_permissions(to, metadata)?;
        let times = metadata
            .modified()
            .and_then(|at| file.set_times(FileTimes::new().set_modified(at)));
        times.map_err(ImageError::io("set the time of", to))?;
        if metadata.nlink() > 1 {
            self.links.insert(identity, (to.to_path_buf(), digest));
        }
        Ok(digest)
    }
}

/// Closed to others until its permissions are set.
fn create_dir(path: &Path) -> Result<(), ImageError> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(ImageError::io("create", path))
}

fn own(path: &Path, metadata: &Metadata) -> Result<(), ImageError> {
    lchown(path, Some(metadata.uid()), Some(metadata.gid())).map_err(ImageError::io("own", path))
}

fn set_permissions(path: &Path, metadata: &Metadata) -> Result<(), ImageError> {
    let permissions = Permissions::from_mode(metadata.mode() & 0o7777);
    fs::set_permissions(path, permissions).map_err(ImageError::io("set permissions of", path))
}

fn set_times(path: &Path, metadata: &Metadata) -> Result<(), ImageError> {
    let time = TimeSpec::new(metadata.mtime(), metadata.mtime_nsec());
    utimensat(
        nix::fcntl::AT_FDCWD,
        path,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )
    .map_err(|errno| ImageError::io("set the time of", path)(errno.into()))
}

fn copy_attributes(from: &Path, to: &Path) -> Result<(), ImageError> {
    for (name, value) in attributes(from)? {
        xattr::set(to, &name, &value).map_err(ImageError::io("set attributes of", to))?;
    }
    Ok(())
}
