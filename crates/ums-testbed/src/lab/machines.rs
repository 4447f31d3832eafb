//! A lab whose systems are Debian 12 and 13 as virtual machines, with UMS from its package.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{HOLDER, holder, quoted, write_script};
use crate::vm::pair::Pair;

/// What a place says that there is not.
const NO_WORLD: &str = "#!/bin/sh\n\
     echo 'the machines have no world beside them: each is a client of the other (lab a, lab b)' >&2\nexit 2\n";

/// Two machines, `a` (Debian 12) and `b` (Debian 13). They end with this value.
#[derive(Debug)]
pub struct MachineLab {
    pair: Pair,
    directory: PathBuf,
}

impl MachineLab {
    /// Starts the machines as they are after their installation, and writes the scripts into a
    /// directory, where nobody else's lab may be.
    ///
    /// # Errors
    /// As [`Pair::with_ums`], and a lab that is there already.
    pub fn start(directory: &Path) -> Result<Self> {
        ensure!(
            holder(directory).is_none(),
            "a lab is up already: `cargo xtask lab down` ends it"
        );
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let lab = Self {
            pair: Pair::with_ums()?,
            directory: directory.to_owned(),
        };
        for (name, machine) in ["a", "b"].into_iter().zip(lab.pair.machines()) {
            write_script(&directory.join(name), &script(&machine.ssh()))?;
        }
        write_script(&directory.join("world"), NO_WORLD)?;
        std::fs::write(directory.join(HOLDER), std::process::id().to_string())?;
        Ok(lab)
    }
}

impl Drop for MachineLab {
    fn drop(&mut self) {
        for name in super::PLACES.iter().chain([&HOLDER]) {
            let _ = std::fs::remove_file(self.directory.join(name));
        }
    }
}

/// Runs its arguments, or a shell, in a machine, as ssh does.
fn script(ssh: &Command) -> String {
    let words = std::iter::once(ssh.get_program()).chain(ssh.get_args());
    let words: Vec<String> = words.map(|word| quoted(Path::new(word))).collect();
    let directory = ssh.get_current_dir().unwrap_or(Path::new("/"));
    format!(
        "#!/bin/sh\ncd {} && exec {} \"$@\"\n",
        quoted(directory),
        words.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_command_of_ssh() {
        let mut ssh = Command::new("ssh");
        ssh.current_dir("/m x")
            .args(["-i", "/k y", "root@127.0.0.1"]);
        assert_eq!(
            script(&ssh),
            "#!/bin/sh\ncd '/m x' && exec 'ssh' '-i' '/k y' 'root@127.0.0.1' \"$@\"\n"
        );
    }
}
