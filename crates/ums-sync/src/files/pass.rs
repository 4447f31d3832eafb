//! The two passes over the trees of a service.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::{Attributes, reopen};
use super::blocks::{self, Blocks, Hasher};
use super::entry::Found;
use super::manifest::{Manifest, NodeId, Stamp};
use super::mapped::{Look, Mapped};
use super::{FileError, FileWriter, Tree};
use crate::frame::{DEPTH_MAX, Entry, Frame, Kind, RelativePath, RootName};

/// Files that are sent again whatever their times say, by tree and path in it: those that are
/// mapped shared and writable or open for writing, whose content can change without a trace.
pub type Always = BTreeSet<(RootName, PathBuf)>;

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Entries that were looked at.
    pub seen: u64,
    /// Entries that were sent.
    pub sent: u64,
    /// Entries that were reported gone.
    pub removed: u64,
    /// Bytes of content, before compression.
    pub bytes: u64,
}

/// Sends everything; the service may be running. `look` tells which of its files are mapped shared and writable
/// now: what they get meanwhile may show nowhere, so that the second pass has to send them whatever it sees.
///
/// Blocks: not for a thread that runs an async executor.
pub fn first_pass(
    tree: &Tree,
    writer: &mut FileWriter,
    look: &mut Look<'_>,
) -> Result<Manifest, FileError> {
    let mut manifest = Manifest::default();
    for (root, path) in &tree.roots {
        // The image never changes: nothing of it has to be remembered.
        let memory = if *root == RootName::Image {
            Memory::None
        } else {
            let mapped = Mapped::new(root, path, look)?;
            Memory::Remember(&mut manifest, mapped)
        };
        Pass::new(root, writer, memory, HashSet::new()).run(path)?;
    }
    writer.flush()?;
    Ok(manifest)
}

/// Sends what has changed since the first pass and what is gone; the service must be frozen.
///
/// A tree that `manifest` doesn't know, such as the image, is left alone. Blocks.
pub fn second_pass(
    tree: &Tree,
    manifest: &Manifest,
    always: &Always,
    writer: &mut FileWriter,
) -> Result<Stats, FileError> {
    let mut stats = Stats::default();
    for (root, path) in &tree.roots {
        if manifest.root(root).is_none() {
            continue;
        }
        let inodes = inodes(root, path, always)?;
        let mut pass = Pass::new(root, writer, Memory::Compare(manifest), inodes);
        pass.run(path)?;
        stats.seen += pass.stats.seen;
        stats.sent += pass.stats.sent;
        stats.removed += pass.stats.removed;
        stats.bytes += pass.stats.bytes;
    }
    writer.flush()?;
    Ok(stats)
}

/// By inode, because all names of a file have to be sent again together.
pub(super) fn inodes(
    root: &RootName,
    base: &Path,
    always: &Always,
) -> Result<HashSet<u64>, FileError> {
    let mut inodes = HashSet::new();
    for (_, path) in always.iter().filter(|(of, _)| of == root) {
        match std::fs::symlink_metadata(base.join(path)) {
            Ok(metadata) => {
                inodes.insert(std::os::unix::fs::MetadataExt::ino(&metadata));
            }
            // Deleted while open: there is nothing left to send by name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                let path = path.display().to_string();
                return Err(FileError::Read {
                    operation: "looking at",
                    root: root.clone(),
                    path,
                    source,
                });
            }
        }
    }
    Ok(inodes)
}

enum Memory<'a> {
    /// First pass over what never changes.
    None,
    /// First pass.
    Remember(&'a mut Manifest, Mapped<'a>),
    /// Second pass.
    Compare(&'a Manifest),
}

/// An entry with several names that this pass has sent.
struct Sent {
    path: Box<[u8]>,
    stamp: Stamp,
}

struct Pass<'a> {
    root: &'a RootName,
    writer: &'a mut FileWriter,
    memory: Memory<'a>,
    always: HashSet<u64>,
    links: HashMap<u64, Sent>,
    device: u64,
    stats: Stats,
    path: Vec<u8>,
}

impl<'a> Pass<'a> {
    fn new(
        root: &'a RootName,
        writer: &'a mut FileWriter,
        memory: Memory<'a>,
        always: HashSet<u64>,
    ) -> Self {
        let (links, stats, path) = (HashMap::new(), Stats::default(), Vec::new());
        Self {
            root,
            writer,
            memory,
            always,
            links,
            device: 0,
            stats,
            path,
        }
    }

