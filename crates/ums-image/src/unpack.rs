//! Layers become a root filesystem (OCI image specification, `layer.md`).
//!
//! A path of a layer is resolved below the root filesystem as the kernel would resolve it for a process whose root
//! that is: a symbolic link leads nowhere else, wherever it points to (`openat2(2)`, `RESOLVE_IN_ROOT`).

mod attributes;
mod place;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod test;
mod whiteout;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::error::{Error, shown};
use crate::limits::Limits;
use crate::tar::{Entry, Kind, Reader};
pub use place::Root;
use place::Spot;

/// Begins the name of what stands for something that is removed.
const WHITEOUT: &[u8] = b".wh.";
/// Begins the names of what AUFS kept for itself.
const AUFS: &[u8] = b".wh..wh.";
/// Stands for all that lower layers have in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Puts layers onto a root filesystem, the lowest first.
pub struct Unpacker {
    root: Root,
    limits: Limits,
    entries: u64,
    bytes: u64,
}

/// What the layer that is being unpacked has brought: inode numbers, which nothing else has as long as it is
/// there. Whiteouts concern only what is below.
type Brought = HashSet<u64>;

impl Unpacker {
    /// Into an empty directory.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn new(rootfs: &Path, limits: Limits) -> Result<Self, Error> {
        Ok(Self {
            root: Root::open(rootfs)?,
            limits,
            entries: 0,
            bytes: 0,
        })
    }

    /// Puts a layer, uncompressed, above those before it.
    ///
    /// # Errors
    /// When it can't be read or written, it is larger than the limits allow, or it has something that no layer may
    /// have. What it has brought until then stays.
    pub fn layer(&mut self, layer: impl Read) -> Result<(), Error> {
        let mut reader = Reader::new(layer);
        let mut brought = Brought::new();
        let mut directories = Vec::new();
        while let Some(entry) = reader.entry()? {
            self.count(&entry)?;
            self.entry(&entry, &mut reader, &mut brought)?;
            if entry.kind == Kind::Directory {
                directories.push(entry);
            }
        }
        // Each entry has changed the time of its directory.
        for entry in directories.iter().rev() {
            self.directory_time(entry, &brought)?;
        }
        Ok(())
    }

    fn count(&mut self, entry: &Entry) -> Result<(), Error> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size);
        let (entries, bytes) = (self.limits.entries, self.limits.bytes);
        let over = match () {
            () if self.entries > entries => Some((entries, "entries")),
            () if self.bytes > bytes => Some((bytes, "bytes in files")),
            () => None,
        };
        match over {
            Some((limit, unit)) => Err(Error::TooLarge {
                what: "the image, unpacked,".to_owned(),
                limit,
                unit,
            }),
            None => Ok(()),
        }
    }

    fn entry(
        &mut self,
        entry: &Entry,
        content: &mut dyn Read,
        brought: &mut Brought,
    ) -> Result<(), Error> {
        let parts = place::parts(&entry.path)?;
        let Some((name, above)) = parts.split_last() else {
            return self.top(entry);
        };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(entry, above, name, brought);
        }
        let spot = self.root.spot(above, name, &mut |made| {
            brought.insert(made);
        })?;
        make_room(&spot, entry)?;
        self.make(&spot, entry, content)?;
        if entry.kind != Kind::HardLink {
            attributes::set(&spot, entry)?;
        }
        brought.insert(inode(&spot)?);
        Ok(())
    }

    /// The root filesystem's top directory.
    fn top(&self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(Error::malformed("the layer", "its top is not a directory"));
        }
        attributes::set(&self.root.top()?, entry)
    }

    fn whiteout(
        &self,
        entry: &Entry,
        above: &[&[u8]],
        name: &[u8],
        brought: &Brought,
    ) -> Result<(), Error> {
        let aufs = name.starts_with(AUFS) && name != OPAQUE;
        let Some(dir) = self.root.find(above)?.filter(|_| !aufs) else {
            return Ok(());
        };
        if name == OPAQUE {
            return whiteout::hide_all_in(dir, brought);
        }
        let name = &name[WHITEOUT.len()..];
        if matches!(name, b"" | b"." | b"..") {
            let path = shown(&entry.path);
            return Err(Error::malformed(path, "it removes nothing that has a name"));
        }
        whiteout::hide(&Spot::new(dir, name), brought)
    }

    fn make(&self, spot: &Spot, entry: &Entry, content: &mut dyn Read) -> Result<(), Error> {
        let at = spot.path();
        let failed = || Error::at("unpack", shown(&entry.path));
        match entry.kind {
            Kind::File => {
                let mut file = create(&at).map_err(failed())?;
                io::copy(content, &mut file).map_err(failed())?;
            }
            Kind::Directory => match fs::create_dir(&at) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(failed())?,
            },
            Kind::Symlink => {
                let target = std::ffi::OsStr::from_bytes(&entry.link);
                std::os::unix::fs::symlink(target, &at).map_err(failed())?;
            }
            Kind::HardLink => self.link(&at, entry)?,
            Kind::Character | Kind::Block | Kind::Fifo => node(&at, entry)?,
        }
        Ok(())
    }

    fn link(&self, at: &Path, entry: &Entry) -> Result<(), Error> {
        let parts = place::parts(&entry.link)?;
        let target = match parts.split_last() {
            Some((name, above)) => self.root.find(above)?.map(|dir| Spot::new(dir, name)),
            None => None,
        };
        let missing = || {
            let detail = format!(
                "it is a hard link to `{}`, which is not there",
                shown(&entry.link)
            );
            Error::malformed(shown(&entry.path), detail)
        };
        let target = target.ok_or_else(missing)?;
        match fs::hard_link(target.path(), at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
            made => made.map_err(Error::at("link", shown(&entry.path))),
        }
    }

    fn directory_time(&self, entry: &Entry, brought: &Brought) -> Result<(), Error> {
        let parts = place::parts(&entry.path)?;
        let spot = match parts.split_last() {
            None => Some(self.root.top()?),
            Some((name, above)) => self.root.find(above)?.map(|dir| Spot::new(dir, name)),
        };
        // The layer itself may have put something else there since.
        let Some(spot) = spot else {
            return Ok(());
        };
        let metadata = fs::symlink_metadata(spot.path());
        let same = |metadata: &fs::Metadata| {
            metadata.is_dir() && (parts.is_empty() || brought.contains(&metadata.ino()))
        };
        match metadata {
            Ok(metadata) if same(&metadata) => attributes::time(&spot, entry),
            _ => Ok(()),
        }
    }
}

