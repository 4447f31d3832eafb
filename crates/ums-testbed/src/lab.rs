//! Two systems and a world that stay until they are told to end: for a newcomer to play in, for a bug
//! report to name, and for the documentation's walk-through.
//!
//! Each place is a script in the lab's directory, by which any other process runs a command there.

mod machines;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;
use crate::system::System;
use crate::testbed::{Settings, Testbed};
use crate::tools::Tools;

pub use machines::MachineLab;

/// The places: two systems, and where their clients live.
pub const PLACES: [&str; 3] = ["a", "b", "world"];

/// File with the process id of who holds the lab.
const HOLDER: &str = "holder";

/// A lab. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    testbed: Testbed,
    directory: PathBuf,
}

impl Lab {
    /// Makes the systems, starts their Coordinators, and writes the scripts into a directory, where
    /// nobody else's lab may be.
    ///
    /// # Errors
    /// What is missing on this machine, a lab that is there already, and whatever fails of a start.
    pub fn start(tools: &Tools, directory: &Path) -> Result<Self> {
        if let Some(lacking) = tools.lacking() {
            anyhow::bail!("{lacking}");
        }
        ensure!(
            holder(directory).is_none(),
            "a lab is up already: `cargo xtask lab down` ends it"
        );
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let mut testbed = Testbed::create(tools, &Settings::default())?;
        testbed.start_coordinators()?;
        let lab = Self {
            testbed,
            directory: directory.to_owned(),
        };
        for system in [&lab.testbed.a, &lab.testbed.b] {
            let configuration = Some(system);
            lab.write(system.name(), system.namespace(), configuration)?;
        }
        lab.write("world", &lab.testbed.world, None)?;
        fs::write(directory.join(HOLDER), std::process::id().to_string())?;
        Ok(lab)
    }

    /// The end of what the Coordinators and agents said.
    pub fn said(&self) -> String {
        [&self.testbed.a, &self.testbed.b]
            .map(System::said)
            .join("\n")
    }

    /// Ends and removes everything; returns what is left all the same.
    ///
    /// # Errors
    /// What can't be ended or removed.
    pub fn remove(self) -> Result<Vec<String>> {
        for name in PLACES.iter().chain([&HOLDER]) {
            let file = self.directory.join(name);
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        self.testbed.remove()
    }

    fn write(&self, name: &str, place: &Namespace, system: Option<&System>) -> Result<()> {
        let (path, bin) = (self.directory.join(name), self.testbed.tools().bin_dir());
        let configuration = system.map(System::config);
        let text = script(
            self.testbed.id(),
            place.init(),
            bin,
            configuration.as_deref(),
        );
        write_script(&path, &text)
    }
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The process that holds the lab of this directory; `None` where there is no lab.
pub fn holder(directory: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(directory.join(HOLDER))
        .ok()?
        .parse()
        .ok()?;
    // Another process may have the number by now.
    let own = fs::read_link("/proc/self/exe").ok()?;
    let its = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // One that was built anew since is `… (deleted)`.
    let (own, its) = (own.file_name()?.to_str()?, its.file_name()?.to_str()?);
    its.starts_with(own).then_some(pid)
}

/// Runs its arguments, or a shell, in a place, in the directory in which it is called.
fn script(testbed: &str, init: i32, bin: &Path, configuration: Option<&Path>) -> String {
    let bin = quoted(bin);
    let configuration =
        configuration.map_or_else(String::new, |path| format!("UMS_CONFIG={} ", quoted(path)));
    format!(
        "#!/bin/sh\n[ $# -gt 0 ] || set -- \"${{SHELL:-/bin/sh}}\"\n\
         exec nsenter --target {init} --net --mount --pid -- env UMS_TESTBED={testbed} \
         {configuration}PATH={bin}:\"$PATH\" sh -c 'cd \"$0\" && exec \"$@\"' \"$PWD\" \"$@\"\n"
    )
}

/// As one word of the shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
        let text = script(
            "id",
            7,
            Path::new("/bin dir"),
            Some(Path::new("/etc/u.toml")),
        );
        assert!(
            text.contains("UMS_CONFIG='/etc/u.toml' PATH='/bin dir':\"$PATH\""),
            "{text}"
        );
        assert!(!script("id", 7, Path::new("/b"), None).contains("UMS_CONFIG"));
    }

    #[test]
    fn where_nobody_wrote_there_is_no_lab() {
        assert_eq!(holder(Path::new("/nonexistent")), None);
    }
}
