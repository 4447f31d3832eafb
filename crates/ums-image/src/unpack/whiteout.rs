//! What a layer removes of the layers below it. What it brings itself stays, wherever in the archive that is
//! (`layer.md`, "Whiteouts").

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Dir, Mode, OFlags, openat};

use super::Brought;
use super::place::Spot;
use crate::error::Error;
use crate::limits::DEPTH_MAX;

/// Removes one thing, and all that is in it.
pub(super) fn hide(spot: &Spot, brought: &Brought) -> Result<(), Error> {
    hide_at(spot, brought, 0)
}

/// Removes all that is in a directory.
pub(super) fn hide_all_in(dir: OwnedFd, brought: &Brought) -> Result<(), Error> {
    let dir = reopened(&dir).map_err(failed())?;
    hide_in(dir, brought, 0)
}

fn hide_at(spot: &Spot, brought: &Brought, depth: usize) -> Result<(), Error> {
    let path = spot.path();
    let metadata = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(failed())?,
    };
    let kept = brought.contains(&metadata.ino());
    if !metadata.is_dir() {
        return match kept {
            true => Ok(()),
            false => fs::remove_file(&path).map_err(failed()),
        };
    }
    hide_in(opened(spot).map_err(failed())?, brought, depth + 1)?;
    if kept {
        return Ok(());
    }
    match fs::remove_dir(&path) {
        // Something new is in it.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed.map_err(failed()),
    }
}

fn hide_in(dir: OwnedFd, brought: &Brought, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::TooLarge {
            what: "what a layer removes".to_owned(),
            limit: DEPTH_MAX as u64,
            unit: "directories inside one another",
        });
    }
    let listed = Dir::read_from(dir.as_fd()).map_err(|errno| failed()(errno.into()))?;
    let mut names = Vec::new();
    for entry in listed {
        let entry = entry.map_err(|errno| failed()(errno.into()))?;
        names.push(entry.file_name().to_bytes().to_vec());
    }
    for name in names
        .iter()
        .filter(|name| !matches!(&name[..], b"." | b".."))
    {
        let dir = dir.try_clone().map_err(failed())?;
        hide_at(&Spot::new(dir, name), brought, depth)?;
    }
    Ok(())
}

fn opened(spot: &Spot) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(rustix::fs::CWD, spot.path(), flags, Mode::empty())?)
}

/// For listing: what was opened for its path alone can't be.
fn reopened(dir: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(dir.as_fd(), c".", flags, Mode::empty())?)
}

fn failed() -> impl FnOnce(io::Error) -> Error {
    Error::at("remove", "what a layer removes")
}
