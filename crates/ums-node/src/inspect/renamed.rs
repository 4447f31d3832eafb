//! Files whose names are others' by now: CRIU opens them at the destination under another name, which it then
//! removes (`criu/files-reg.c`, `open_path`).

use std::fs;
use std::path::Path;

use ums_core::facts::{Loss, LossKind};

use super::descriptor;
use super::process::Process;
use super::{loss, parse, place, proc_file, proc_path};

/// What the kernel says after the path of a file that has lost its name.
const DELETED: &str = " (deleted)";

/// The files of a process that are so.
pub(super) fn losses(process: &Process) -> Vec<Loss> {
    let pid = process.pid;
    let link = |name: &str| fs::read_link(proc_path(pid, name)).ok();
    let links = descriptor::numbers(pid).into_iter();
    let links = links.filter_map(|number| link(&format!("fd/{number}")));
    let links = links.chain(link("exe"));
    let mut lost: Vec<String> = links
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    let maps = proc_file(pid, "maps").unwrap_or_default();
    lost.extend(parse::mappings(&maps).map(|mapping| mapping.name.to_owned()));
    let root = proc_path(pid, "root");
    lost.retain(|link| is_taken(&root, link));
    lost.sort();
    lost.dedup();
    let others = match lost.len() {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let told = lost.first().map(|path| {
        let what = format!("{path}{others}: there is another file of that name");
        loss(LossKind::FilePath, process.inner, what)
    });
    told.into_iter().collect()
}

/// Whether a link is to a file that has lost its name, which is another's by now. What has memory alone never had
/// the name that the kernel tells.
fn is_taken(root: &Path, link: &str) -> bool {
    if place::has_memory_alone(link) {
        return false;
    }
    let path = link
        .strip_suffix(DELETED)
        .and_then(|path| path.strip_prefix('/'));
    path.is_some_and(|path| root.join(path).symlink_metadata().is_ok())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn names_that_are_taken() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("log"), "").unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/zero"), "").unwrap();
        let is_taken = |link| is_taken(root.path(), link);
        assert!(is_taken("/log (deleted)"));
        for other in [
            "/log",
            "/gone (deleted)",
            "/memfd:log (deleted)",
            "/dev/zero (deleted)",
            "socket:[7]",
            "log (deleted)",
        ] {
            assert!(!is_taken(other), "{other}");
        }
    }
}
