//! What the first pass saw, so that the second can tell what has changed since.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Stat;

use super::blocks::{Blocks, HASHES_MAX};
use crate::frame::RootName;

/// Entries that are remembered at most, of all trees of a service.
pub const ENTRIES_MAX: usize = 1_000_000;

/// A file that changed so short a time before it was looked at may change again without its
/// times showing it: the kernel's clock for them ticks every 10 ms at the slowest.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// What was seen of an entry: a digest of its kind, inode, size and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp([u8; 16]);

impl Stamp {
    /// Not sent: it was gone before it could be, or it is not carried.
    pub(super) const UNSENT: Stamp = Stamp([0; 16]);

    /// Sent, but what was sent can't be told from what may have come right after it.
    pub(super) const UNSURE: Stamp = Stamp([1; 16]);

    pub(super) fn of(stat: &Stat) -> Self {
        let mut hasher = blake3::Hasher::new();
        let numbers = [
            u64::from(stat.st_mode),
            stat.st_dev,
            stat.st_ino,
            stat.st_rdev,
            stat.st_size as u64,
            stat.st_mtime as u64,
            stat.st_mtime_nsec,
            stat.st_ctime as u64,
            stat.st_ctime_nsec,
        ];
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Stamp(short)
    }

    /// The same for an entry that is about to be read: unsure if it has only just changed.
    pub(super) fn before_reading(stat: &Stat) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if now.saturating_sub(changed(stat)) < TICK {
            Self::UNSURE
        } else {
            Self::of(stat)
        }
    }
}

/// When an entry changed for the last time, since the epoch.
pub(super) fn changed(stat: &Stat) -> Duration {
    let nanos = u32::try_from(stat.st_ctime_nsec).unwrap_or_default();
    Duration::new(
        u64::try_from(stat.st_ctime).unwrap_or_default(),
        nanos.min(999_999_999),
    )
}

/// One entry that was seen.
#[derive(Debug, Clone, Copy)]
struct Node {
    name_at: u32,
    name_len: u8,
    stamp: Stamp,
    children_at: u32,
    children: u32,
}

/// Where an entry is in a [`Manifest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

/// What the first pass saw of every entry.
///
/// # Memory
///
/// 36 bytes and its name for each entry, with at most [`ENTRIES_MAX`] of them, and at most 8 MiB of
/// hashes of large files' blocks. The image is not remembered: it never changes.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    nodes: Vec<Node>,
    names: Vec<u8>,
    roots: BTreeMap<RootName, NodeId>,
    blocks: BTreeMap<u32, Blocks>,
    hashes: usize,
}

impl Manifest {
    /// How many entries it remembers.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it remembers none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn add_root(&mut self, root: RootName) -> NodeId {
        let id = self.add(b"");
        self.roots.insert(root, id);
        id
    }

    pub(super) fn root(&self, root: &RootName) -> Option<NodeId> {
        self.roots.get(root).copied()
    }

    /// Adds the children of a directory, sorted by name; `None` if there is no room for them.
    pub(super) fn add_children(&mut self, of: NodeId, names: &[Vec<u8>]) -> Option<Vec<NodeId>> {
        if self.nodes.len() + names.len() > ENTRIES_MAX {
            return None;
        }
        let at = self.nodes.len() as u32;
        let parent = &mut self.nodes[of.0 as usize];
        (parent.children_at, parent.children) = (at, names.len() as u32);
        Some(names.iter().map(|name| self.add(name)).collect())
    }

    pub(super) fn set(&mut self, id: NodeId, stamp: Stamp) {
        self.nodes[id.0 as usize].stamp = stamp;
    }

    pub(super) fn stamp(&self, id: NodeId) -> Stamp {
        self.nodes[id.0 as usize].stamp
    }

    /// How many hashes of blocks may still be remembered.
    pub(super) fn hashes_left(&self) -> usize {
        HASHES_MAX.saturating_sub(self.hashes)
    }

    pub(super) fn set_blocks(&mut self, id: NodeId, blocks: Blocks) {
        self.hashes += blocks.count();
        self.blocks.insert(id.0, blocks);
    }

    pub(super) fn blocks(&self, id: NodeId) -> Option<&Blocks> {
        self.blocks.get(&id.0)
    }

    /// The children of a directory that were sent.
    pub(super) fn children(&self, of: NodeId) -> impl Iterator<Item = &[u8]> {
        let sent = |node: &&Node| node.stamp != Stamp::UNSENT;
        self.child_nodes(of)
            .iter()
            .filter(sent)
            .map(|node| self.name(node))
    }

    pub(super) fn child(&self, of: NodeId, name: &[u8]) -> Option<NodeId> {
        let found = self
            .child_nodes(of)
            .binary_search_by(|node| self.name(node).cmp(name))
            .ok()?;
        Some(NodeId(self.nodes[of.0 as usize].children_at + found as u32))
    }

    /// Names have at most 255 bytes and there are at most a million: both fit their fields.
    fn add(&mut self, name: &[u8]) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node {
            name_at: self.names.len() as u32,
            name_len: name.len() as u8,
            stamp: Stamp::UNSENT,
            children_at: 0,
            children: 0,
        });
        self.names.extend_from_slice(name);
        id
    }

    fn child_nodes(&self, of: NodeId) -> &[Node] {
        let parent = &self.nodes[of.0 as usize];
        let at = parent.children_at as usize;
        &self.nodes[at..at + parent.children as usize]
    }

    fn name(&self, node: &Node) -> &[u8] {
        &self.names[node.name_at as usize..][..node.name_len.into()]
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn children_are_found_by_name_and_only_the_sent_are_listed() {
        let mut manifest = Manifest::default();
        let root = manifest.add_root(RootName::Upper);
        let names = [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()];
        let ids = manifest.add_children(root, &names).unwrap();
        let below = manifest.add_children(ids[1], &[b"x".to_vec()]).unwrap();
        for id in [ids[0], ids[1], below[0]] {
            manifest.set(id, Stamp::UNSURE);
        }
        assert_eq!(manifest.children(root).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(manifest.child(ids[1], b"x"), Some(below[0]));
        assert_eq!(manifest.child(root, b"x"), None);
        assert_eq!(manifest.root(&RootName::Image), None);
        assert_eq!(manifest.len(), 5);
    }

    #[test]
    fn there_is_a_limit() {
        let mut manifest = Manifest::default();
        let root = manifest.add_root(RootName::Upper);
        let names = vec![b"n".to_vec(); ENTRIES_MAX];
        assert!(manifest.add_children(root, &names).is_none());
    }
}
