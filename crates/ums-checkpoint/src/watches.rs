//! Which files are watched by inotify or fanotify, by their paths.
//!
//! The kernel names a watched file by its number and a file handle. On an overlay such a handle can't
//! be opened (kernel `filesystems/overlayfs.rst`, "NFS export"), so CRIU looks for the number at paths
//! that it is told (`irmap_scan_paths`; CRIU `criu/irmap.c`). They are looked for here, once, while the
//! service still runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Files and directories that are looked at: as many as one service may have in its changed files and
/// volumes.
const LOOKS_MAX: usize = 1_000_000;

/// A watched file: device, as the kernel has it (`MKDEV`), and number.
pub(crate) type Watched = (u64, u64);

/// Files of a container's root filesystem that are watched, and their paths in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Paths(BTreeMap<Watched, String>);

impl Paths {
    /// All of them, the deepest first: CRIU looks at all below a path before it looks at the next one.
    pub(crate) fn deepest_first(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.0.values().cloned().collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.matches('/').count()));
        paths
    }

    /// That of one of them.
    pub(crate) fn of(&self, watched: Watched) -> Option<&str> {
        self.0.get(&watched).map(String::as_str)
    }
}

/// Paths, in the container, of the files of its root filesystem that these processes watch.
///
/// # Errors
/// `NotFound` when one of them has no path.
pub(crate) fn paths(pids: &[i32], init: i32) -> io::Result<Paths> {
    let (found, nameless) = look(pids, init)?;
    if nameless > 0 {
        let text = format!(
            "{nameless} of the files that the service watches (inotify) have no path any more, or are symbolic \
             links: end those watches, then migrate again"
        );
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok(found)
}

/// How many files of the root filesystem these processes watch that have no path, or are symbolic links
/// themselves (IN_DONT_FOLLOW), which CRIU can't find again.
///
/// # Errors
/// When the root directory of `init` can't be looked at.
pub fn nameless(pids: &[i32], init: i32) -> io::Result<usize> {
    look(pids, init).map(|(_, nameless)| nameless)
}

fn look(pids: &[i32], init: i32) -> io::Result<(Paths, usize)> {
    let root = PathBuf::from(format!("/proc/{init}/root"));
    let device = kernel_device(fs::metadata(&root)?.dev());
    let mut wanted: BTreeSet<Watched> = pids.iter().flat_map(|pid| watched(*pid)).collect();
    // Other filesystems give handles that can be opened.
    wanted.retain(|(of, _)| *of == device);
    find(&root, wanted)
}

/// What a process watches.
fn watched(pid: i32) -> Vec<Watched> {
    let mut found = Vec::new();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
    for descriptor in descriptors.into_iter().flatten().flatten() {
        let link = fs::read_link(descriptor.path()).unwrap_or_default();
        let names = ["anon_inode:inotify", "anon_inode:[fanotify]"].map(Path::new);
        if !names.contains(&link.as_path()) {
            continue;
        }
        let number = descriptor.file_name();
        let info = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
        let text = fs::read_to_string(info).unwrap_or_default();
        found.extend(text.lines().filter_map(parse));
    }
    found
}

/// A line of `fdinfo` (kernel `filesystems/proc.rst`, 3.8): `inotify wd:1 ino:98f2a sdev:3d mask:…`. The
/// number of the device is read as the kernel writes it there, which is not as `stat` has it.
fn parse(line: &str) -> Option<Watched> {
    let mark = line.strip_prefix("inotify ");
    let fields = mark.or_else(|| line.strip_prefix("fanotify "))?.split(' ');
    let fields: BTreeMap<&str, &str> = fields.filter_map(|field| field.split_once(':')).collect();
    let number = |name: &str| u64::from_str_radix(fields.get(name)?, 16).ok();
    Some((number("sdev")?, number("ino")?))
}

/// `MKDEV` of the kernel (`include/linux/kdev_t.h`), of a device as stat(2) has it.
fn kernel_device(device: u64) -> u64 {
    major(device) << 20 | minor(device)
}

/// The paths of these files below `root`, each without it, and how many of them have none.
fn find(root: &Path, mut wanted: BTreeSet<Watched>) -> io::Result<(Paths, usize)> {
    let (mut found, mut looks) = (Paths::default(), 0);
    let mut directories = vec![root.to_owned()];
    let mut check = |path: &Path, wanted: &mut BTreeSet<Watched>| -> io::Result<bool> {
        let metadata = match path == root {
            true => fs::metadata(path)?,
            false => fs::symlink_metadata(path)?,
        };
        // CRIU would follow it at the restore, and watch what it leads to.
        if metadata.is_symlink() {
            return Ok(false);
        }
        let id = (kernel_device(metadata.dev()), metadata.ino());
        if wanted.remove(&id) {
            let inside = path.strip_prefix(root).unwrap_or(path);
            let inside = if inside.as_os_str().is_empty() {
                Path::new(".")
            } else {
                inside
            };
            found.0.insert(id, format!("/{}", inside.display()));
        }
        Ok(metadata.is_dir())
    };
    let Some(device) = wanted.first().map(|(device, _)| *device) else {
        return Ok((found, 0));
    };
    check(root, &mut wanted)?;
    while let Some(directory) = directories.pop() {
        // It may go while it is looked at.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            looks += 1;
            if wanted.is_empty() || looks > LOOKS_MAX {
                break;
            }
            let path = entry.path();
            let is_here =
                || fs::symlink_metadata(&path).is_ok_and(|m| kernel_device(m.dev()) == device);
            if check(&path, &mut wanted).unwrap_or(false) && is_here() {
                directories.push(path);
            }
        }
    }
    Ok((found, wanted.len()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn watches_are_read_and_found() {
        let line = "inotify wd:2 ino:99032a sdev:3d mask:fff ignored_mask:0 fhandle-bytes:8 \
                    fhandle-type:1 f_handle:2a039900";
        assert_eq!(parse(line), Some((0x3d, 0x99_032a)));
        assert_eq!(parse("inotify wd:2"), None);
        let mark = "fanotify ino:99032a sdev:3d mflags:0 mask:2 ignored_mask:0 fhandle-bytes:8";
        assert_eq!(parse(mark), Some((0x3d, 0x99_032a)));
        assert_eq!(parse("fanotify flags:200 event-flags:8000"), None);
        assert_eq!(parse("pos:\t0"), None);
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), "").unwrap();
        let id = |path: &str| {
            let metadata = fs::metadata(root.path().join(path)).unwrap();
            (kernel_device(metadata.dev()), metadata.ino())
        };
        let wanted = BTreeSet::from([id("a/b/file"), id("a")]);
        let (found, nameless) = find(root.path(), wanted).unwrap();
        assert_eq!(found.deepest_first(), ["/a/b/file", "/a"]);
        assert_eq!(found.of(id("a")), Some("/a"));
        assert_eq!(nameless, 0);
        let gone = BTreeSet::from([(id("a").0, u64::MAX)]);
        assert_eq!(find(root.path(), gone).unwrap(), (Paths::default(), 1));
        let link = root.path().join("link");
        std::os::unix::fs::symlink("a", &link).unwrap();
        let number = fs::symlink_metadata(&link).unwrap().ino();
        let itself = BTreeSet::from([(id("a").0, number)]);
        assert_eq!(find(root.path(), itself).unwrap(), (Paths::default(), 1));
        assert!(find(Path::new("/nonexistent"), BTreeSet::new()).is_ok());
    }
}
