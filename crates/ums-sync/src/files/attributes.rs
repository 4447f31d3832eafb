//! Extended attributes: which are carried, reading them, writing them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::frame::{XATTRS_BYTES_MAX, XATTRS_MAX, Xattr};

/// The largest list of names and the largest value that Linux has.
const LIST_BYTES_MAX: usize = 64 * 1024;
const VALUE_BYTES_MAX: usize = 64 * 1024;

/// Attributes that describe an entry's place on its own host, not the entry: labels of the host's
/// security policy, and overlayfs's handles of inodes in the lower file system.
const NOT_CARRIED: [&[u8]; 7] = [
    b"security.selinux",
    b"security.apparmor",
    b"security.ima",
    b"security.evm",
    b"trusted.overlay.origin",
    b"trusted.overlay.uuid",
    b"trusted.overlay.upper",
];

const CARRIED: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];

/// Whether an attribute moves with its entry.
pub(super) fn is_carried(name: &[u8]) -> bool {
    !NOT_CARRIED.contains(&name) && CARRIED.iter().any(|prefix| name.starts_with(prefix))
}

/// The path that leads to what a descriptor refers to, whatever it is: for calls that don't take a
/// descriptor opened with `O_PATH`. It never follows a symbolic link that is itself referred to.
pub(super) fn through(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Opens for reading what a descriptor refers to, known to be a file or a directory.
pub(super) fn reopen(fd: &OwnedFd, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // Reading leaves no trace at the source; only an owner or root may ask for that.
    match rustix::fs::open(through(fd), flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => Ok(rustix::fs::open(through(fd), flags, Mode::empty())?.into()),
        opened => Ok(opened?.into()),
    }
}

/// The attributes of one entry.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<(Vec<u8>, Vec<u8>)>);

impl Attributes {
    /// Reads those that are carried. The inner error says what is too much.
    pub(super) fn read(fd: &OwnedFd) -> io::Result<Result<Self, String>> {
        let path = through(fd);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for name in names(&path)? {
            let mut value = vec![0; VALUE_BYTES_MAX];
            match rustix::fs::getxattr(&path, &name[..], &mut value[..]) {
                Ok(length) => value.truncate(length),
                // It was removed meanwhile.
                Err(Errno::NODATA) => continue,
                Err(error) => return Err(error.into()),
            }
            value.shrink_to_fit();
            bytes += name.len() + value.len();
            if found.len() >= XATTRS_MAX || bytes > XATTRS_BYTES_MAX {
                return Ok(Err(format!(
                    "it has more than {XATTRS_MAX} extended attributes or more than \
                     {XATTRS_BYTES_MAX} bytes of them"
                )));
            }
            found.push((name, value));
        }
        Ok(Ok(Self(found)))
    }

    pub(super) fn xattrs(&self) -> Vec<Xattr<'_>> {
        self.0
            .iter()
            .map(|(name, value)| Xattr { name, value })
            .collect()
    }
}

/// Gives an entry exactly these attributes, of those that are carried.
pub(super) fn write(path: &str, wanted: &[Xattr<'_>]) -> io::Result<()> {
    for name in names(path)? {
        if !wanted.iter().any(|xattr| xattr.name == name) {
            match rustix::fs::removexattr(path, &name[..]) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    for xattr in wanted.iter().filter(|xattr| is_carried(xattr.name)) {
        rustix::fs::setxattr(path, xattr.name, xattr.value, XattrFlags::empty())?;
    }
    Ok(())
}

fn names(path: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; LIST_BYTES_MAX];
    let length = match rustix::fs::listxattr(path, &mut list[..]) {
        Ok(length) => length,
        // A file system without them.
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = list[..length].split(|byte| *byte == 0);
    Ok(names
        .filter(|name| is_carried(name))
        .map(<[u8]>::to_vec)
        .collect())
}

#[cfg(test)]
mod test {
    use super::is_carried;

    #[test]
    fn what_belongs_to_the_host_stays_there() {
        for name in ["user.x", "security.capability", "trusted.overlay.opaque"] {
            assert!(is_carried(name.as_bytes()), "{name}");
        }
        for name in [
            "security.selinux",
            "trusted.overlay.origin",
            "system.nfs4_acl",
            "",
        ] {
            assert!(!is_carried(name.as_bytes()), "{name}");
        }
    }
}
