//! Container engines inside a system of the testbed, as somebody has started them.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::rootfs;
use crate::system::System;
use crate::tools::{text, wait_for};

/// Longest wait for an engine's first answer.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Docker in a system. It goes with the system.
#[derive(Debug)]
pub struct Docker<'a> {
    system: &'a System,
    log: PathBuf,
    _nsenter: Child,
}

impl<'a> Docker<'a> {
    /// Whether this machine has it.
    pub fn is_here() -> bool {
        ["dockerd", "containerd", "docker"]
            .iter()
            .all(|name| rootfs::program(name).is_ok())
    }

    /// Starts it, with its socket where it has it by default.
    pub fn start(system: &'a System) -> Result<Self> {
        let directory = system.directory().join("docker");
        own_cgroup_roots(system)?;
        std::fs::create_dir_all(&directory)?;
        let config = directory.join("daemon.json");
        std::fs::write(&config, "{}")?;
        let log = directory.join("log");
        let said = File::create(&log)?;
        let mut dockerd = system.exec(rootfs::program("dockerd")?);
        dockerd
            .arg("--config-file")
            .arg(&config)
            .args(["--host", "unix:///run/docker.sock"])
            .arg("--data-root")
            .arg(directory.join("data"))
            .args(["--exec-root", "/run/docker", "--pidfile", "/run/docker.pid"])
            .stdout(said.try_clone()?)
            .stderr(said)
            .stdin(Stdio::null());
        let nsenter = dockerd.spawn().context("cannot start dockerd")?;
        let docker = Self {
            system,
            log,
            _nsenter: nsenter,
        };
        wait_for("Docker's first answer", START_PATIENCE, || {
            docker.run(&["info"]).ok()
        })
        .with_context(|| docker.said())?;
        Ok(docker)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.system.exec(rootfs::program("docker")?);
        command
            .args(["--host", "unix:///run/docker.sock"])
            .args(arguments);
        Ok(command)
    }

    /// What a command of a person prints, which must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let text = text(&mut self.command(arguments)?)?;
        Ok(text.trim().to_owned())
    }

    /// Makes an image of a root filesystem.
    pub fn import(&self, root: &str, name: &str) -> Result<()> {
        let archive = self.system.directory().join("docker/image.tar");
        let archive = archive.display().to_string();
        let mut tar = self.system.exec("tar");
        text(tar.args(["-C", root, "-cf", &archive, "."]))?;
        self.run(&["import", &archive, name]).map(drop)
    }

    /// Ends it by force; its containers go on.
    pub fn end(&self) -> Result<()> {
        let mut shell = self.system.exec("sh");
        text(shell.args(["-c", "kill -9 $(cat /run/docker.pid)"]))?;
        wait_for("Docker's end", START_PATIENCE, || self.run(&["info"]).err()).map(drop)
    }

    /// The end of what it said.
    pub fn said(&self) -> String {
        crate::tools::tail(&std::fs::read_to_string(&self.log).unwrap_or_default())
    }
}

/// runc takes the paths of control groups from the roots of the hierarchies, which a system's are not: from now on
/// it sees the machine's.
fn own_cgroup_roots(system: &System) -> Result<()> {
    let script = "for hierarchy in /sys/fs/cgroup/*; do umount \"$hierarchy\" || exit; done";
    let mut shell = system.exec("sh");
    text(shell.args(["-c", script])).map(drop)
}
