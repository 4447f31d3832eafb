//! What lies behind a descriptor that has a path, and files that have none any more.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::statfs;
use ums_checkpoint::keeper::GHOST_LIMIT;
use ums_core::facts::{Obstacle, ObstacleKind};

use super::obstacle;

/// `MQUEUE_MAGIC` of the kernel's ipc/mqueue.c.
const MESSAGE_QUEUE: i64 = 0x1980_0202;
/// `SECRETMEM_MAGIC` of linux/magic.h.
const SECRET_MEMORY: i64 = 0x5345_434d;

/// The largest deleted file that a checkpoint carries (CRIU's `ghost-limit`), bytes.
const DELETED_MAX: u64 = GHOST_LIMIT as u64;
/// What all of them may have together, bytes: the images of a checkpoint lie in memory, at most 1 GiB of
/// them, and hold other things too.
const ALL_DELETED_MAX: u64 = 960 << 20;

/// What a file outside of the service's mounts is, given as a path below `/proc`.
pub(super) fn foreign(descriptor: &Path) -> ObstacleKind {
    let magic = statfs(descriptor).map(|found| found.filesystem_type().0);
    match magic {
        Ok(MESSAGE_QUEUE) => ObstacleKind::MessageQueue,
        Ok(SECRET_MEMORY) => ObstacleKind::SecretMemory,
        _ => ObstacleKind::ForeignFile,
    }
}

/// Whether a link is to a file that is memory and nothing else: memfd, System V segments, shared memory without a
/// name.
pub(super) fn has_memory_alone(link: &str) -> bool {
    let memory = ["/memfd:", "/SYSV", "/dev/zero"];
    memory.iter().any(|name| link.starts_with(name))
}

/// Whether a path is of the directory of a process below `/proc`, or of a directory in it.
pub(super) fn is_of_a_process(link: &str) -> bool {
    let name = link
        .strip_prefix("/proc/")
        .and_then(|rest| rest.split('/').next());
    name.is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Files that are open and have no name any more: CRIU carries their content among its images.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    /// Device and inode number → bytes on the disk, process id in the service, path.
    files: BTreeMap<(u64, u64), (u64, i32, String)>,
}

impl Deleted {
    /// Notes a descriptor's file if it is one of them. What has memory only is carried as memory.
    pub(super) fn note(&mut self, link: &str, metadata: &Metadata, pid: i32) {
        const BLOCK_LEN: u64 = 512;
        if metadata.is_file() && metadata.nlink() == 0 && !has_memory_alone(link) {
            let bytes = metadata.blocks() * BLOCK_LEN;
            let key = (metadata.dev(), metadata.ino());
            self.files.insert(key, (bytes, pid, link.to_owned()));
        }
    }

    /// Those that are too large, alone or together.
    pub(super) fn obstacles(&self) -> Vec<Obstacle> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let large = self.files.values().filter(|file| file.0 > DELETED_MAX);
        let mut found: Vec<Obstacle> = large
            .map(|(bytes, pid, path)| {
                let what = format!(
                    "{path}: {} MiB, at most {} MiB",
                    mib(*bytes),
                    mib(DELETED_MAX)
                );
                obstacle(ObstacleKind::DeletedFile, *pid, what)
            })
            .collect();
        let sum: u64 = self.files.values().map(|file| file.0).sum();
        if let Some((_, pid, path)) = self.files.values().max()
            && sum > ALL_DELETED_MAX
        {
            let what = format!(
                "{} files together: {} MiB, at most {} MiB; the largest is {path}",
                self.files.len(),
                mib(sum),
                mib(ALL_DELETED_MAX)
            );
            found.push(obstacle(ObstacleKind::DeletedFile, *pid, what));
        }
        found
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn directories_of_processes() {
        assert!(is_of_a_process("/proc/1") && is_of_a_process("/proc/17/task"));
        for other in [
            "/proc",
            "/proc/",
            "/proc/self",
            "/proc/sys/net",
            "/srv/proc/1",
            "/proc/1x",
        ] {
            assert!(!is_of_a_process(other), "{other}");
        }
    }

    #[test]
    fn deleted_files_have_a_bound_each_and_together() {
        let with = |sizes: &[u64]| {
            let name = |number: usize| format!("/file{number} (deleted)");
            let files = sizes.iter().enumerate();
            let files = files.map(|(at, mib)| ((1, at as u64), (mib << 20, 7, name(at))));
            let found = Deleted {
                files: files.collect(),
            }
            .obstacles();
            found.into_iter().map(|one| one.detail).collect::<Vec<_>>()
        };
        assert_eq!(with(&[256, 256, 256, 192]), Vec::<String>::new());
        let found = with(&[257]);
        assert!(
            found[0].contains("/file0") && found[0].contains("257 MiB"),
            "{found:?}"
        );
        let found = with(&[250, 251, 252, 253]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("1006 MiB") && found[0].contains("/file3"),
            "{found:?}"
        );
    }
}
