//! The names that CRIU gives to open files of which a name was removed.
//!
//! An open file that has lost the name it was opened by, but has another one, is dumped by a name
//! that CRIU makes beside it: `link_remap.ID` (CRIU `criu/files-reg.c`, `create_link_remap`). The
//! restore opens it by that name and removes it. Two things are left to us: CRIU removes the names at
//! the source at the end of the dump, before the last changes of the files are sent, so they are kept
//! until then; and they must go when the service runs on at the source, also after a CRIU that was
//! killed.
//!
//! Nothing is remembered for that: a name is one of these when it looks like one and is the very file
//! that a process has open, or mapped, by a removed name.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What every such name begins with; CRIU's number of the file follows.
const PREFIX: &str = "link_remap.";
/// What is added to a name that is kept from CRIU.
const KEPT: &str = ".kept";
/// What the kernel adds to the path of a removed name.
const REMOVED: &str = " (deleted)";

/// Names that CRIU does not find at the end of its dump.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<PathBuf>);

/// Keeps the names that there are from CRIU, while it holds these processes.
pub(crate) fn keep(pids: &[i32]) -> io::Result<Kept> {
    let mut kept = Kept::default();
    for name in find(pids) {
        fs::rename(&name, with_suffix(&name))?;
        kept.0.push(name);
    }
    Ok(kept)
}

impl Kept {
    /// Gives the names back, once CRIU has ended.
    pub(crate) fn restore(self) -> io::Result<()> {
        for name in &self.0 {
            fs::rename(with_suffix(name), name)?;
        }
        Ok(())
    }
}

/// Removes the names of a service that runs on. These processes are frozen.
pub(crate) fn remove(pids: &[i32]) {
    for name in find(pids) {
        if let Err(error) = fs::remove_file(&name) {
            tracing::warn!(name = %name.display(), %error, "a name that CRIU made is left");
        }
    }
}

fn with_suffix(name: &Path) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(KEPT);
    name.into()
}

/// The names that there are, as they are reached from here.
fn find(pids: &[i32]) -> Vec<PathBuf> {
    // The container's init has all of its tree; one of the others may be in a part of it (chroot).
    let Some(init) = pids.iter().min() else {
        return Vec::new();
    };
    let root = PathBuf::from(format!("/proc/{init}/root"));
    let mut found: Vec<PathBuf> = pids
        .iter()
        .flat_map(|pid| removed(*pid))
        .filter_map(|(path, file)| beside(&root, &path, file))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Device and number of a file.
type FileId = (u64, u64);

/// The files that a process has open or mapped by a name that is gone, while they have another one.
fn removed(pid: i32) -> Vec<(PathBuf, FileId)> {
    let mut links = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
    {
        links.extend(entry.ok().map(|entry| entry.path()));
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    for line in maps.lines().filter(|line| line.ends_with(REMOVED)) {
        let range = line.split(' ').next().unwrap_or_default();
        links.push(format!("/proc/{pid}/map_files/{}", in_map_files(range)).into());
    }
    links.iter().filter_map(|link| removed_name(link)).collect()
}

/// `map_files` writes addresses without the zeros that `maps` begins them with.
fn in_map_files(range: &str) -> String {
    let short = |address: &str| address.trim_start_matches('0').to_owned();
    range.split('-').map(short).collect::<Vec<_>>().join("-")
}

fn removed_name(link: &Path) -> Option<(PathBuf, FileId)> {
    let target = fs::read_link(link).ok()?;
    let name = target.to_str()?.strip_suffix(REMOVED)?;
    let metadata = fs::metadata(link).ok()?;
    let has_name = name.starts_with('/') && metadata.nlink() > 0;
    has_name.then(|| (name.into(), (metadata.dev(), metadata.ino())))
}

/// CRIU's name of a file: in the directory where it had its own, or the nearest above that is left.
fn beside(root: &Path, path: &Path, file: FileId) -> Option<PathBuf> {
    let directories = path.ancestors().skip(1).map(|above| {
        let inside = above.strip_prefix("/").unwrap_or(above);
        root.join(inside)
    });
    directories.into_iter().find_map(|directory| {
        let entries = fs::read_dir(directory).ok()?;
        let mut names = entries
            .flatten()
            .filter(|entry| is_name(&entry.file_name().to_string_lossy()));
        let same = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == file;
        let found = names.find(|entry| fs::symlink_metadata(entry.path()).is_ok_and(same));
        found.map(|entry| entry.path())
    })
}

fn is_name(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX);
    let number = number.map(|rest| rest.strip_suffix(KEPT).unwrap_or(rest));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn names_are_told_from_others() {
        for name in ["link_remap.7", "link_remap.12.kept"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["link_remap.", "link_remap.x", "link_remap.kept", "data"] {
            assert!(!is_name(name), "{name}");
        }
        assert_eq!(in_map_files("00400000-00452000"), "400000-452000");
    }

    #[test]
    fn a_name_is_kept_given_back_and_removed_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("data"), "x").unwrap();
        let _open = fs::File::open(path("data")).unwrap();
        fs::hard_link(path("data"), path("other")).unwrap();
        fs::hard_link(path("data"), path("link_remap.3")).unwrap();
        fs::write(path("link_remap.4"), "of the service").unwrap();
        fs::remove_file(path("data")).unwrap();
        let pids = [i32::try_from(std::process::id()).unwrap()];
        let kept = keep(&pids).unwrap();
        assert!(!path("link_remap.3").exists() && path("link_remap.3.kept").exists());
        kept.restore().unwrap();
        assert!(path("link_remap.3").exists());
        drop(keep(&pids).unwrap());
        remove(&pids);
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["link_remap.4", "other"]);
    }
}
