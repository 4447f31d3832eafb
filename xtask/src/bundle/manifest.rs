//! The bundle's manifest: what it is made of, and how to tell that it is whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The manifest's file name; it is written last, so a bundle with one is complete.
pub(crate) const FILE: &str = "manifest.json";

/// Version of the manifest's own format.
pub(crate) const SCHEMA: u32 = 1;

/// Contents of `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) schema: u32,
    /// Version of the recipe that made the bundle.
    pub(crate) recipe: u32,
    pub(crate) architecture: String,
    /// What `criu --version` says.
    pub(crate) criu: String,
    /// What `runc --version` says.
    pub(crate) runc: String,
    pub(crate) packages: Vec<Package>,
    pub(crate) files: Vec<File>,
}

/// One Debian package from which files were taken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) suite: String,
    pub(crate) architecture: String,
    /// Licences named by the package's copyright file, which lies in `copyright/NAME`.
    pub(crate) licence: String,
    /// Checksum of the package file.
    pub(crate) sha256: String,
    /// The source package to hand out, or offer, with the bundle.
    pub(crate) source: String,
    pub(crate) source_version: String,
}

/// One file of the bundle.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) sha256: String,
    pub(crate) mode: u32,
}

impl Manifest {
    /// Reads a bundle's manifest.
    pub(crate) fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join(FILE);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a bundle's manifest", path.display()))?;
        ensure!(
            manifest.schema == SCHEMA,
            "{} has schema {}, this program knows {SCHEMA}: rebuild with `cargo xtask bundle --rebuild`",
            path.display(),
            manifest.schema
        );
        Ok(manifest)
    }

    /// Writes the manifest into a finished bundle.
    pub(crate) fn write(&self, bundle: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(bundle.join(FILE), text).context("cannot write the bundle's manifest")
    }

    /// Checks every file of the bundle against the manifest, both ways.
    pub(crate) fn verify(&self, bundle: &Path) -> Result<()> {
        let found = files(bundle)?;
        let by_path = |files: &'_ [File]| -> BTreeMap<String, (String, u32)> {
            files
                .iter()
                .map(|f| (f.path.clone(), (f.sha256.clone(), f.mode)))
                .collect()
        };
        let (expected, found) = (by_path(&self.files), by_path(&found));
        let mut faults = Vec::new();
        for (path, value) in &expected {
            match found.get(path) {
                None => faults.push(format!("{path} is missing")),
                Some(other) if other != value => faults.push(format!("{path} was changed")),
                Some(_) => {}
            }
        }
        faults.extend(
            found
                .keys()
                .filter(|p| !expected.contains_key(*p))
                .map(|p| format!("{p} is foreign")),
        );
        if !faults.is_empty() {
            bail!("the bundle is damaged: {}", faults.join(", "));
        }
        Ok(())
    }
}

/// Lists a bundle's files with checksum and mode; the manifest itself is left out.
pub(crate) fn files(bundle: &Path) -> Result<Vec<File>> {
    let mut paths = Vec::new();
    walk(bundle, &mut paths)?;
    paths.sort();
    paths.retain(|path| path != &bundle.join(FILE));
    let sums = sha256(&paths)?;
    paths
        .iter()
        .zip(sums)
        .map(|(path, sha256)| {
            let mode = fs::symlink_metadata(path)?.permissions().mode() & 0o7777;
            let path = path
                .strip_prefix(bundle)?
                .to_str()
                .context("a path is not UTF-8")?
                .to_owned();
            Ok(File { path, sha256, mode })
        })
        .collect()
}

fn walk(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), into)?;
        } else {
            // Links are those of a bundle of the host's programs; their files' sums are checked.
            ensure!(
                kind.is_file() || kind.is_symlink(),
                "{} is neither file nor folder",
                entry.path().display()
            );
            into.push(entry.path());
        }
    }
    Ok(())
}

/// SHA-256 of files, by the one tool that every Debian has: saves a dependency here.
pub(crate) fn sha256(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut child = Command::new("xargs")
        .args(["-0", "sha256sum", "--zero", "--"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start sha256sum through xargs")?;
    let mut list = Vec::new();
    for path in paths {
        list.extend_from_slice(path.as_os_str().as_encoded_bytes());
        list.push(0);
    }
    let mut stdin = child.stdin.take().context("xargs has no standard input")?;
    // The list is written by a thread of its own: both pipes could fill up otherwise.
    let writer = std::thread::spawn(move || stdin.write_all(&list));
    let output = child.wait_with_output()?;
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("writing to xargs panicked"))??;
    ensure!(
        output.status.success(),
        "sha256sum failed ({})",
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    let sums: Vec<String> = text
        .split('\0')
        .filter(|l| !l.is_empty())
        .map(|l| l.chars().take(64).collect())
        .collect();
    ensure!(
        sums.len() == paths.len(),
        "sha256sum answered for {} of {}",
        sums.len(),
        paths.len()
    );
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_finds_changed_missing_and_foreign_files() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("ums-manifest-{}", std::process::id()));
        fs::create_dir_all(dir.join("lib"))?;
        fs::write(dir.join("lib/a"), "a")?;
        fs::write(dir.join("b"), "b")?;
        let manifest = Manifest {
            schema: SCHEMA,
            recipe: 1,
            architecture: "amd64".to_owned(),
            criu: String::new(),
            runc: String::new(),
            packages: Vec::new(),
            files: files(&dir)?,
        };
        manifest.write(&dir)?;
        assert_eq!(Manifest::read(&dir)?.files, manifest.files);
        manifest.verify(&dir)?;
        fs::write(dir.join("lib/a"), "x")?;
        fs::remove_file(dir.join("b"))?;
        fs::write(dir.join("c"), "c")?;
        let error = manifest
            .verify(&dir)
            .expect_err("the bundle is damaged")
            .to_string();
        fs::remove_dir_all(&dir)?;
        for part in ["lib/a was changed", "b is missing", "c is foreign"] {
            assert!(error.contains(part), "{error}");
        }
        Ok(())
    }
}
