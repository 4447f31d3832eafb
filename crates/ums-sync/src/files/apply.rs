//! The destination's part: writes trees of files into directories of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps,
    UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::attributes::{self, through};
use super::remove::remove_all;
use crate::frame::{Entry, Kind, RelativePath, RootName, Xattr};
use crate::receive::FileOperation;

/// Why a file can't be written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The operating system refused.
    #[error("{operation} `{path}` of {root} failed{remedy}")]
    Write {
        /// What was being done.
        operation: &'static str,
        /// In which tree.
        root: RootName,
        /// To which entry; empty for the tree itself.
        path: String,
        /// What to do about it, beginning with a comma, if anything is known.
        remedy: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tree that is not expected.
    #[error("files of {root} arrive, which is no part of this migration")]
    UnknownRoot {
        /// Which.
        root: RootName,
    },
    /// Content or the end of a file where no file was begun.
    #[error("content of a file arrives before the file itself")]
    NoFile,
}

/// Writes what [`first_pass`](super::first_pass) and [`second_pass`](super::second_pass) send.
///
/// # Guarantees
///
/// Nothing outside the given directories is touched, whatever arrives: every path is resolved
/// below its directory, through no symbolic link and into no other file system. An entry replaces
/// what had its name, of whatever kind; a file is always a new file, so that other names of the
/// one it replaces keep theirs, unless it is said to be a patch of a regular file that is there.
///
/// # Memory
///
/// The path and time of each directory, until [`finish`](Applier::finish).
pub struct Applier {
    roots: BTreeMap<RootName, Root>,
    open: Option<OpenFile>,
}

struct Root {
    fd: OwnedFd,
    location: PathBuf,
    /// Writing into a directory changes its time: all are set at the end.
    directory_times: BTreeMap<Box<[u8]>, Timespec>,
    /// The directory that was written to last, because the next entry is mostly beside it.
    last_parent: Option<(Box<[u8]>, OwnedFd)>,
}

/// The file whose content is arriving, and what it gets when that is complete: writing to a file
/// takes away its capabilities and changes its time.
struct OpenFile {
    file: File,
    /// Whether it held something before.
    patched: bool,
    root: RootName,
    path: Box<[u8]>,
    attributes: Attributes,
}

/// Name and value.
type OwnedXattr = (Box<[u8]>, Box<[u8]>);

struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    xattrs: Vec<OwnedXattr>,
}

/// Opens the directory of a tree.
fn open_root(name: &RootName, location: &Path) -> Result<OwnedFd, ApplyError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, location, flags, Mode::empty());
    opened.map_err(|error| ApplyError::Write {
        operation: "opening",
        root: name.clone(),
        path: String::new(),
        remedy: format!(", it should be at {}", location.display()),
        source: error.into(),
    })
}

impl Applier {
    /// An applier for these trees. Their directories must exist, and nobody else may use them
    /// until [`finish`](Applier::finish).
    pub fn new(roots: impl IntoIterator<Item = (RootName, PathBuf)>) -> Result<Self, ApplyError> {
        let mut opened = BTreeMap::new();
        for (name, location) in roots {
            let fd = open_root(&name, &location)?;
            let (directory_times, last_parent) = (BTreeMap::new(), None);
            opened.insert(
                name,
                Root {
                    fd,
                    location,
                    directory_times,
                    last_parent,
                },
            );
        }
        Ok(Self {
            roots: opened,
            open: None,
        })
    }

    /// Carries out one step.
    pub fn apply(&mut self, operation: &FileOperation<'_>) -> Result<(), ApplyError> {
        match operation {
            FileOperation::Entry(entry) => self.entry(entry),
            FileOperation::Data { offset, bytes } => self.data(*offset, bytes),
            FileOperation::End { size } => self.end(*size),
            FileOperation::Remove { root, path } => {
                let at = self.root(root)?;
                at.remove(*path)
                    .map_err(|error| at.failed("removing", root, *path, error))
            }
        }
    }

    /// Everything has arrived: gives the directories their times.
    pub fn finish(&mut self) -> Result<(), ApplyError> {
        self.roots
            .iter_mut()
            .try_for_each(|(name, root)| root.set_times(name))
    }

    /// One tree has arrived whole: gives its directories their times, and takes nothing more for it.
    pub fn close(&mut self, name: &RootName) -> Result<(), ApplyError> {
        match self.roots.remove(name) {
            Some(mut root) => root.set_times(name),
            None => Ok(()),
        }
    }

