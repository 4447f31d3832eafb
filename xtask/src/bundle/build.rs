//! Making the bundle out of Debian packages.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::manifest::{self, Manifest, Package};
use super::recipe::{self, Program};
use crate::apt::{self, Kind, Suite};
use crate::run;

/// Source of the launcher, compiled when the bundle is built.
const LAUNCHER: &str = include_str!("../../launcher/main.rs");

/// Packages unpacked side by side, and which package brought which file.
struct Unpacked {
    root: PathBuf,
    owners: BTreeMap<PathBuf, Package>,
}

/// Builds a bundle in the empty folder `out`, with downloads and work files below `cache`.
pub(crate) fn build(out: &Path, cache: &Path) -> Result<Manifest> {
    let mirror = apt::mirror()?;
    let work = cache.join("work");
    reset(&work)?;
    let suite = criu_suite(cache, &mirror)?;
    let own = unpack(
        &suite,
        &suite.download(&recipe::PACKAGES)?,
        &work.join("criu"),
    )?;
    let suite = runc_suite(cache, &mirror)?;
    let packages = suite.download(&["runc", recipe::RUNC_LIBRARY])?;
    let runc = unpack(&suite, &packages, &work.join("runc"))?;

    let mut taken = BTreeMap::new();
    assemble(out, &own, &runc, &mut taken)?;
    launchers(out, &work)?;
    fs::write(out.join("README"), README)?;
    fs::set_permissions(out.join("README"), fs::Permissions::from_mode(0o644))?;
    let manifest = Manifest {
        schema: manifest::SCHEMA,
        recipe: recipe::RECIPE,
        architecture: run::text(Command::new("dpkg").arg("--print-architecture"))?,
        criu: version(&out.join("bin/criu"))?,
        runc: version(&out.join("bin/runc"))?,
        packages: taken.into_values().collect(),
        files: manifest::files(out)?,
    };
    manifest.write(out)?;
    fs::remove_dir_all(&work)?;
    Ok(manifest)
}

