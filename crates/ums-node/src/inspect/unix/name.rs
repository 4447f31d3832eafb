//! Names of unix sockets that are not those by which they were bound: CRIU binds a socket by the name that
//! `bind(2)` was given, and no file of a socket is sent.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use ums_core::facts::{Obstacle, ObstacleKind};

use super::{Held, Places, Sockets, readable};
use crate::inspect::{obstacle, proc_path};

/// Most entries that are looked at for a name.
const ENTRIES_MAX: usize = 200_000;

/// Sockets that were renamed, or linked, since they were bound. `directories` hold what the service has
/// changed, and its volumes.
pub(super) fn changed(
    all: &Sockets,
    sockets: &Held,
    places: &Places,
    directories: &[&Path],
) -> Vec<Obstacle> {
    let bound = all.iter().filter_map(|(inode, socket)| {
        let (pid, place) = (*sockets.get(inode)?, places.get(inode)?);
        let path = path(&socket.name)?;
        let root = proc_path(place.pid, "root");
        let why = why(&root, &path, socket.file, directories)?;
        let what = format!("unix socket `{}` {why}", readable(&socket.name));
        Some(obstacle(ObstacleKind::SocketState, pid, what))
    });
    bound.collect()
}

/// The path that a name stands for; a relative one is CRIU's to find.
fn path(name: &[u8]) -> Option<PathBuf> {
    let end = name.iter().position(|byte| *byte == 0);
    let name = &name[..end.unwrap_or(name.len())];
    let below = name.strip_prefix(b"/")?;
    Some(PathBuf::from(OsStr::from_bytes(below)))
}

fn why(root: &Path, path: &Path, file: u32, directories: &[&Path]) -> Option<String> {
    if file == 0 {
        return None;
    }
    match at(root, path) {
        Ok(found) if is(&found, file) => (found.nlink() > 1)
            .then(|| "that has several names (link(2)): let it have one".to_owned()),
        // Removed, unless it is found by another name.
        _ => {
            let name = directories.iter().find_map(|top| find(top, file))?;
            Some(format!(
                "whose name is `{}` by now (rename(2)): bind it by that one",
                name.display()
            ))
        }
    }
}

/// What a path leads to for who has this root directory: links in it may be absolute.
fn at(root: &Path, path: &Path) -> io::Result<Metadata> {
    let top = File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    File::from(openat2(top, path, how)?).metadata()
}

fn is(found: &Metadata, file: u32) -> bool {
    found.file_type().is_socket() && found.ino() as u32 == file
}

/// The path of the socket with this inode number below a directory.
fn find(top: &Path, file: u32) -> Option<PathBuf> {
    let mut left = ENTRIES_MAX;
    let mut pending = VecDeque::from([top.to_path_buf()]);
    while let Some(directory) = pending.pop_front() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            left = left.checked_sub(1)?;
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() {
                pending.push_back(entry.path());
            } else if kind.is_socket() && entry.metadata().is_ok_and(|found| is(&found, file)) {
                let path = entry.path();
                return path.strip_prefix(top).ok().map(Path::to_path_buf);
            }
        }
    }
    None
}

#[cfg(test)]
mod test {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_was_renamed_or_linked() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let _bound = UnixListener::bind(at("bound")).unwrap();
        let file = fs::symlink_metadata(at("bound")).unwrap().ino() as u32;
        let why = |name: &str| why(root.path(), Path::new(name), file, &[root.path()]);
        assert_eq!(why("bound"), None);
        fs::create_dir(at("deep")).unwrap();
        std::os::unix::fs::symlink("/", at("link")).unwrap();
        assert_eq!(
            why("link/bound"),
            None,
            "the link leads to the root directory"
        );
        fs::rename(at("bound"), at("deep/renamed")).unwrap();
        assert!(why("bound").is_some_and(|why| why.contains("`deep/renamed`")));
        fs::hard_link(at("deep/renamed"), at("bound")).unwrap();
        assert!(why("bound").is_some_and(|why| why.contains("several names")));
        for name in ["bound", "deep/renamed"] {
            fs::remove_file(at(name)).unwrap();
        }
        assert_eq!(why("bound"), None, "it is removed");
    }

    #[test]
    fn names_that_are_paths() {
        assert_eq!(path(b"/run/a\0"), Some(PathBuf::from("run/a")));
        assert_eq!(path(b"/run/a"), Some(PathBuf::from("run/a")));
        assert_eq!(
            (path(b"\0abstract"), path(b"relative"), path(b"")),
            (None, None, None)
        );
    }
}
