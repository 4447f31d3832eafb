//! The image of a container: the layers of its root filesystem below the one that it changes, as one tree.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

/// The longest list of layers that mount(2) takes: a page, less what else is in it.
const LAYERS_LEN_MAX: usize = 4000;

/// The layers of an image, merged and read-only. They have no name in the file system, and go with this.
#[derive(Debug)]
pub struct Merged {
    tree: OwnedFd,
}

impl Merged {
    /// Merges the layers, uppermost first and separated by colons as overlay has them. `scratch` is a directory of
    /// ours that is mounted on for a moment.
    ///
    /// # Errors
    /// When they can't be mounted.
    pub fn new(lower: &str, scratch: &Path) -> io::Result<Self> {
        if lower.len() > LAYERS_LEN_MAX {
            let text = "the image has more layers than can be mounted at once: build it with fewer";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if !lower.contains(':') {
            // One alone is no overlay.
            let tree = open_tree(CWD, Path::new(lower), clone)?;
            return Ok(Self { tree });
        }
        std::fs::create_dir_all(scratch)?;
        let options = format!("lowerdir={lower}");
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
        mount(
            Some("overlay"),
            scratch,
            Some("overlay"),
            flags,
            Some(&*options),
        )?;
        let tree = open_tree(CWD, scratch, clone);
        umount2(scratch, MntFlags::MNT_DETACH)?;
        Ok(Self { tree: tree? })
    }

    /// Where this process finds its files, as long as this lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/.", self.tree.as_raw_fd()))
    }
}
