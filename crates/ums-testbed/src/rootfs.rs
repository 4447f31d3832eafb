//! Root filesystems for services: given programs of the host, and the libraries they need.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tools::text;

/// Directories that programs and container runtimes expect.
const DIRECTORIES: [&str; 9] = [
    "bin", "data", "dev", "etc", "proc", "run", "sys", "tmp", "var",
];

/// Makes a root filesystem at `directory` with these programs in `/bin` and their libraries
/// where the host has them.
pub fn minimal(directory: &Path, programs: &[&Path]) -> Result<()> {
    for name in DIRECTORIES {
        std::fs::create_dir_all(directory.join(name))
            .with_context(|| format!("cannot create {name} in {}", directory.display()))?;
    }
    std::fs::set_permissions(directory.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    std::fs::write(
        directory.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/false\n",
    )?;
    std::fs::write(directory.join("etc/group"), "root:x:0:\n")?;
    std::fs::write(
        directory.join("etc/nsswitch.conf"),
        "passwd: files\nhosts: files\n",
    )?;
    std::fs::write(directory.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    for program in programs {
        let name = program
            .file_name()
            .with_context(|| format!("{} is no file", program.display()))?;
        copy(program, &directory.join("bin").join(name))?;
        with_libraries(directory, program, Path::new("/"))?;
    }
    Ok(())
}

/// Adds the libraries that a program or library needs, at the places where they are below
/// `unpacked`, or where the host has them.
pub(crate) fn with_libraries(directory: &Path, program: &Path, unpacked: &Path) -> Result<()> {
    for library in libraries(program, unpacked)? {
        let inside = library.strip_prefix(unpacked);
        let inside = inside.or_else(|_| library.strip_prefix("/"));
        copy(&library, &directory.join(inside.unwrap_or(&library)))?;
    }
    Ok(())
}

/// The search path for libraries of packages that are unpacked there; x86-64 is what there is.
pub(crate) fn library_path(unpacked: &Path) -> String {
    let places = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    places
        .map(|place| unpacked.join(place).display().to_string())
        .join(":")
}

/// The program of that name in PATH.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons lie where an ordinary user's PATH does not lead.
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(name));
    found
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("`{name}` is not installed: run `cargo xtask setup`"))
}

/// The shared libraries of a program and its dynamic loader.
fn libraries(program: &Path, unpacked: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    if unpacked != Path::new("/") {
        ldd.env("LD_LIBRARY_PATH", library_path(unpacked));
    }
    let list = text(&mut ldd)
        .with_context(|| format!("cannot find the libraries of {}", program.display()))?;
    ensure!(
        !list.contains("not found"),
        "{} lacks a library:\n{list}",
        program.display()
    );
    let paths = list
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The names in a directory.
pub(crate) fn files(directory: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// Copies a directory with all that is in it, save what has one of these names; what a link leads to
/// takes its place.
pub(crate) fn copy_all(from: &Path, to: &Path, unneeded: &[&str]) -> Result<()> {
    for name in files(from)? {
        let source = from.join(&name);
        if unneeded.contains(&name.as_str()) || !source.exists() {
            continue;
        }
        if source.is_dir() {
            copy_all(&source, &to.join(name), unneeded)?;
        } else {
            copy(&source, &to.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_loader() {
        let shell = program("sh").expect("every machine has a shell");
        let libraries = libraries(&shell, Path::new("/")).expect("its libraries");
        assert!(
            libraries
                .iter()
                .any(|path| path.to_string_lossy().contains("ld-linux"))
        );
    }
}