    fn run(&mut self, base: &Path) -> Result<(), FileError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, base, flags, Mode::empty());
        let fd = opened.map_err(|error| self.failed("opening", error.into()))?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| self.failed("opening", error.into()))?;
        self.device = stat.st_dev;
        let node = match &mut self.memory {
            Memory::None => None,
            Memory::Remember(manifest, mapped) => {
                mapped.on(&fd);
                Some(manifest.add_root(self.root.clone()))
            }
            Memory::Compare(manifest) => manifest.root(self.root),
        };
        self.entry(&Found { fd, stat }, node, 0).map(drop)
    }

    /// Sends one entry if it has to be, and all below it. Whether it was still there.
    fn entry(
        &mut self,
        found: &Found,
        node: Option<NodeId>,
        depth: usize,
    ) -> Result<bool, FileError> {
        self.stats.seen += 1;
        let kind = found.file_type();
        let stamp = match self.links.get(&found.stat.st_ino) {
            // All names of an entry share a stamp, so that the second pass judges them alike.
            Some(sent) if kind != FileType::Directory => sent.stamp,
            _ => match &mut self.memory {
                Memory::Remember(_, mapped) => mapped.stamp(&found.stat)?,
                _ => Stamp::before_reading(&found.stat),
            },
        };
        if self.must_send(&found.stat, node) {
            match self.send(found, kind, node, stamp)? {
                Outcome::Sent => self.stats.sent += 1,
                // For the destination what is not carried isn't there.
                Outcome::Gone | Outcome::NotCarried => return Ok(false),
            }
        }
        if let (Memory::Remember(manifest, _), Some(node)) = (&mut self.memory, node) {
            manifest.set(node, stamp);
        }
        if kind == FileType::Directory {
            self.directory(found, node, depth)?;
        }
        Ok(true)
    }

    fn must_send(&self, stat: &Stat, node: Option<NodeId>) -> bool {
        match (&self.memory, node) {
            (Memory::Compare(manifest), Some(node)) => {
                manifest.stamp(node) != Stamp::of(stat) || self.always.contains(&stat.st_ino)
            }
            _ => true,
        }
    }

    fn directory(
        &mut self,
        found: &Found,
        node: Option<NodeId>,
        depth: usize,
    ) -> Result<(), FileError> {
        if found.stat.st_dev != self.device {
            let reason = "another file system is mounted there; unmount it, or make it a volume";
            return Err(self.unsupported(reason));
        }
        let names = match found.names() {
            Ok(names) => names,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(self.failed("listing", error)),
        };
        if depth >= DEPTH_MAX && !names.is_empty() {
            return Err(self.unsupported(&format!("it is deeper than {DEPTH_MAX} directories")));
        }
        let remembered = match (&mut self.memory, node) {
            (Memory::Remember(manifest, _), Some(node)) => {
                let added = manifest.add_children(node, &names);
                Some(added.ok_or_else(|| FileError::TooMany {
                    root: self.root.clone(),
                })?)
            }
            _ => None,
        };
        let mut there = vec![false; names.len()];
        for (at, name) in names.iter().enumerate() {
            let child = match (&self.memory, node, &remembered) {
                (_, _, Some(added)) => Some(added[at]),
                (Memory::Compare(manifest), Some(node), _) => manifest.child(node, name),
                _ => None,
            };
            there[at] = self.below(name, |pass| pass.child(found, name, child, depth))?;
        }
        self.removals(node, &names, &there)
    }

    fn child(
        &mut self,
        directory: &Found,
        name: &[u8],
        node: Option<NodeId>,
        depth: usize,
    ) -> Result<bool, FileError> {
        match Found::look(&directory.fd, name) {
            Ok(Some(found)) => self.entry(&found, node, depth + 1),
            Ok(None) => Ok(false),
            Err(error) => Err(self.failed("looking at", error)),
        }
    }

    /// Reports what the first pass sent and is no more. All below it goes with it.
    fn removals(
        &mut self,
        node: Option<NodeId>,
        names: &[Vec<u8>],
        there: &[bool],
    ) -> Result<(), FileError> {
        let (Memory::Compare(manifest), Some(node)) = (&self.memory, node) else {
            return Ok(());
        };
        let is_there = |name: &[u8]| {
            names
                .binary_search_by(|other| other[..].cmp(name))
                .is_ok_and(|at| there[at])
        };
        let gone: Vec<Vec<u8>> = manifest
            .children(node)
            .filter(|name| !is_there(name))
            .map(<[u8]>::to_vec)
            .collect();
        for name in gone {
            self.below(&name, |pass| {
                let path =
                    RelativePath::new(&pass.path).map_err(|reason| pass.unsupported(&reason))?;
                let removed = Frame::Remove {
                    root: pass.root.clone(),
                    path,
                };
                pass.writer.put(&removed)?;
                pass.stats.removed += 1;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        found: &Found,
        kind: FileType,
        node: Option<NodeId>,
        stamp: Stamp,
    ) -> Result<Outcome, FileError> {
        let several = kind != FileType::Directory && found.stat.st_nlink > 1;
        let before = self.links.get(&found.stat.st_ino).filter(|_| several);
        let sent = match (kind, before) {
            (FileType::Socket, _) => return Ok(Outcome::NotCarried),
            (_, Some(before)) => {
                let target = before.path.clone();
                self.link(found, &target)
            }
            (FileType::RegularFile, None) => self.file(found, node),
            (_, None) => self.plain(found, kind),
        };
        if several && sent.is_ok() {
            let path = self.path.clone().into_boxed_slice();
            self.links
                .entry(found.stat.st_ino)
                .or_insert(Sent { path, stamp });
        }
        match sent {
            Ok(()) => Ok(Outcome::Sent),
            Err(FileError::Read { source, .. }) if is_gone(&source) => Ok(Outcome::Gone),
            Err(error) => Err(error),
        }
    }

    fn plain(&mut self, found: &Found, kind: FileType) -> Result<(), FileError> {
        let (major, minor) = (
            rustix::fs::major(found.stat.st_rdev),
            rustix::fs::minor(found.stat.st_rdev),
        );
        let target;
        let kind = match kind {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => {
                target = found
                    .link_target()
                    .map_err(|error| self.failed("reading", error))?;
                Kind::Symlink { target: &target }
            }
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharacterDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            _ => return Err(self.unsupported("it is of a kind that is not known")),
        };
        let attributes = self.attributes(found)?;
        self.put_entry(&found.stat, kind, &attributes)
    }

    fn link(&mut self, found: &Found, target: &[u8]) -> Result<(), FileError> {
        let target = RelativePath::new(target).map_err(|reason| self.unsupported(&reason))?;
        self.put_entry(&found.stat, Kind::Link { target }, &Attributes::default())
    }

    fn file(&mut self, found: &Found, node: Option<NodeId>) -> Result<(), FileError> {
        let opened = reopen(&found.fd, OFlags::empty());
        let file = opened.map_err(|error| self.failed("opening", error))?;
        let attributes = self.attributes(found)?;
        let size = u64::try_from(found.stat.st_size).unwrap_or_default();
        let read = match self.sent_before(found, node) {
            Some(blocks) => {
                self.put_entry(&found.stat, Kind::Patch, &attributes)?;
                self.writer.changes(&file, size, blocks)?
            }
            None => {
                self.put_entry(&found.stat, Kind::File, &attributes)?;
                let mut hasher = self.hasher(size);
                let read = self.writer.content(&file, size, hasher.as_mut())?;
                self.remember_blocks(found, node, hasher, size);
                read
            }
        };
        self.stats.bytes += read.map_err(|error| self.failed("reading", error))?;
        Ok(self.writer.put(&Frame::FileEnd { size })?)
    }

    /// What the destination has of a file from the first pass.
    fn sent_before(&self, found: &Found, node: Option<NodeId>) -> Option<&'a Blocks> {
        match (&self.memory, node) {
            (Memory::Compare(manifest), Some(node)) => manifest
                .blocks(node)
                .filter(|blocks| blocks.are_of(found.stat.st_ino)),
            _ => None,
        }
    }

    fn hasher(&self, size: u64) -> Option<Hasher> {
        match &self.memory {
            Memory::Remember(manifest, _) => {
                blocks::block_len(size, manifest.hashes_left()).map(Hasher::new)
            }
            Memory::None | Memory::Compare(_) => None,
        }
    }

    fn remember_blocks(
        &mut self,
        found: &Found,
        node: Option<NodeId>,
        hasher: Option<Hasher>,
        size: u64,
    ) {
        if let (Memory::Remember(manifest, _), Some(node), Some(mut hasher)) =
            (&mut self.memory, node, hasher)
        {
            hasher.end(size);
            manifest.set_blocks(node, hasher.into_blocks(found.stat.st_ino));
        }
    }

    fn attributes(&self, found: &Found) -> Result<Attributes, FileError> {
        Attributes::read(&found.fd)
            .map_err(|error| self.failed("reading the extended attributes of", error))?
            .map_err(|reason| self.unsupported(&reason))
    }

    fn put_entry(
        &mut self,
        stat: &Stat,
        kind: Kind<'_>,
        attributes: &Attributes,
    ) -> Result<(), FileError> {
        let path = RelativePath::new(&self.path).map_err(|reason| self.unsupported(&reason))?;
        let entry = Entry {
            root: self.root.clone(),
            path,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_s: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            xattrs: attributes.xattrs(),
        };
        Ok(self.writer.put(&Frame::Entry(entry))?)
    }

    /// Does something with `path` leading to `name` in the directory that it leads to now.
    fn below<T>(
        &mut self,
        name: &[u8],
        work: impl FnOnce(&mut Self) -> Result<T, FileError>,
    ) -> Result<T, FileError> {
        let length = self.path.len();
        if length > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        let done = work(self);
        self.path.truncate(length);
        done
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path)
            .escape_debug()
            .to_string()
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> FileError {
        FileError::Read {
            operation,
            root: self.root.clone(),
            path: self.shown(),
            source,
        }
    }

    fn unsupported(&self, reason: &str) -> FileError {
        let reason = reason.to_owned();
        FileError::Unsupported {
            root: self.root.clone(),
            path: self.shown(),
            reason,
        }
    }
}

enum Outcome {
    Sent,
    Gone,
    NotCarried,
}

/// Whether the entry vanished between being listed and being looked at.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR)
    )
}
