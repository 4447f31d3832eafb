//! The dependency policy: licences, sources, banned crates, duplicates (`policy.json`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::licence;
use crate::{paths, run};

/// The fuzzers: a workspace of their own, with a lock file of its own.
pub(crate) const FUZZERS: &str = "fuzz/Cargo.toml";

/// Contents of `policy.json`. Every entry carries its reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    /// Licences a dependency may have.
    licences: BTreeMap<String, String>,
    /// Registries a dependency may come from.
    sources: BTreeMap<String, String>,
    /// Crates that must not be linked in.
    banned: BTreeMap<String, String>,
    /// Crates that may be there in several incompatible versions.
    duplicates: BTreeMap<String, String>,
}

/// The part of cargo's metadata that is read here.
#[derive(Deserialize)]
pub(crate) struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

/// One crate that is built for this host.
#[derive(Deserialize, Clone)]
pub(crate) struct Package {
    id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    license: Option<String>,
    /// None for the members of the workspace.
    pub(crate) source: Option<String>,
}

/// Checks all dependencies against the policy.
pub(crate) fn check() -> Result<()> {
    let path = paths::workspace().join("policy.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let policy: Policy = serde_json::from_slice(&text)
        .with_context(|| format!("{} is malformed", path.display()))?;
    let packages = dependencies()?;
    let faults = policy.faults(&packages);
    for line in policy.duplicates(&packages) {
        eprintln!("policy: note: {line}");
    }
    if !faults.is_empty() {
        bail!(
            "{} faults against policy.json:\n  {}",
            faults.len(),
            faults.join("\n  ")
        );
    }
    eprintln!(
        "policy: {} dependencies keep to policy.json",
        packages.len()
    );
    Ok(())
}

/// The dependencies that cargo resolves for this host: ours, and those that the fuzzers add.
pub(crate) fn dependencies() -> Result<Vec<Package>> {
    let mut packages = dependencies_of("Cargo.toml")?;
    let known: BTreeSet<String> = packages.iter().map(|p| p.id.clone()).collect();
    let added = dependencies_of(FUZZERS).context("the lock file of the fuzzers")?;
    packages.extend(added.into_iter().filter(|p| !known.contains(&p.id)));
    Ok(packages)
}

fn dependencies_of(manifest: &str) -> Result<Vec<Package>> {
    let host = run::text(Command::new("rustc").arg("-vV"))?;
    let triple = host
        .lines()
        .find_map(|l| l.strip_prefix("host: "))
        .context("no host triple")?;
    let mut command = run::cargo();
    command.args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        triple,
        "--manifest-path",
        manifest,
    ]);
    let metadata: Metadata = serde_json::from_slice(&run::quiet(&mut command)?.stdout)
        .context("cargo metadata printed something else")?;
    let built: BTreeSet<&str> = metadata
        .resolve
        .nodes
        .iter()
        .map(|n| n.id.as_str())
        .collect();
    let foreign = |package: &&Package| package.source.is_some() && built.contains(&*package.id);
    Ok(metadata.packages.iter().filter(foreign).cloned().collect())
}

impl Policy {
    fn faults(&self, packages: &[Package]) -> Vec<String> {
        let allowed: BTreeSet<String> = self.licences.keys().cloned().collect();
        let mut faults = Vec::new();
        for package in packages {
            let name = format!("{} {}", package.name, package.version);
            match package
                .license
                .as_deref()
                .map(|text| licence::is_met(text, &allowed))
            {
                Some(Ok(true)) => {}
                Some(Ok(false)) => faults.push(format!(
                    "{name}: licence {} is not allowed",
                    package.license.as_deref().unwrap_or_default()
                )),
                Some(Err(error)) => faults.push(format!("{name}: {error}")),
                None => faults.push(format!("{name}: names no licence")),
            }
            let source = package.source.as_deref().unwrap_or_default();
            if !self.sources.contains_key(source) {
                faults.push(format!("{name}: source {source} is not allowed"));
            }
            if let Some(reason) = self.banned.get(&package.name) {
                faults.push(format!("{name}: banned: {reason}"));
            }
        }
        faults
    }

    /// Crates in several incompatible versions that the policy does not explain.
    fn duplicates(&self, packages: &[Package]) -> Vec<String> {
        let mut versions: BTreeMap<&str, BTreeMap<String, &str>> = BTreeMap::new();
        for package in packages {
            versions
                .entry(&package.name)
                .or_default()
                .insert(compatibility(&package.version), &package.version);
        }
        versions
            .into_iter()
            .filter(|(name, list)| list.len() > 1 && !self.duplicates.contains_key(*name))
            .map(|(name, list)| {
                let list: Vec<&str> = list.into_values().collect();
                format!(
                    "{name} is there in incompatible versions: {}",
                    list.join(", ")
                )
            })
            .collect()
    }
}

/// The part of a version that must agree for cargo to unify two of them.
fn compatibility(version: &str) -> String {
    let parts: Vec<&str> = version.split(['.', '-', '+']).collect();
    match parts[..] {
        ["0", "0", patch, ..] => format!("0.0.{patch}"),
        ["0", minor, ..] => format!("0.{minor}"),
        [major, ..] => major.to_owned(),
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, license: Option<&str>, source: &str) -> Package {
        Package {
            id: String::new(),
            name: name.to_owned(),
            version: version.to_owned(),
            license: license.map(str::to_owned),
            source: Some(source.to_owned()),
        }
    }

    fn policy() -> Policy {
        let one = |name: &str| BTreeMap::from([(name.to_owned(), "reason".to_owned())]);
        Policy {
            licences: one("MIT"),
            sources: one("registry"),
            banned: one("openssl"),
            duplicates: one("known"),
        }
    }

    #[test]
    fn every_kind_of_fault_is_found() {
        assert!(
            policy()
                .faults(&[package("a", "1.0.0", Some("MIT"), "registry")])
                .is_empty()
        );
        let faults = policy().faults(&[
            package("b", "1.0.0", Some("GPL-3.0"), "registry"),
            package("c", "1.0.0", None, "registry"),
            package("d", "1.0.0", Some("MIT"), "git"),
            package("openssl", "1.0.0", Some("MIT"), "registry"),
            package("e", "1.0.0", Some("MIT OR"), "registry"),
        ]);
        let expected = [
            "GPL-3.0 is not",
            "no licence",
            "source git",
            "banned: reason",
            "licence",
        ];
        assert_eq!(faults.len(), expected.len());
        for (fault, part) in faults.iter().zip(expected) {
            assert!(fault.contains(part), "{fault}");
        }
    }

    #[test]
    fn only_incompatible_unexplained_versions_are_noted() {
        let list: Vec<Package> = [
            ("a", "1.0.0"),
            ("a", "1.2.0"),
            ("b", "0.1.0"),
            ("b", "0.2.0"),
            ("known", "1.0.0"),
            ("known", "2.0.0"),
        ]
        .map(|(name, version)| package(name, version, None, ""))
        .into();
        let notes = policy().duplicates(&list);
        assert_eq!(notes, ["b is there in incompatible versions: 0.1.0, 0.2.0"]);
    }

    #[test]
    fn the_projects_own_policy_can_be_read() -> Result<()> {
        let text = fs::read(paths::workspace().join("policy.json"))?;
        serde_json::from_slice::<Policy>(&text)?;
        Ok(())
    }
}
