//! What a file is besides its content.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::place::Spot;
use crate::error::{Error, shown};
use crate::tar::{Entry, Kind};

/// Sets owner, permissions, extended attributes and time, in an order in which none undoes another: a new owner
/// takes set-user-id and file capabilities away (`chown(2)`).
pub(super) fn set(spot: &Spot, entry: &Entry) -> Result<(), Error> {
    let at = spot.path();
    let failed = |action| Error::at(action, shown(&entry.path));
    lchown(&at, Some(entry.uid), Some(entry.gid)).map_err(failed("own"))?;
    if entry.kind != Kind::Symlink {
        let permissions = Permissions::from_mode(entry.mode & 0o7777);
        fs::set_permissions(&at, permissions).map_err(failed("set permissions of"))?;
    }
    if entry.kind == Kind::Directory {
        forget(spot, entry)?;
    }
    let kept = entry.attributes.iter();
    for (name, value) in kept.filter(|(name, _)| !is_of_the_host(name)) {
        let name = OsStr::from_bytes(name);
        xattr::set(&at, name, value).map_err(failed("set attributes of"))?;
    }
    time(spot, entry)
}

/// A directory that a lower layer had keeps none of the attributes that it had there.
fn forget(spot: &Spot, entry: &Entry) -> Result<(), Error> {
    let at = spot.path();
    let names = match xattr::list(&at) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
        names => names.map_err(Error::at("list attributes of", shown(&entry.path)))?,
    };
    for name in names.filter(|name| !is_of_the_host(name.as_bytes())) {
        xattr::remove(&at, &name).map_err(Error::at("set attributes of", shown(&entry.path)))?;
    }
    Ok(())
}

/// Attributes by which the machine where the image was made has labelled its own files.
fn is_of_the_host(name: &[u8]) -> bool {
    name == b"security.selinux" || name.starts_with(b"trusted.overlay.")
}

/// Sets the time alone.
pub(super) fn time(spot: &Spot, entry: &Entry) -> Result<(), Error> {
    let (seconds, nanoseconds) = entry.mtime;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, spot.path(), &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io::Error::from)
        .map_err(Error::at("set the time of", shown(&entry.path)))
}
