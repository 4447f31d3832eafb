//! Known vulnerabilities, as far as a copy of the RustSec advisory database is at hand.
//!
//! Nothing is fetched: a check that depends on a server gives another answer tomorrow.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use semver::{Version, VersionReq};

use super::policy::{self, Package};

/// Names a copy of the database; otherwise those of cargo-audit and cargo-deny are looked for.
const VARIABLE: &str = "UMS_ADVISORY_DB";

/// Checks all dependencies, or says that it could not.
pub(crate) fn check() -> Result<()> {
    let Some(database) = database()? else {
        eprintln!(
            "advisories: NOT CHECKED: no copy of the RustSec advisory database on this machine \
             ({VARIABLE}, or advisory-db or advisory-dbs in cargo's home)"
        );
        return Ok(());
    };
    let mut found = Vec::new();
    let packages = policy::dependencies()?;
    for package in &packages {
        let dir = database.join("crates").join(&package.name);
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry?.path();
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let hit = affects(&text, package)
                .with_context(|| format!("cannot understand {}", path.display()))?;
            if hit {
                let id = path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                found.push(format!("{} {}: {id}", package.name, package.version));
            }
        }
    }
    if !found.is_empty() {
        bail!(
            "dependencies with known vulnerabilities:\n  {}",
            found.join("\n  ")
        );
    }
    eprintln!(
        "advisories: none for {} dependencies in {}",
        packages.len(),
        database.display()
    );
    Ok(())
}

fn database() -> Result<Option<PathBuf>> {
    if let Some(dir) = env::var_os(VARIABLE).map(PathBuf::from) {
        if !dir.join("crates").is_dir() {
            bail!(
                "{VARIABLE} is {}, which holds no `crates` folder",
                dir.display()
            );
        }
        return Ok(Some(dir));
    }
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let Some(home) = home else { return Ok(None) };
    // cargo-deny keeps several databases side by side.
    let several = fs::read_dir(home.join("advisory-dbs"))
        .into_iter()
        .flatten()
        .flatten();
    let mut places: Vec<PathBuf> = several.map(|entry| entry.path()).collect();
    places.push(home.join("advisory-db"));
    Ok(places.into_iter().find(|dir| dir.join("crates").is_dir()))
}

/// Whether an advisory (Markdown behind a TOML block) is about this version of this crate.
fn affects(advisory: &str, package: &Package) -> Result<bool> {
    let head = advisory
        .split_once("```toml")
        .map_or(advisory, |(_, rest)| rest);
    let head = head.split_once("\n```").map_or(head, |(head, _)| head);
    if has_key(head, "withdrawn") || has_key(head, "informational") {
        return Ok(false);
    }
    let version = Version::parse(&package.version)?;
    for key in ["patched", "unaffected"] {
        for range in list(head, key) {
            if VersionReq::parse(&range)?.matches(&version) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn has_key(head: &str, key: &str) -> bool {
    value(head, key).is_some()
}

/// The text behind `key =` at the beginning of a line, to the end of the block.
fn value<'a>(head: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = head;
    loop {
        let line = rest.trim_start();
        if let Some(value) = line.strip_prefix(key).map(str::trim_start)
            && let Some(value) = value.strip_prefix('=')
        {
            return Some(value);
        }
        rest = &line[line.find('\n')?..];
    }
}

/// The strings of the array behind a key; it may span lines.
fn list(head: &str, key: &str) -> Vec<String> {
    let array = value(head, key).and_then(|value| value.trim_start().strip_prefix('['));
    let array = array
        .and_then(|rest| rest.split_once(']'))
        .map_or("", |(array, _)| array);
    array
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADVISORY: &str = "```toml\n[advisory]\nid = \"RUSTSEC-2020-0001\"\npackage = \"a\"\n\
        \n[versions]\npatched = [\n  \">= 1.2.3\",\n  \"^0.9.5\",\n]\nunaffected = [\"< 0.5.0\"]\n\
        ```\n\n# Title\npatched = nothing\n";

    fn affects_version(advisory: &str, version: &str) -> bool {
        let json = format!(r#"{{"id":"","name":"a","version":"{version}","source":null}}"#);
        let package: Package = serde_json::from_str(&json).expect("a package");
        affects(advisory, &package).expect("an advisory")
    }

    #[test]
    fn patched_and_unaffected_versions_are_not_hit() {
        for (version, hit) in [
            ("1.2.2", true),
            ("1.2.3", false),
            ("0.9.4", true),
            ("0.9.6", false),
            ("0.4.9", false),
        ] {
            assert_eq!(affects_version(ADVISORY, version), hit, "{version}");
        }
    }

    #[test]
    fn without_a_patched_version_all_are_hit_unless_withdrawn() {
        let open = "```toml\n[advisory]\n[versions]\npatched = []\n```\n";
        assert!(affects_version(open, "1.0.0"));
        let withdrawn = open.replace("[versions]", "withdrawn = \"2021-01-01\"\n[versions]");
        assert!(!affects_version(&withdrawn, "1.0.0"));
    }
}
