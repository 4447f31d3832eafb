//! Removing whatever has a name, and all below it, without following links.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::frame::DEPTH_MAX;

/// Removes `name` from a directory; that it isn't there is fine.
pub(super) fn remove_all(directory: &impl AsFd, name: &[u8]) -> Result<(), Errno> {
    remove_below(directory, name, 0)
}

fn remove_below(directory: &impl AsFd, name: &[u8], depth: usize) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // What Linux says of a directory; some file systems say the other.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    if depth > DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    for child in names(&inside)? {
        remove_below(&inside, child.as_bytes(), depth + 1)?;
    }
    drop(inside);
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)
}

fn names(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}