    /// A tree has been moved to another directory, with all that has arrived of it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn moved(&mut self, name: &RootName, location: &Path) -> Result<(), ApplyError> {
        let fd = open_root(name, location)?;
        let root = self.root(name)?;
        root.fd = fd;
        root.location = location.to_owned();
        root.last_parent = None;
        Ok(())
    }

    fn root(&mut self, name: &RootName) -> Result<&mut Root, ApplyError> {
        self.roots
            .get_mut(name)
            .ok_or_else(|| ApplyError::UnknownRoot { root: name.clone() })
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), ApplyError> {
        let (name, path) = (&entry.root, entry.path);
        let attributes = Attributes::of(entry);
        let root = self.root(name)?;
        let made = root
            .make(entry)
            .map_err(|error| root.failed("creating", name, path, error))?;
        match made {
            Made::Link => {}
            Made::File(file) => {
                let path = path.as_bytes().into();
                self.open = Some(OpenFile {
                    file,
                    patched: entry.kind == Kind::Patch,
                    root: name.clone(),
                    path,
                    attributes,
                });
            }
            Made::Other(fd) => {
                attributes
                    .write(&fd, matches!(entry.kind, Kind::Symlink { .. }))
                    .map_err(|error| root.failed("setting the attributes of", name, path, error))?;
                if entry.kind == Kind::Directory {
                    root.directory_times
                        .insert(path.as_bytes().into(), attributes.mtime);
                }
            }
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ApplyError> {
        let open = self.open.as_ref().ok_or(ApplyError::NoFile)?;
        let placed = match open.patched && bytes.iter().all(|byte| *byte == 0) {
            true => clear_range(&open.file, offset, bytes),
            false => open.file.write_all_at(bytes, offset),
        };
        match placed {
            Ok(()) => Ok(()),
            Err(error) => Err(self.file_failed("writing", error)),
        }
    }

    fn end(&mut self, size: u64) -> Result<(), ApplyError> {
        let open = self.open.as_ref().ok_or(ApplyError::NoFile)?;
        let done = open
            .file
            .set_len(size)
            .and_then(|()| Ok(open.attributes.write(&open.file, false)?));
        if let Err(error) = done {
            return Err(self.file_failed("completing", error));
        }
        self.open = None;
        Ok(())
    }

    fn file_failed(&self, operation: &'static str, source: io::Error) -> ApplyError {
        let Some(open) = &self.open else {
            return ApplyError::NoFile;
        };
        let path = RelativePath::new(&open.path).unwrap_or(RelativePath::ROOT);
        match self.roots.get(&open.root) {
            Some(root) => root.failed(operation, &open.root, path, source),
            None => ApplyError::UnknownRoot {
                root: open.root.clone(),
            },
        }
    }
}

enum Made {
    File(File),
    Link,
    Other(OwnedFd),
}

impl Root {
    /// Gives its directories their times.
    fn set_times(&mut self, name: &RootName) -> Result<(), ApplyError> {
        self.last_parent = None;
        for (path, mtime) in std::mem::take(&mut self.directory_times) {
            let path = RelativePath::new(&path).unwrap_or(RelativePath::ROOT);
            match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(fd) => set_mtime(&through(&fd), mtime)
                    .map_err(|error| self.failed("setting the time of", name, path, error))?,
                // It has been removed or replaced since.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(self.failed("opening", name, path, error)),
            }
        }
        Ok(())
    }

    /// Makes the entry, instead of whatever had its name, without its attributes.
    fn make(&mut self, entry: &Entry<'_>) -> Result<Made, Errno> {
        let Some((parent_path, name)) = entry.path.split() else {
            // A root is there already, and the protocol has checked that it is a directory.
            return Ok(Made::Other(self.open(RelativePath::ROOT, OFlags::PATH)?));
        };
        if entry.kind == Kind::Directory && self.has_directory(parent_path, name)? {
            return Ok(Made::Other(self.entry_fd(parent_path, name)?));
        }
        if entry.kind == Kind::Patch {
            return Ok(Made::File(self.present(parent_path, name)?));
        }
        self.clear(parent_path, name)?;
        if let Kind::Link { target } = entry.kind {
            let (from_path, from_name) = target.split().ok_or(Errno::INVAL)?;
            let from = self.open(from_path, OFlags::PATH | OFlags::DIRECTORY)?;
            let parent = self.parent(parent_path)?;
            rustix::fs::linkat(&from, from_name, parent, name, AtFlags::empty())?;
            return Ok(Made::Link);
        }
        let parent = self.parent(parent_path)?;
        let private = Mode::RUSR | Mode::WUSR;
        let node = |kind, device| rustix::fs::mknodat(parent, name, kind, private, device);
        match entry.kind {
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
                let file = rustix::fs::openat(parent, name, flags | OFlags::CLOEXEC, private)?;
                return Ok(Made::File(file.into()));
            }
            Kind::Directory => rustix::fs::mkdirat(parent, name, Mode::RWXU)?,
            Kind::Symlink { target } => rustix::fs::symlinkat(target, parent, name)?,
            Kind::Fifo => node(FileType::Fifo, 0)?,
            Kind::CharacterDevice { major, minor } => {
                node(FileType::CharacterDevice, rustix::fs::makedev(major, minor))?;
            }
            Kind::BlockDevice { major, minor } => {
                node(FileType::BlockDevice, rustix::fs::makedev(major, minor))?;
            }
            Kind::Link { .. } | Kind::Patch => {}
        }
        Ok(Made::Other(self.entry_fd(parent_path, name)?))
    }

    fn has_directory(&mut self, parent: RelativePath<'_>, name: &[u8]) -> Result<bool, Errno> {
        match rustix::fs::statat(self.parent(parent)?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes away what has the name. The parent remembered may have been below it.
    fn clear(&mut self, parent: RelativePath<'_>, name: &[u8]) -> Result<(), Errno> {
        if self.has_directory(parent, name)? {
            let fd = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)?;
            self.last_parent = None;
            return remove_all(&fd, name);
        }
        remove_all(self.parent(parent)?, name)
    }

    fn remove(&mut self, path: RelativePath<'_>) -> Result<(), Errno> {
        let (parent, name) = path.split().ok_or(Errno::INVAL)?;
        match self.clear(parent, name) {
            // What it was in is gone as well.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            done => done,
        }
    }

    /// Opens a regular file that is there. Looked at before it is opened for writing: to open a
    /// device or a pipe would be to use it.
    fn present(&mut self, parent: RelativePath<'_>, name: &[u8]) -> Result<File, Errno> {
        let fd = self.entry_fd(parent, name)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(through(&fd), flags, Mode::empty())?.into())
    }

    fn entry_fd(&mut self, parent: RelativePath<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.parent(parent)?, name, flags, Mode::empty())
    }

    fn parent(&mut self, path: RelativePath<'_>) -> Result<&OwnedFd, Errno> {
        let known = self
            .last_parent
            .take()
            .filter(|(known, _)| **known == *path.as_bytes());
        let known = match known {
            Some(known) => known,
            None => {
                let fd = self.open(path, OFlags::PATH | OFlags::DIRECTORY)?;
                (path.as_bytes().into(), fd)
            }
        };
        Ok(&self.last_parent.insert(known).1)
    }

    /// Opens what is at `path` below this tree, through no link.
    fn open(&self, path: RelativePath<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let inside = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let path = if path.is_root() {
            b"."
        } else {
            path.as_bytes()
        };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), inside) {
                // The kernel asks to try again when something was renamed meanwhile.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
    }

    fn failed(
        &self,
        operation: &'static str,
        root: &RootName,
        path: RelativePath<'_>,
        error: impl Into<io::Error>,
    ) -> ApplyError {
        let source = error.into();
        let (root, path) = (root.clone(), path.to_string());
        let remedy = self.remedy(&source);
        ApplyError::Write {
            operation,
            root,
            path,
            remedy,
            source,
        }
    }

    fn remedy(&self, error: &io::Error) -> String {
        let place = self.location.display();
        match Errno::from_io_error(error) {
            Some(Errno::NOSPC | Errno::DQUOT) => match rustix::fs::statvfs(&self.location) {
                Ok(left) => format!(
                    ", {} bytes and {} files are left at {place}: make room there and migrate \
                     again",
                    left.f_bavail.saturating_mul(left.f_frsize),
                    left.f_favail,
                ),
                Err(_) => format!(", make room at {place} and migrate again"),
            },
            Some(Errno::OPNOTSUPP) => {
                format!(", the file system at {place} lacks what the source's has")
            }
            Some(Errno::PERM) => format!(", the agent needs more privileges to write at {place}"),
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                ", what it should be in is not a directory here".to_owned()
            }
            _ => String::new(),
        }
    }
}