/// Downloads the exact sources of a bundle's packages.
pub(crate) fn sources(manifest: &Manifest, cache: &Path, into: &Path) -> Result<()> {
    let mirror = apt::mirror()?;
    fs::create_dir_all(into)?;
    let mut by_suite: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in &manifest.packages {
        let list = by_suite.entry(&package.suite).or_default();
        let source = format!("{}={}", package.source, package.source_version);
        if !list.contains(&source) {
            list.push(source);
        }
    }
    let all: usize = by_suite.values().map(Vec::len).sum();
    let mut missing = Vec::new();
    for (suite, list) in by_suite {
        let suite = Suite::open(cache, suite, &mirror, Kind::Source)?;
        for source in list {
            if let Err(error) = suite.download_source(&source, into) {
                eprintln!("bundle: {error:#}");
                missing.push(source);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "{mirror} did not give {} of {all} source packages: {}. A mirror may have no sources, or newer \
         ones: configure another one in apt's sources, or take these versions from \
         https://snapshot.debian.org; those that it gave are in {}",
        missing.len(),
        missing.join(", "),
        into.display()
    )
}

fn criu_suite(cache: &Path, mirror: &str) -> Result<Suite> {
    let mut seen = Vec::new();
    for name in recipe::CRIU_SUITES {
        let suite = Suite::open(cache, name, mirror, Kind::Binary)?;
        match suite.candidate("criu")? {
            Some(version) if recipe::is_new_enough(&version) => return Ok(suite),
            Some(version) => seen.push(format!("{name} has {version}")),
            None => seen.push(format!("{name} has none")),
        }
    }
    bail!(
        "no suite offers CRIU {} or later: {}",
        recipe::CRIU_LOWEST,
        seen.join(", ")
    )
}

fn runc_suite(cache: &Path, mirror: &str) -> Result<Suite> {
    let mut last = None;
    for name in recipe::RUNC_SUITES {
        match Suite::open(cache, name, mirror, Kind::Binary) {
            Ok(suite) if suite.candidate("runc")?.is_some() => return Ok(suite),
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no package")))
        .with_context(|| format!("no suite of {:?} offers runc", recipe::RUNC_SUITES))
}

fn unpack(suite: &Suite, debs: &[PathBuf], root: &Path) -> Result<Unpacked> {
    let sums = manifest::sha256(debs)?;
    let mut unpacked = Unpacked {
        root: root.to_path_buf(),
        owners: BTreeMap::new(),
    };
    for (deb, sha256) in debs.iter().zip(sums) {
        let own = root.join("package");
        reset(&own)?;
        run::quiet(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&own))?;
        let package = describe(suite, deb, sha256, &own)?;
        let listing = run::text(Command::new("find").arg(&own).args(["!", "-type", "d"]))?;
        for file in listing.lines() {
            let path = Path::new(file).strip_prefix(&own)?.to_path_buf();
            unpacked.owners.insert(path, package.clone());
        }
        // tar merges folders and follows no link out of the place: packages from before and
        // after the merge of /lib into /usr/lib come together in one tree.
        run::quiet(
            Command::new("cp")
                .args(["-a", "-T"])
                .arg(&own)
                .arg(root.join("all")),
        )?;
    }
    fs::remove_dir_all(root.join("package"))?;
    unpacked.root = root.join("all");
    Ok(unpacked)
}

fn describe(suite: &Suite, deb: &Path, sha256: String, own: &Path) -> Result<Package> {
    let format = "${Package}|${Version}|${Architecture}|${source:Package}|${source:Version}";
    let fields = run::text(
        Command::new("dpkg-deb")
            .arg("--show")
            .arg(format!("--showformat={format}"))
            .arg(deb),
    )?;
    let [name, version, architecture, source, source_version] =
        fields.split('|').collect::<Vec<_>>()[..]
    else {
        bail!("dpkg-deb says of {}: {fields:?}", deb.display());
    };
    let copyright = own.join("usr/share/doc").join(name).join("copyright");
    Ok(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        suite: suite.name().to_owned(),
        architecture: architecture.to_owned(),
        licence: licences(&fs::read_to_string(copyright).unwrap_or_default()),
        sha256,
        source: source.to_owned(),
        source_version: source_version.to_owned(),
    })
}

/// The licences that a machine-readable Debian copyright file names.
fn licences(copyright: &str) -> String {
    let mut names: Vec<&str> = copyright
        .lines()
        .filter_map(|line| line.strip_prefix("License:"))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        "see the copyright file".to_owned()
    } else {
        names.join("; ")
    }
}

/// Copies programs, libraries, loader and copyright files; notes the packages they are from.
fn assemble(
    out: &Path,
    own: &Unpacked,
    runc: &Unpacked,
    taken: &mut BTreeMap<String, Package>,
) -> Result<()> {
    for dir in [
        "bin",
        "libexec",
        "lib/criu",
        "lib/xtables",
        "lib/runc",
        "copyright",
    ] {
        fs::create_dir_all(out.join(dir))?;
    }
    // CRIU looks here for plugins instead of in the host's folder, whose plugins may be of
    // another version; the file keeps the folder alive where only files are carried.
    fs::write(
        out.join("lib/criu/NONE"),
        "No plugins are part of this bundle.\n",
    )?;
    let loader = own.find("ld-linux-")?;
    own.take(&loader, &out.join("lib/ld.so"), taken, out)?;
    let libraries = loader
        .parent()
        .context("the loader lies in no folder")?
        .to_path_buf();
    let mut objects = Vec::new();
    for Program { name, path } in recipe::PROGRAMS {
        let path = Path::new(path);
        own.take(path, &out.join("libexec").join(name), taken, out)?;
        objects.push(path.to_path_buf());
    }
    for extension in own.below(&libraries.join("xtables")) {
        let name = extension.file_name().context("an extension has no name")?;
        own.take(&extension, &out.join("lib/xtables").join(name), taken, out)?;
        objects.push(extension);
    }
    for library in own.needed(&loader, &libraries, &objects)? {
        let name = library.file_name().context("a library has no name")?;
        own.take(&library, &out.join("lib").join(name), taken, out)?;
    }
    let program = recipe::RUNC;
    runc.take(
        Path::new(program.path),
        &out.join("libexec").join(program.name),
        taken,
        out,
    )?;
    let seccomp = runc.find("libseccomp.so.2")?;
    runc.take(&seccomp, &out.join("lib/runc/libseccomp.so.2"), taken, out)
}

impl Unpacked {
    /// The one library or loader whose file name begins like this.
    fn find(&self, prefix: &str) -> Result<PathBuf> {
        let matches = |path: &&PathBuf| {
            path.parent()
                .and_then(Path::parent)
                .is_some_and(|dir| dir.ends_with("lib"))
                && path
                    .file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(prefix))
        };
        let found = self.owners.keys().find(matches);
        found
            .cloned()
            .with_context(|| format!("no package brought a file {prefix}*"))
    }

    fn below(&self, dir: &Path) -> Vec<PathBuf> {
        let all = self.owners.keys();
        all.filter(|p| p.starts_with(dir) && p.extension().is_some_and(|e| e == "so"))
            .cloned()
            .collect()
    }

    /// The libraries that objects need, found by the bundle's own loader.
    fn needed(&self, loader: &Path, dir: &Path, objects: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let mut needed = Vec::new();
        for object in objects {
            let mut list = Command::new(self.root.join(loader));
            list.args(["--inhibit-cache", "--library-path"])
                .arg(self.root.join(dir));
            let listing = run::text(list.arg("--list").arg(self.root.join(object)))?;
            for line in listing.lines() {
                let Some((name, rest)) = line.trim().split_once(" => ") else {
                    continue;
                };
                let path = Path::new(rest.split(" (").next().unwrap_or(rest));
                if name.contains("/ld-linux") {
                    continue;
                }
                let path = path.strip_prefix(&self.root).with_context(|| {
                    format!(
                        "{} needs {name}, which no package brought",
                        object.display()
                    )
                })?;
                needed.push(path.to_path_buf());
            }
        }
        needed.sort();
        needed.dedup();
        Ok(needed)
    }

    /// Copies one file and, the first time, its package's copyright file.
    fn take(
        &self,
        path: &Path,
        to: &Path,
        taken: &mut BTreeMap<String, Package>,
        out: &Path,
    ) -> Result<()> {
        let package = self.owners.get(path);
        let package = package.with_context(|| format!("no package brought {}", path.display()))?;
        let from = fs::canonicalize(self.root.join(path))?;
        fs::copy(&from, to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
        if taken
            .insert(
                format!("{} {}", package.name, package.suite),
                package.clone(),
            )
            .is_some()
        {
            return Ok(());
        }
        let copyright = self
            .root
            .join("usr/share/doc")
            .join(&package.name)
            .join("copyright");
        let to = out.join("copyright").join(&package.name);
        fs::copy(&copyright, &to)
            .with_context(|| format!("package {} has no copyright file", package.name))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
        Ok(())
    }
}

/// Compiles the launcher and puts it under every program's name.
fn launchers(out: &Path, work: &Path) -> Result<()> {
    let source = work.join("launcher.rs");
    fs::write(&source, LAUNCHER)?;
    let binary = work.join("launcher");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args([
        "--edition=2024",
        "--crate-name=launcher",
        "-Copt-level=z",
        "-Cpanic=abort",
    ]);
    command.args(["-Clto=fat", "-Ccodegen-units=1", "-Cstrip=symbols"]);
    command.args([
        "-Ctarget-feature=+crt-static",
        "-Crelocation-model=static",
        "-o",
    ]);
    run::quiet(command.arg(&binary).arg(&source))
        .context("cannot compile the bundle's launcher: it needs rustc, cc and libc6-dev")?;
    // Hard links: each name is a path of its own, by which the launcher knows what to start, and
    // yet the bytes lie on the disk once. (A symbolic link would tell it its target's name.)
    let bin = out.join("bin");
    let first = bin.join(recipe::RUNC.name);
    fs::copy(&binary, &first)?;
    fs::set_permissions(&first, fs::Permissions::from_mode(0o755))?;
    for Program { name, .. } in recipe::PROGRAMS {
        fs::hard_link(&first, bin.join(name))?;
    }
    Ok(())
}

/// What a program of the bundle says its version is.
pub(crate) fn version(program: &Path) -> Result<String> {
    let said = run::text(Command::new(program).arg("--version"))?;
    let line = said.lines().next().unwrap_or_default();
    let version = line.rsplit(' ').next().unwrap_or_default().to_owned();
    ensure!(
        !version.is_empty(),
        "{} names no version",
        program.display()
    );
    Ok(version)
}

/// Empties a folder, making it if need be.
pub(crate) fn reset(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

/// Goes with every bundle, so that whoever gets one knows what to do.
const README: &str = "\
The checkpoint/restore bundle of UMS: programs from Debian, with their libraries and loader.
Put `bin` first in PATH, or call `bin/criu` and `bin/runc`; the folder may lie anywhere.

manifest.json names every package, its version, suite and licence, and each file's checksum.
copyright/ holds each package's copyright file.

CRIU is under GPL-2.0 (its library under LGPL-2.1), others under licences of that family. Whoever
passes this bundle on must pass on, or offer in writing, the matching sources: those are the source
packages named in manifest.json in exactly these versions, to be had from Debian's archive and
its snapshots; `cargo xtask bundle --sources` of the UMS source tree downloads them.
";

#[cfg(test)]
mod tests {
    use super::licences;

    #[test]
    fn reads_licences_of_a_copyright_file() {
        let text = "Files: *\nLicense: GPL-2\n text\nFiles: lib/*\nLicense: LGPL-2.1\n";
        assert_eq!(licences(text), "GPL-2; LGPL-2.1");
        assert_eq!(licences("free text"), "see the copyright file");
    }
}
