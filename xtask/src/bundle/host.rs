//! A bundle of links to programs that the host has anyway.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::build;
use super::manifest::{self, Manifest};
use super::recipe;
use crate::run;

/// Links every program of the recipe to the host's in the empty folder `out`.
pub(crate) fn build(out: &Path) -> Result<Manifest> {
    let bin = out.join("bin");
    fs::create_dir_all(&bin)?;
    let mut missing = Vec::new();
    for program in recipe::PROGRAMS.iter().chain([&recipe::RUNC]) {
        match find(program.name) {
            Some(path) => symlink(path, bin.join(program.name))?,
            None => missing.push(program.name),
        }
    }
    ensure!(
        missing.is_empty(),
        "this host lacks {}: install them, or build the bundle without --use-host-criu",
        missing.join(", ")
    );
    let manifest = Manifest {
        schema: manifest::SCHEMA,
        recipe: recipe::RECIPE,
        architecture: run::text(Command::new("dpkg").arg("--print-architecture"))?,
        criu: build::version(&bin.join("criu"))?,
        runc: build::version(&bin.join("runc"))?,
        packages: Vec::new(),
        files: manifest::files(out)?,
    };
    manifest
        .write(out)
        .context("cannot finish the bundle of links")?;
    Ok(manifest)
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}
