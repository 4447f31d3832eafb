//! Packages that are unpacked below cargo's target directory and not installed, because their
//! installation would do more than to bring programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::needs::Purpose;
use crate::apt::{self, Kind, Suite};
use crate::{paths, run};

/// A package that brings a service.
struct Package {
    /// Its name, and the one of the directory.
    name: &'static str,
    is_there: fn(&Path) -> bool,
}

/// Why they are needed, and not installed.
const WHY: &str = "is one of the services that migrate; its installation would make and start one";

const PACKAGES: [Package; 4] = [
    Package {
        name: "postgresql",
        is_there: is_postgresql,
    },
    Package {
        name: "nginx",
        is_there: |root| root.join("usr/sbin/nginx").is_file(),
    },
    Package {
        name: "memcached",
        is_there: |root| root.join("usr/bin/memcached").is_file(),
    },
    Package {
        name: "supervisor",
        is_there: |root| {
            let modules = root.join("usr/lib/python3/dist-packages");
            modules.join("supervisor/supervisord.py").is_file()
        },
    },
];

/// Where Debian has PostgreSQL's programs of each version.
const VERSIONS: &str = "usr/lib/postgresql";

/// Unpacks what a purpose needs and neither the host nor an earlier run has. Whether it had to.
pub(super) fn ensure(purpose: Purpose) -> Result<bool> {
    if !matches!(purpose, Purpose::Test | Purpose::Long | Purpose::All) {
        return Ok(false);
    }
    let mut unpacked = false;
    for package in &PACKAGES {
        unpacked |= package.ensure()?;
    }
    remove(&cache()?)?;
    Ok(unpacked)
}

impl Package {
    fn place(&self) -> Result<PathBuf> {
        Ok(paths::target()?.join(format!("ums-{}", self.name)))
    }

    fn ensure(&self) -> Result<bool> {
        let (name, place) = (self.name, self.place()?);
        if (self.is_there)(Path::new("/")) || (self.is_there)(&place) {
            return Ok(false);
        }
        eprintln!("setup: unpacking {name} into {}: it {WHY}", place.display());
        eprintln!("       to undo: delete that directory");
        let (release, mirror) = (apt::codename()?, apt::mirror()?);
        let suite = Suite::open(&cache()?, &release, &mirror, Kind::Binary)?;
        let debs = suite.knowing_the_host()?.download(&[self.name])?;
        let new = place.with_extension("new");
        remove(&new)?;
        for deb in debs {
            run::quiet(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&new))?;
        }
        remove(&place)?;
        fs::rename(&new, &place).with_context(|| format!("cannot make {}", place.display()))?;
        anyhow::ensure!(
            (self.is_there)(&place),
            "{name} was unpacked, and brought no server"
        );
        Ok(true)
    }
}

fn cache() -> Result<PathBuf> {
    Ok(paths::target()?.join("ums-unpacked.cache"))
}

/// Deletes what was unpacked.
pub(super) fn undo() -> Result<()> {
    PACKAGES
        .iter()
        .try_for_each(|package| remove(&package.place()?))
}

/// Whether there is a server and its client below `root`.
fn is_postgresql(root: &Path) -> bool {
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
            assert_eq!(is_postgresql(&root), expected, "with {name}");
        }
        remove(&root).expect("it is removed");
        assert!(!is_postgresql(&root));
        remove(&root).expect("once more does no harm");
    }
}
