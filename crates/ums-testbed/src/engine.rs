//! Container engines inside a system of the testbed, as somebody has started them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::rootfs;
use crate::system::System;
use crate::tools::{text, wait_for};

/// Longest wait for an engine's first answer.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Docker's socket, where it has it by default.
const DOCKER_SOCKET: &str = "/run/docker.sock";
/// What Podman is told by a file: by default it asks for what this machine's root may not have, and for crun.
const CONTAINERS_CONF: &str = "\
[containers]
default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]
[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
runtime = \"runc\"
";

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Docker.
    Docker,
    /// Podman, with the service of its API.
    Podman,
}

impl Kind {
    /// Its name, and its command's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// Whether this machine has it.
    pub fn is_here(self) -> bool {
        let programs: &[&str] = match self {
            Self::Docker => &["dockerd", "containerd", "docker"],
            Self::Podman => &["podman", "conmon", "runc"],
        };
        let networks = ["/usr/lib/cni/bridge", "/usr/lib/podman/netavark"];
        let has_network = || networks.iter().any(|plugin| Path::new(plugin).exists());
        programs.iter().all(|name| rootfs::program(name).is_ok())
            && (self == Self::Docker || has_network())
    }
}

/// An engine in a system. It goes with the system.
#[derive(Debug)]
pub struct Engine<'a> {
    kind: Kind,
    system: &'a System,
    directory: PathBuf,
    _nsenter: Child,
}

impl<'a> Engine<'a> {
    /// Starts it, with its socket where it has it by default.
    pub fn start(system: &'a System, kind: Kind) -> Result<Self> {
        let directory = system.directory().join(kind.name());
        own_cgroup_roots(system)?;
        std::fs::create_dir_all(&directory)?;
        let mut serve = match kind {
            Kind::Docker => dockerd(system, &directory)?,
            Kind::Podman => podman_service(system, &directory)?,
        };
        let said = File::create(directory.join("log"))?;
        serve
            .stdout(said.try_clone()?)
            .stderr(said)
            .stdin(Stdio::null());
        let nsenter = serve.spawn().context("the engine can't be started")?;
        let engine = Self {
            kind,
            system,
            directory,
            _nsenter: nsenter,
        };
        wait_for("the engine's first answer", START_PATIENCE, || {
            engine.run(&["info"]).ok()
        })
        .with_context(|| engine.said())?;
        Ok(engine)
    }

    /// Its name, and its command's.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// The command of a person.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = match self.kind {
            Kind::Docker => {
                let mut docker = self.system.exec(rootfs::program("docker")?);
                docker.args(["--host", &format!("unix://{DOCKER_SOCKET}")]);
                docker
            }
            Kind::Podman => podman(self.system, &self.directory)?,
        };
        command.args(arguments);
        Ok(command)
    }

    /// What a command of a person prints, which must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let text = text(&mut self.command(arguments)?)?;
        Ok(text.trim().to_owned())
    }

    /// One value that it tells of a container.
    pub fn inspect(&self, container: &str, format: &str) -> Result<String> {
        self.run(&["inspect", "--format", format, container])
    }

    /// Where the init of a container is in `/proc`, as it is reached from outside.
    pub fn init_of(&self, container: &str) -> Result<PathBuf> {
        let pid = self.inspect(container, "{{.State.Pid}}")?;
        Ok(self.system.outside(&Path::new("/proc").join(pid)))
    }

    /// Tells it of the runtime that restores, as somebody does whose services are to arrive in it.
    pub fn install(&self) -> Result<()> {
        let config = self.system.directory().join("docker/daemon.json");
        let config = config.display().to_string();
        let pid = ["--pid-file", "/run/docker.pid"];
        let told = ["host", "install", "docker", "--file", &config];
        self.system.ums_ok(&[&told[..], &pid].concat())?;
        let known = || {
            let known = self.run(&["info", "--format", "{{json .Runtimes}}"]).ok()?;
            known.contains("ums-runtime").then_some(())
        };
        wait_for("the runtime in Docker", START_PATIENCE, known)
    }

    /// What a command of a person does, which may fail.
    pub fn output(&self, arguments: &[&str]) -> Result<std::process::Output> {
        Ok(self.command(arguments)?.output()?)
    }

    /// Makes an image of a root filesystem.
    pub fn import(&self, root: &str, name: &str) -> Result<()> {
        self.import_with(root, name, &[])
    }

    /// The same, with lines of its configuration as a Dockerfile has them.
    pub fn import_with(&self, root: &str, name: &str, changes: &[String]) -> Result<()> {
        let archive = self.directory.join("image.tar").display().to_string();
        let mut tar = self.system.exec("tar");
        text(tar.args(["-C", root, "-cf", &archive, "."]))?;
        let changes = changes.iter().flat_map(|line| ["--change", line.as_str()]);
        let import: Vec<&str> = ["import"]
            .into_iter()
            .chain(changes)
            .chain([&*archive, name])
            .collect();
        self.run(&import).map(drop)
    }

    /// Ends Docker by force; its containers go on.
    pub fn end(&self) -> Result<()> {
        let mut shell = self.system.exec("sh");
        text(shell.args(["-c", "kill -9 $(cat /run/docker.pid)"]))?;
        wait_for("Docker's end", START_PATIENCE, || self.run(&["info"]).err()).map(drop)
    }

    /// The end of what it said.
    pub fn said(&self) -> String {
        let log = std::fs::read_to_string(self.directory.join("log"));
        crate::tools::tail(&log.unwrap_or_default())
    }
}

fn dockerd(system: &System, directory: &Path) -> Result<Command> {
    let config = directory.join("daemon.json");
    std::fs::write(&config, "{}")?;
    let mut dockerd = system.exec(rootfs::program("dockerd")?);
    dockerd
        .arg("--config-file")
        .arg(&config)
        .args(["--host", &format!("unix://{DOCKER_SOCKET}")])
        .arg("--data-root")
        .arg(directory.join("data"))
        .args(["--exec-root", "/run/docker", "--pidfile", "/run/docker.pid"]);
    Ok(dockerd)
}

/// Podman's command, with storage of its own; what it keeps below `/run` is the system's.
fn podman(system: &System, directory: &Path) -> Result<Command> {
    let mut podman = system.exec(rootfs::program("podman")?);
    podman
        .arg("--root")
        .arg(directory.join("storage"))
        .env("CONTAINERS_CONF", directory.join("containers.conf"));
    Ok(podman)
}

fn podman_service(system: &System, directory: &Path) -> Result<Command> {
    std::fs::write(directory.join("containers.conf"), CONTAINERS_CONF)?;
    // Which addresses are in use it keeps outside of its storage.
    let script = "mkdir -p /var/lib/cni /run/podman && mount -t tmpfs cni /var/lib/cni";
    let mut shell = system.exec("sh");
    text(shell.args(["-c", script]))?;
    let mut service = podman(system, directory)?;
    service.args([
        "system",
        "service",
        "--time",
        "0",
        "unix:///run/podman/podman.sock",
    ]);
    Ok(service)
}

/// runc takes the paths of control groups from the roots of the hierarchies, which a system's are not: from now on
/// it sees the machine's.
fn own_cgroup_roots(system: &System) -> Result<()> {
    let script = "for hierarchy in /sys/fs/cgroup/*; do umount \"$hierarchy\" || exit; done";
    let mut shell = system.exec("sh");
    text(shell.args(["-c", script])).map(drop)
}
