//! A root filesystem that its engine has mounted before the service's files were there.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, statfs};
use rustix::mount::{FsPickFlags, UnmountFlags, fsconfig_reconfigure, fspick, unmount as umount};

/// What statfs(2) tells of an overlay (Linux `linux/magic.h`).
const OVERLAYFS: u64 = 0x794c_7630;

/// Has an overlay forget what it has seen in its layers: files that have come into the upper one since are found, and
/// those that have gone are not. Nothing uses it yet. The kernel drops what nobody uses of a file system that is
/// reconfigured (Linux `fs/super.c`, `reconfigure_super`), also if nothing of it changes.
pub(crate) fn forget(root: &Path) -> Result<(), String> {
    let forget = || -> io::Result<()> {
        if statfs(root)?.f_type as u64 != OVERLAYFS {
            return Ok(());
        }
        let filesystem = fspick(CWD, root, FsPickFlags::FSPICK_CLOEXEC)?;
        Ok(fsconfig_reconfigure(&filesystem)?)
    };
    forget().map_err(|error| {
        format!(
            "what was seen of `{}` before the service came can't be forgotten: {error}",
            root.display()
        )
    })
}

/// What runc calls its mount of a root filesystem for CRIU (runc `libcontainer/criu_linux.go`).
const OF_RUNC: &str = "criu-root";

/// Takes away what a runc that was killed has left mounted in its mount namespace. Its engine has runc remove its
/// directory then, with all that is in it: the root filesystem, if it is mounted there.
pub(crate) fn unmount(root: &Path, outside: &File) {
    if root.file_name() == Some(OF_RUNC.as_ref()) && setns(outside, CloneFlags::CLONE_NEWNS).is_ok()
    {
        // Not mounted any more is as good.
        let _ = umount(root, UnmountFlags::DETACH);
    }
}
