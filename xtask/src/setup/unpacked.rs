//! Packages that are unpacked below cargo's target directory and not installed, because their
//! installation would do more than to bring programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::needs::Purpose;
use crate::apt::{self, Kind, Suite};
use crate::{paths, run};

/// What is unpacked, and why that is needed.
const PACKAGE: &str = "postgresql";
const WHY: &str =
    "is one of the services that migrate; installing it would make and start a cluster";

/// Where Debian has the programs of each version.
const VERSIONS: &str = "usr/lib/postgresql";

/// Unpacks what a purpose needs and neither the host nor an earlier run has. Whether it had to.
pub(super) fn ensure(purpose: Purpose) -> Result<bool> {
    let needed = matches!(purpose, Purpose::Test | Purpose::All);
    let place = place()?;
    if !needed || is_there(Path::new("/")) || is_there(&place) {
        return Ok(false);
    }
    eprintln!(
        "setup: unpacking {PACKAGE} into {}: it {WHY}",
        place.display()
    );
    eprintln!("       to undo: delete that directory");
    let cache = place.with_extension("cache");
    let suite = Suite::open(&cache, &apt::codename()?, &apt::mirror()?, Kind::Binary)?;
    let debs = suite.knowing_the_host()?.download(&[PACKAGE])?;
    let new = place.with_extension("new");
    remove(&new)?;
    for deb in debs {
        run::quiet(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&new))?;
    }
    remove(&place)?;
    fs::rename(&new, &place).with_context(|| format!("cannot make {}", place.display()))?;
    remove(&cache)?;
    anyhow::ensure!(
        is_there(&place),
        "{PACKAGE} was unpacked, and brought no server"
    );
    Ok(true)
}

/// Deletes what was unpacked.
pub(super) fn undo() -> Result<()> {
    remove(&place()?)
}

fn place() -> Result<PathBuf> {
    Ok(paths::target()?.join(format!("ums-{PACKAGE}")))
}

/// Whether there is a server and its client below `root`.
fn is_there(root: &Path) -> bool {
    let versions = fs::read_dir(root.join(VERSIONS));
    let mut directories = versions.into_iter().flatten().flatten();
    directories.any(|version| {
        let bin = version.path().join("bin");
        ["initdb", "postgres", "psql"]
            .iter()
            .all(|name| bin.join(name).is_file())
    })
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_counts_only_with_all_of_its_programs() {
        let root = std::env::temp_dir().join(format!("ums-unpacked-{}", std::process::id()));
        let bin = root.join(VERSIONS).join("15/bin");
        fs::create_dir_all(&bin).expect("a directory");
        for (name, expected) in [("psql", false), ("initdb", false), ("postgres", true)] {
            fs::write(bin.join(name), "").expect("a file");
            assert_eq!(is_there(&root), expected, "with {name}");
        }
        remove(&root).expect("it is removed");
        assert!(!is_there(&root));
        remove(&root).expect("once more does no harm");
    }
}
