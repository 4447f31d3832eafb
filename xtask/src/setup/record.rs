//! What setup changed on this machine, so that exactly that can be undone.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::paths;

/// Contents of the record, which lies in cargo's target directory.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Packages that setup installed, with those that came along as dependencies.
    pub(crate) packages: Vec<String>,
    /// Kernel settings that setup changed.
    pub(crate) settings: Vec<Changed>,
}

/// One changed kernel setting.
#[derive(Serialize, Deserialize)]
pub(crate) struct Changed {
    pub(crate) name: String,
    /// Its value before the first change.
    pub(crate) before: u64,
}

impl Record {
    /// Reads the record; an absent one is empty.
    pub(crate) fn read() -> Result<Self> {
        let path = file()?;
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged: remove it", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn write(&self) -> Result<()> {
        let path = file()?;
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Notes packages, each once.
    pub(crate) fn add_packages(&mut self, packages: impl IntoIterator<Item = String>) {
        self.packages.extend(packages);
        self.packages.sort();
        self.packages.dedup();
    }

    /// Notes a setting's value from before setup's first change.
    pub(crate) fn add_setting(&mut self, name: &str, before: u64) {
        if !self.settings.iter().any(|changed| changed.name == name) {
            self.settings.push(Changed {
                name: name.to_owned(),
                before,
            });
        }
    }
}

fn file() -> Result<PathBuf> {
    Ok(paths::target()?.join("ums-setup.json"))
}

#[cfg(test)]
mod tests {
    use super::Record;

    #[test]
    fn keeps_the_first_value_and_each_package_once() {
        let mut record = Record::default();
        record.add_setting("a", 1);
        record.add_setting("a", 2);
        record.add_packages(["x".to_owned(), "y".to_owned()]);
        record.add_packages(["x".to_owned()]);
        assert_eq!((record.settings.len(), record.settings[0].before), (1, 1));
        assert_eq!(record.packages, ["x", "y"]);
    }
}
