//! Commands and files for a machine, by ssh.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Place, Release};
use crate::tools::tail;

/// A way to a machine: one connection for all commands, because its key exchange takes long there.
#[derive(Debug, Clone)]
pub(super) struct Ssh {
    place: Place,
    release: Release,
    port: u16,
}

impl Ssh {
    pub(super) fn new(place: &Place, release: Release, port: u16) -> Self {
        let place = place.clone();
        Self {
            place,
            release,
            port,
        }
    }

    /// `ssh`, up to the command.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        // For the control socket, whose path is relative.
        command.current_dir(self.place.machines());
        command.arg("-i").arg(self.place.key());
        command.args(["-p", &self.port.to_string()]);
        for option in [
            // Its keys are made anew with each image.
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "IdentitiesOnly=yes",
            "ConnectTimeout=15",
            "ServerAliveInterval=60",
            "ControlMaster=auto",
            "ControlPersist=60",
            // What costs a machine the least.
            "Compression=no",
            "Ciphers=aes128-ctr,aes128-gcm@openssh.com",
        ] {
            command.args(["-o", option]);
        }
        let control = format!("ControlPath={}/ssh", self.release.name());
        command.args(["-o", &control]);
        command.arg("root@127.0.0.1");
        command
    }

    /// Runs a script of the shell; its output, whatever its status.
    ///
    /// # Errors
    /// A machine that isn't reached, or a script that takes longer than that: it is named.
    pub(super) fn run(&self, script: &str, patience: Duration) -> Result<Output> {
        self.piped(script, None, patience)
    }

    fn piped(
        &self,
        script: &str,
        input: Option<&mut Command>,
        patience: Duration,
    ) -> Result<Output> {
        let ssh = self.command();
        // `timeout` of coreutils holds the bound; the script itself ends with its connection.
        let mut command = Command::new("timeout");
        command.arg(format!("{}", patience.as_secs()));
        command.arg(ssh.get_program()).args(ssh.get_args());
        command.current_dir(self.place.machines());
        command.arg(script);
        let mut source = None;
        command.stdin(Stdio::null());
        if let Some(input) = input {
            let mut child = input.stdout(Stdio::piped()).spawn()?;
            let output = child.stdout.take().context("its output is piped")?;
            command.stdin(output);
            source = Some(child);
        }
        let output = command.output().context("cannot start `ssh`")?;
        if let Some(mut child) = source {
            let status = child.wait()?;
            anyhow::ensure!(status.success(), "reading the files failed ({status})");
        }
        match output.status.code() {
            Some(124) => bail!("did not end within {patience:?}: {script}"),
            Some(255) => bail!(
                "no answer by ssh: {}",
                tail(&String::from_utf8_lossy(&output.stderr))
            ),
            _ => Ok(output),
        }
    }

    /// Puts files and directories into a directory, which is made.
    pub(super) fn put(&self, files: &[&Path], directory: &str, patience: Duration) -> Result<()> {
        for file in files {
            let file = std::path::absolute(file)?;
            let (parent, name) = parts(&file)?;
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(parent).args(["-cf", "-"]).arg(name);
            let script = format!("mkdir -p {directory} && tar -C {directory} -xf -");
            let output = self.piped(&script, Some(&mut tar), patience)?;
            anyhow::ensure!(
                output.status.success(),
                "cannot put {} there: {}",
                file.display(),
                tail(&String::from_utf8_lossy(&output.stderr))
            );
        }
        Ok(())
    }

    /// Gets a file or directory into a directory of the host.
    pub(super) fn get(&self, path: &str, directory: &Path, patience: Duration) -> Result<()> {
        let (parent, name) = parts(Path::new(path))?;
        let script = format!("tar -C {} -cf - {}", parent.display(), name.display());
        let output = self.run(&script, patience)?;
        anyhow::ensure!(
            output.status.success(),
            "cannot get {path}: {}",
            tail(&String::from_utf8_lossy(&output.stderr))
        );
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(directory).args(["-xf", "-"]);
        let mut child = tar.stdin(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("its input is piped")?;
        std::io::Write::write_all(&mut input, &output.stdout)?;
        drop(input);
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "writing the files failed ({status})");
        Ok(())
    }
}

fn parts(path: &Path) -> Result<(&Path, &Path)> {
    let name = path.file_name().map(Path::new);
    path.parent()
        .zip(name)
        .with_context(|| format!("{} is no file that can be copied", path.display()))
}
