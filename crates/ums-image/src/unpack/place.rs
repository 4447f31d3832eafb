//! Places below a root filesystem.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::error::{Error, shown};
use crate::limits::DEPTH_MAX;

/// A root filesystem that is worked in.
pub struct Root {
    dir: OwnedFd,
}

/// A name in a directory that is open: what else happens to paths does not matter.
pub(super) struct Spot {
    dir: OwnedFd,
    name: Vec<u8>,
}

impl Spot {
    pub(super) fn new(dir: OwnedFd, name: &[u8]) -> Self {
        Self {
            dir,
            name: name.to_vec(),
        }
    }

    /// A path that leads to it, as long as this lives; only its last part may be a symbolic link of somebody
    /// else's making (`proc(5)`, `/proc/PID/fd`).
    pub(super) fn path(&self) -> PathBuf {
        let dir = format!("/proc/self/fd/{}", self.dir.as_raw_fd());
        Path::new(&dir).join(OsStr::from_bytes(&self.name))
    }
}

/// The parts of a path of an archive, without those that mean nothing.
///
/// # Errors
/// When a part is `..`, which no layer needs, or there are too many.
pub(super) fn parts(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let parts = path.split(|byte| *byte == b'/');
    let parts: Vec<_> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) || path.contains(&0) {
        return Err(Error::malformed(
            format!("the path `{}` of a layer", shown(path)),
            "it would lead out of the image",
        ));
    }
    if parts.len() > DEPTH_MAX {
        return Err(Error::TooLarge {
            what: "a path of a layer".to_owned(),
            limit: DEPTH_MAX as u64,
            unit: "directories",
        });
    }
    Ok(parts)
}

impl Root {
    /// Opens a directory as one.
    ///
    /// # Errors
    /// When it is not there, or no directory.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from);
        Ok(Self {
            dir: dir.map_err(Error::io("open", path))?,
        })
    }

    pub(super) fn top(&self) -> Result<Spot, Error> {
        let dir = self.dir.try_clone();
        let dir = dir.map_err(Error::at("open", "the root filesystem"))?;
        Ok(Spot::new(dir, b"."))
    }

    /// A file of the root filesystem, as a process inside would open it for reading.
    ///
    /// # Errors
    /// When it is not there, or is no regular file.
    pub fn file(&self, path: &Path) -> io::Result<fs::File> {
        // What is no file must not make the caller wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = fs::File::from(openat2(
            self.dir.as_fd(),
            path,
            flags,
            Mode::empty(),
            resolve(),
        )?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("it is not a regular file")),
        }
    }

    /// A directory of the root filesystem, where a process inside would find it; `None` if there is none. The path
    /// is good as long as the descriptor is.
    ///
    /// # Errors
    /// When it can't be told.
    pub fn directory(&self, path: &Path) -> Result<Option<(OwnedFd, PathBuf)>, Error> {
        let parts = parts(path.as_os_str().as_bytes())?;
        let found = self.find(&parts)?;
        Ok(found.map(|dir| {
            let path = format!("/proc/self/fd/{}/.", dir.as_raw_fd());
            (dir, PathBuf::from(path))
        }))
    }

    fn open_below(&self, parts: &[&[u8]]) -> io::Result<OwnedFd> {
        if parts.is_empty() {
            return self.dir.try_clone();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = parts.join(&b'/');
        let path = Path::new(OsStr::from_bytes(&path));
        Ok(openat2(
            self.dir.as_fd(),
            path,
            flags,
            Mode::empty(),
            resolve(),
        )?)
    }

    /// A directory, if it is there.
    pub(super) fn find(&self, parts: &[&[u8]]) -> Result<Option<OwnedFd>, Error> {
        match self.open_below(parts) {
            Ok(dir) => Ok(Some(dir)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::at("open", shown(&parts.join(&b'/')))(error)),
        }
    }

    /// A name in a directory that is made if it is not there, with those above it; `made` is told of each.
    pub(super) fn spot(
        &self,
        above: &[&[u8]],
        name: &[u8],
        made: &mut dyn FnMut(u64),
    ) -> Result<Spot, Error> {
        if let Some(dir) = self.find(above)? {
            return Ok(Spot::new(dir, name));
        }
        let failed = || Error::at("make the directory", shown(&above.join(&b'/')));
        for count in 1..=above.len() {
            if self.find(&above[..count])?.is_some() {
                continue;
            }
            let (name, above) = above[..count].split_last().expect("one at least");
            let spot = Spot::new(self.open_below(above).map_err(failed())?, name);
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o755).create(spot.path()).map_err(failed())?;
            let metadata = fs::symlink_metadata(spot.path()).map_err(failed())?;
            made(metadata.ino());
        }
        let dir = self.open_below(above).map_err(failed())?;
        Ok(Spot::new(dir, name))
    }
}

fn resolve() -> ResolveFlags {
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS
}