/// Removes what is in the way: all but a directory where a directory comes.
fn make_room(spot: &Spot, entry: &Entry) -> Result<(), Error> {
    let failed = || Error::at("replace", shown(&entry.path));
    match fs::symlink_metadata(spot.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed()(error)),
        Ok(there) if there.is_dir() && entry.kind == Kind::Directory => Ok(()),
        Ok(there) if there.is_dir() => fs::remove_dir_all(spot.path()).map_err(failed()),
        Ok(_) => fs::remove_file(spot.path()).map_err(failed()),
    }
}

fn create(at: &Path) -> io::Result<File> {
    // Closed to others until its permissions are set.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(at)
}

fn node(at: &Path, entry: &Entry) -> Result<(), Error> {
    let kind = match entry.kind {
        Kind::Character => FileType::CharacterDevice,
        Kind::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let (major, minor) = entry.device;
    if kind == FileType::CharacterDevice && entry.device == (0, 0) {
        return Err(Error::Unsupported(format!(
            "`{}` is the device 0:0, by which overlay file systems tell that something is gone: build the image \
             from layers as engines export them",
            shown(&entry.path)
        )));
    }
    let device = match kind {
        FileType::Fifo => 0,
        _ => makedev(major, minor),
    };
    mknodat(CWD, at, kind, Mode::from_raw_mode(0o600), device)
        .map_err(io::Error::from)
        .map_err(Error::at("make", shown(&entry.path)))
}

fn inode(spot: &Spot) -> Result<u64, Error> {
    let metadata = fs::symlink_metadata(spot.path());
    Ok(metadata.map_err(Error::io("look at", &spot.path()))?.ino())
}
