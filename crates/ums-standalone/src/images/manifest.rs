//! The identity of a tree: a hash over what a service can tell apart.
//!
//! Part of it: for each entry its path, type, permissions, owner, group and extended attributes;
//! the content of a file, the target of a symbolic link, the numbers of a device.
//!
//! Not part of it: times (the same tree unpacked at two places must be the same image; copies
//! keep them nevertheless); hard links among files (an overlay breaks them anyway); the top
//! directory itself (in an overlay its attributes are those of the upper layer); and attributes
//! that belong to a host, `security.selinux` and overlay's own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use ums_core::specification::ImageId;

use super::ImageError;
use super::walk::{Bounds, Entry, walk};

/// First into the hash, so that another way to hash makes other ids.
const DOMAIN: &[u8] = b"ums image manifest 1\n";
const PERMISSIONS: u32 = 0o7777;
const BUFFER_LEN: usize = 256 * 1024;

/// The id of a tree.
pub(super) fn id_of(top: &Path, bounds: Bounds) -> Result<ImageId, ImageError> {
    let mut manifest = Manifest::new();
    walk(top, bounds, &mut |entry| {
        let digest = match entry.metadata.is_file() {
            true => Some(read(entry, &mut io::sink())?),
            false => None,
        };
        manifest.add(entry, digest)
    })?;
    Ok(manifest.id())
}

/// The manifest of a tree, as far as it has been walked: only its hash is kept.
pub(super) struct Manifest {
    hash: blake3::Hasher,
}

impl Manifest {
    pub(super) fn new() -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(DOMAIN);
        Self { hash }
    }

    /// Adds an entry, with the digest of its content if it is a file.
    pub(super) fn add(
        &mut self,
        entry: &Entry,
        content: Option<blake3::Hash>,
    ) -> Result<(), ImageError> {
        let metadata = &entry.metadata;
        self.bytes(entry.relative.as_os_str().as_bytes());
        self.hash.update(&[kind(metadata)]);
        // A symbolic link has no permissions of its own.
        let mode = if metadata.is_symlink() {
            0
        } else {
            metadata.mode() & PERMISSIONS
        };
        for number in [mode, metadata.uid(), metadata.gid()] {
            self.hash.update(&number.to_le_bytes());
        }
        if let Some(digest) = content {
            self.hash.update(&metadata.len().to_le_bytes());
            self.hash.update(digest.as_bytes());
        } else if metadata.is_symlink() {
            let target = fs::read_link(&entry.path).map_err(ImageError::io("read", &entry.path))?;
            self.bytes(target.as_os_str().as_bytes());
        } else if is_device(metadata) {
            self.hash.update(&metadata.rdev().to_le_bytes());
        }
        let attributes = attributes(&entry.path)?;
        self.hash.update(&(attributes.len() as u64).to_le_bytes());
        for (name, value) in attributes {
            self.bytes(name.as_bytes());
            self.bytes(&value);
        }
        Ok(())
    }

    pub(super) fn id(self) -> ImageId {
        let hex = self.hash.finalize().to_hex().to_string();
        ImageId::try_from(hex).expect("BLAKE3 prints as 64 lower-case hexadecimal digits")
    }

    /// With its length, so that neighbours can't run into one another.
    fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(&(bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }
}

fn kind(metadata: &fs::Metadata) -> u8 {
    let file_type = metadata.file_type();
    match () {
        () if file_type.is_dir() => b'd',
        () if file_type.is_symlink() => b'l',
        () if file_type.is_char_device() => b'c',
        () if file_type.is_block_device() => b'b',
        () if file_type.is_fifo() => b'p',
        () if file_type.is_socket() => b's',
        () => b'f',
    }
}

pub(super) fn is_device(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_char_device() || metadata.file_type().is_block_device()
}

/// Extended attributes that belong to the image, by name.
pub(super) fn attributes(path: &Path) -> Result<Vec<(std::ffi::OsString, Vec<u8>)>, ImageError> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if is_unsupported(&error) => return Ok(Vec::new()),
        Err(error) => return Err(ImageError::io("list attributes of", path)(error)),
    };
    let mut attributes = Vec::new();
    for name in names.filter(|name| !is_of_the_host(name.as_bytes())) {
        let value = xattr::get(path, &name).map_err(ImageError::io("read attributes of", path))?;
        attributes.extend(value.map(|value| (name, value)));
    }
    attributes.sort_unstable();
    Ok(attributes)
}

fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

fn is_of_the_host(name: &[u8]) -> bool {
    name == b"security.selinux" || name.starts_with(b"trusted.overlay.")
}

/// Reads a file once: into `out`, and into the digest that is returned.
pub(super) fn read(entry: &Entry, out: &mut dyn io::Write) -> Result<blake3::Hash, ImageError> {
    let path = &entry.path;
    let mut file = open(path).map_err(ImageError::io("open", path))?;
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_LEN];
    let mut length = 0;
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(ImageError::io("read", path))?;
        if count == 0 {
            break;
        }
        length += count as u64;
        // A file that grows while it is read would never end.
        if length > entry.metadata.len() {
            return Err(ImageError::Changed(path.clone()));
        }
        hash.update(&buffer[..count]);
        out.write_all(&buffer[..count])
            .map_err(ImageError::io("copy", path))?;
    }
    if length != entry.metadata.len() {
        return Err(ImageError::Changed(path.clone()));
    }
    Ok(hash.finalize())
}

/// Without following a link and without waiting, should the file have been exchanged.
fn open(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
}
