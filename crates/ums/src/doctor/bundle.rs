//! The checkpoint/restore bundle: whole, unchanged, and able to run here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use ums_core::preflight::CRIU_MIN;

use super::Check;
use crate::config::Config;

/// The manifest's file name.
const MANIFEST: &str = "manifest.json";

/// The manifest's format that this program knows.
const SCHEMA: u32 = 1;

/// The largest manifest that is read, bytes: some hundred files take well under a tenth of it.
const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The most faults that are told; of the rest the number is told.
const FAULTS_MAX: usize = 5;

/// Programs that have to be there.
const PROGRAMS: [&str; 5] = ["criu", "runc", "nft", "ip", "tar"];

/// The programs of ours that have to be beside each other.
const OUR_PROGRAMS: [&str; 2] = ["ums-agent", "ums-frontman"];

/// What of the manifest is of interest here.
#[derive(Debug, Deserialize)]
struct Manifest {
    schema: u32,
    files: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    path: PathBuf,
    sha256: String,
    mode: u32,
}

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let whole = verify(&config.bundle);
    let usable = whole.verdict == super::Verdict::Ok;
    let mut checks = vec![whole];
    // A program that is not what the manifest says is not run.
    if usable {
        checks.push(criu(&config.bundle));
    }
    checks.push(programs(config));
    checks
}

fn verify(bundle: &Path) -> Check {
    const NAME: &str = "bundle";
    let remedy = "build it with `cargo xtask bundle`, and name it with `bundle` in the \
                  configuration, --bundle or UMS_BUNDLE";
    match faults(bundle) {
        Err(reason) => Check::fail(NAME, reason, remedy),
        Ok((count, faults)) if faults.is_empty() => Check::ok(
            NAME,
            format!("{}, {count} files verified", bundle.display()),
        ),
        Ok((_, faults)) => {
            let more = faults.len().saturating_sub(FAULTS_MAX);
            let mut told = faults
                .into_iter()
                .take(FAULTS_MAX)
                .collect::<Vec<_>>()
                .join(", ");
            if more > 0 {
                told.push_str(&format!(" and {more} more"));
            }
            Check::fail(
                NAME,
                format!("{} is damaged: {told}", bundle.display()),
                remedy,
            )
        }
    }
}

/// The number of files, and what is wrong with them.
fn faults(bundle: &Path) -> Result<(usize, Vec<String>), String> {
    let manifest = read_manifest(&bundle.join(MANIFEST))?;
    let mut faults = Vec::new();
    let mut listed = BTreeSet::new();
    for file in &manifest.files {
        if let Err(fault) = check_file(bundle, file) {
            faults.push(format!("{} {fault}", file.path.display()));
        }
        listed.insert(file.path.as_path());
    }
    for program in PROGRAMS {
        if !listed.contains(Path::new("bin").join(program).as_path()) {
            faults.push(format!("bin/{program} is not part of it"));
        }
    }
    Ok((manifest.files.len(), faults))
}

fn read_manifest(path: &Path) -> Result<Manifest, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let size = fs::metadata(path).map_err(|error| told(&error))?.len();
    if size > MANIFEST_BYTES_MAX {
        return Err(told(&"it is too large for a manifest"));
    }
    let text = fs::read(path).map_err(|error| told(&error))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| told(&error))?;
    match manifest.schema {
        SCHEMA => Ok(manifest),
        other => Err(told(&format!(
            "it has schema {other}, and this program knows {SCHEMA}"
        ))),
    }
}

fn check_file(bundle: &Path, listed: &Listed) -> Result<(), &'static str> {
    let inside = listed
        .path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if !inside {
        return Err("lies outside");
    }
    let path = bundle.join(&listed.path);
    let mode = fs::symlink_metadata(&path)
        .map_err(|_| "is missing")?
        .permissions()
        .mode();
    if mode & 0o7777 != listed.mode {
        return Err("has another mode");
    }
    let mut hash = Sha256::new();
    let file = File::open(&path).map_err(|_| "can't be read")?;
    io::copy(&mut BufReader::new(file), &mut hash).map_err(|_| "can't be read")?;
    let digest: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if digest == listed.sha256 {
        Ok(())
    } else {
        Err("was changed")
    }
}

