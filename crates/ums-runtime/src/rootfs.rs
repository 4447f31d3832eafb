//! A root filesystem that its engine has mounted before the service's files were there.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, statfs};
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fspick};

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