impl Attributes {
    fn of(entry: &Entry<'_>) -> Self {
        let xattr = |xattr: &Xattr<'_>| -> OwnedXattr { (xattr.name.into(), xattr.value.into()) };
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: Timespec {
                tv_sec: entry.mtime_s,
                tv_nsec: entry.mtime_ns.into(),
            },
            xattrs: entry.xattrs.iter().map(xattr).collect(),
        }
    }

    /// A change of owner clears set-user-id and capabilities, so it comes first; the mode before
    /// the attributes, because an access list is one and has the last word.
    fn write(&self, fd: &impl AsFd, symlink: bool) -> Result<(), Errno> {
        // To the kernel that is no owner: it means "leave it" (`chown(2)`).
        if self.uid == u32::MAX || self.gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        let path = through(fd);
        if !symlink {
            rustix::fs::chmod(&path, Mode::from_raw_mode(self.mode))?;
        }
        let wanted: Vec<Xattr<'_>> = self
            .xattrs
            .iter()
            .map(|(name, value)| Xattr { name, value })
            .collect();
        attributes::write(&path, &wanted)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        set_mtime(&path, self.mtime)
    }
}

/// Makes a hole where a file system can, and writes the zeros where it can't.
fn clear_range(file: &File, offset: u64, zeros: &[u8]) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, offset, zeros.len() as u64) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.write_all_at(zeros, offset),
        done => Ok(done?),
    }
}

fn set_mtime(path: &str, mtime: Timespec) -> Result<(), Errno> {
    let last_access = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access,
        last_modification: mtime,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())
}