/// Runs it: a bundle for another architecture, or another kernel, is found out by that.
fn criu(bundle: &Path) -> Check {
    const NAME: &str = "criu";
    let (major, minor, sublevel) = CRIU_MIN;
    let remedy = format!("use a bundle with CRIU {major}.{minor}.{sublevel} or newer");
    let mut command = Command::new(bundle.join("bin/criu"));
    match command.arg("--version").stdin(Stdio::null()).output() {
        Err(error) => Check::fail(NAME, format!("it can't be started: {error}"), remedy),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            match version(&said) {
                Some(found) if found >= CRIU_MIN => {
                    Check::ok(NAME, format!("{}.{}.{}", found.0, found.1, found.2))
                }
                Some((one, two, three)) => {
                    Check::fail(NAME, format!("{one}.{two}.{three} is too old"), remedy)
                }
                None => Check::fail(NAME, format!("it ended with {}", output.status), remedy),
            }
        }
    }
}

/// The version in `Version: 4.2.1`; a missing part is 0.
fn version(said: &str) -> Option<(u32, u32, u32)> {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))?;
    let mut numbers = line.trim().split('.').map(|part| part.parse().ok());
    let major = numbers.next()??;
    let minor = numbers.next().unwrap_or(Some(0))?;
    Some((major, minor, numbers.next().unwrap_or(Some(0))?))
}

fn programs(config: &Config) -> Check {
    const NAME: &str = "programs";
    let lacking: Vec<&str> = OUR_PROGRAMS
        .into_iter()
        .filter(|program| {
            let found = fs::metadata(config.bin_dir.join(program));
            !found.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
        .collect();
    let place = config.bin_dir.display();
    match lacking.is_empty() {
        true => Check::ok(NAME, format!("{} in {place}", OUR_PROGRAMS.join(" and "))),
        false => Check::fail(
            NAME,
            format!("{} not in {place}", lacking.join(" and ")),
            "put them beside `ums`, or name their directory with `bin_dir`, --bin-dir or \
             UMS_BIN_DIR",
        ),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("Version: 4.2.1\n"), Some((4, 2, 1)));
        assert_eq!(
            version("Warn\nVersion: 4.2\nGitID: v4.2\n"),
            Some((4, 2, 0))
        );
        assert_eq!(version("Version: x\n"), None);
        assert_eq!(version(""), None);
    }

    /// A bundle of files that say their own name.
    fn bundle() -> tempfile::TempDir {
        let dir = tempfile::TempDir::new().expect("a directory");
        fs::create_dir(dir.path().join("bin")).expect("made");
        let mut files = Vec::new();
        for program in PROGRAMS {
            let path = format!("bin/{program}");
            fs::write(dir.path().join(&path), program).expect("written");
            let mode = fs::metadata(dir.path().join(&path))
                .expect("there")
                .permissions()
                .mode();
            let sha256: String = Sha256::digest(program)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            files.push(serde_json::json!({
                "path": path, "sha256": sha256, "mode": mode & 0o7777
            }));
        }
        let manifest = serde_json::json!({ "schema": 1, "criu": "4.2.1", "files": files });
        fs::write(dir.path().join(MANIFEST), manifest.to_string()).expect("written");
        dir
    }

    #[test]
    fn a_whole_bundle_passes_and_each_fault_is_named() {
        let dir = bundle();
        assert_eq!(verify(dir.path()).verdict, super::super::Verdict::Ok);
        fs::write(dir.path().join("bin/criu"), "another").expect("written");
        fs::remove_file(dir.path().join("bin/ip")).expect("removed");
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(dir.path().join("bin/nft"), mode).expect("changed");
        let check = verify(dir.path());
        for fault in [
            "bin/criu was changed",
            "bin/ip is missing",
            "bin/nft has another mode",
        ] {
            assert!(check.detail.contains(fault), "{}", check.detail);
        }
    }

    #[test]
    fn a_manifest_that_is_absent_foreign_or_malformed_is_told() {
        let dir = tempfile::TempDir::new().expect("a directory");
        assert!(verify(dir.path()).detail.contains("No such file"));
        let write = |text: &str| fs::write(dir.path().join(MANIFEST), text).expect("written");
        write(r#"{"schema":9,"files":[]}"#);
        assert!(verify(dir.path()).detail.contains("schema 9"));
        write("{");
        assert!(verify(dir.path()).detail.contains("EOF"));
        write(r#"{"schema":1,"files":[{"path":"../x","sha256":"","mode":0}]}"#);
        assert!(verify(dir.path()).detail.contains("../x lies outside"));
    }
}
