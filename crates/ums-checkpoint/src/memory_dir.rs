//! Directories that exist in memory only, and only as long as somebody holds their descriptor.
//!
//! An image of a process is a secret: it never touches a disk, and is gone with the last process
//! that holds it, however that process ends. A tmpfs that is mounted nowhere has both properties.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// A tmpfs that is attached to no path.
#[derive(Debug)]
pub struct MemoryDir {
    root: OwnedFd,
}

impl MemoryDir {
    /// Makes an empty one that can grow to `bytes_max`.
    pub fn new(bytes_max: u64) -> io::Result<Self> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "size", bytes_max.to_string())?;
        rustix::mount::fsconfig_set_string(&context, "mode", "0700")?;
        rustix::mount::fsconfig_create(&context)?;
        let mount = rustix::mount::fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
        )?;
        // What fsmount returns is an O_PATH descriptor; CRIU wants one it can list and sync.
        let directory = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let root = rustix::fs::openat(&mount, ".", directory, rustix::fs::Mode::empty())?;
        Ok(Self { root })
    }

    /// Takes over a descriptor that another process made with [`MemoryDir::new`].
    pub fn from_fd(root: OwnedFd) -> Self {
        Self { root }
    }

    /// A path under which this process reaches the directory.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
    }

    /// Writes a whole file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        fs::write(self.path().join(name), bytes)
    }

    /// Names and lengths of its regular files, sorted by name.
    pub fn files(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    /// Bytes in its files.
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.files()?.iter().map(|(_, len)| len).sum())
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.files()?.is_empty())
    }
}

impl AsFd for MemoryDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn files_are_kept_and_the_bound_holds() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED files_are_kept_and_the_bound_holds: needs root");
            return;
        }
        let dir = MemoryDir::new(1 << 20).unwrap();
        dir.write("a.img", b"abc").unwrap();
        assert_eq!(dir.files().unwrap(), [("a.img".to_owned(), 3)]);
        let error = dir.write("b.img", &vec![1; 2 << 20]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC));
    }
}
