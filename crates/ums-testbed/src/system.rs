//! One autonomous system: its namespaces, its directories, its Coordinator.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespace::{Layout, Namespace};
use crate::tools::{PROGRAMS, Tools, children_of, wait_for};

/// Port of the Coordinator for its peers.
pub const PEER_PORT: u16 = 7443;

/// Port of the agent for its peers' data paths.
pub const DATA_PORT: u16 = 7444;

/// Longest wait for a Coordinator to answer after its start; it opens its journal and starts the
/// agent, which takes well under a second.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// An autonomous system. Dropping it ends everything in it.
#[derive(Debug)]
pub struct System {
    name: String,
    directory: PathBuf,
    ip: Ipv4Addr,
    namespace: Namespace,
    tools: Tools,
    coordinator: Option<Child>,
    settings: String,
}

impl System {
    /// Makes the namespaces and directories of a system below `parent`.
    pub(crate) fn create(
        tools: &Tools,
        testbed: &str,
        parent: &Path,
        name: &str,
        layout: Layout,
    ) -> Result<Self> {
        let directory = parent.join(name);
        let run = directory.join("run");
        for path in [&directory, &run, &directory.join("state")] {
            std::fs::create_dir(path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        // `/run` too: what programs keep there under fixed names must not meet the other system's.
        let cgroup = format!("/ums/{testbed}/{name}");
        let mounts = [Path::new("/run"), &run];
        let namespace = Namespace::create(tools, testbed, name, &mounts, Some(&cgroup), layout)?;
        Ok(Self {
            name: name.to_owned(),
            directory,
            ip: Ipv4Addr::UNSPECIFIED,
            namespace,
            tools: tools.clone(),
            coordinator: None,
            settings: String::new(),
        })
    }

    pub(crate) fn at(mut self, ip: Ipv4Addr) -> Self {
        self.ip = ip;
        self
    }

    /// Lines for its configuration, beside what it needs; to be given before its Coordinator starts.
    pub fn set(&mut self, settings: &str) {
        settings.clone_into(&mut self.settings);
    }

    /// Gives it programs of its own, copied from a directory, or replaces those that it has, as a
    /// package does: a file at the same path, while programs run from the one before. To be called
    /// the first time before its Coordinator starts.
    pub fn install(&mut self, from: &Path) -> Result<()> {
        let bin = self.directory.join("bin");
        std::fs::create_dir_all(&bin)?;
        for program in PROGRAMS {
            let (staged, place) = (bin.join(format!(".{program}")), bin.join(program));
            std::fs::copy(from.join(program), &staged)
                .and_then(|_| std::fs::rename(&staged, &place))
                .with_context(|| format!("cannot install {}", place.display()))?;
        }
        self.tools = self.tools.with_bin_dir(bin);
        Ok(())
    }

    /// Its name, which is the name in its certificate.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, for its peer and for clients.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Its namespaces.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its directory: `state` on disk, `run` in memory and visible inside only, `ums.toml`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory in memory, which only processes inside see.
    pub fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// Where its services and what it remembers are.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("ums.toml")
    }

    /// A command inside, marked as this testbed's.
    pub fn exec(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.namespace.command(program)
    }

    /// The `ums` command inside, with this system's configuration.
    pub fn ums_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.exec(self.tools.ums());
        command.env("UMS_CONFIG", self.config()).args(arguments);
        command
    }

    /// Runs `ums` inside and waits for it.
    pub fn ums(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.ums_command(arguments);
        command
            .output()
            .with_context(|| format!("cannot start `ums {}`", arguments.join(" ")))
    }

    /// Runs `ums` inside; failure is an error that shows what it said.
    pub fn ums_ok(&self, arguments: &[&str]) -> Result<String> {
        let text = crate::tools::text(&mut self.ums_command(arguments));
        text.with_context(|| format!("on system {}", self.name))
    }

    /// The commands that make certificates come before there is a configuration.
    fn ums_without_config(&self, arguments: &[&str]) -> Result<String> {
        crate::tools::text(self.exec(self.tools.ums()).args(arguments))
    }

    /// Writes the configuration: directories and addresses of its own, defaults for the rest.
    fn configure(&self) -> Result<()> {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let text = format!(
            "system = \"{}\"\nstate_dir = {}\nrun_dir = {}\nlisten = \"{}:{PEER_PORT}\"\n\
             advertise = \"{}\"\ndata_port = {DATA_PORT}\nbundle = {}\nbin_dir = {}\n{}",
            self.name,
            quoted(&self.state_dir()),
            quoted(&self.run_dir()),
            self.ip,
            self.ip,
            quoted(self.tools.bundle()),
            quoted(self.tools.bin_dir()),
            self.settings,
        );
        std::fs::write(self.config(), text)
            .with_context(|| format!("cannot write {}", self.config().display()))
    }

    /// Starts the Coordinator and waits until it answers.
    pub fn start_coordinator(&mut self) -> Result<()> {
        if self.coordinator.is_some() {
            bail!("the Coordinator of {} runs already", self.name);
        }
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = self.ums_command(&["serve"]);
        command.stdout(Stdio::null()).stderr(log);
        self.coordinator = Some(command.spawn().context("cannot start `ums serve`")?);
        let started = wait_for("the Coordinator's first answer", START_PATIENCE, || {
            if let Some(Ok(Some(status))) = self.coordinator.as_mut().map(Child::try_wait) {
                return Some(Err(anyhow::anyhow!("`ums serve` ended ({status})")));
            }
            // Asking is a program's start: not before there is somebody to ask.
            UnixStream::connect(self.socket()).ok()?;
            self.ums(&["list", "--json"])
                .is_ok_and(|out| out.status.success())
                .then_some(Ok(()))
        });
        started.and_then(|outcome| outcome).with_context(|| {
            format!(
                "the Coordinator of {} does not answer; it said:\n{}",
                self.name,
                self.said()
            )
        })
    }

    /// Kills the Coordinator with SIGKILL: it has no chance to put anything in order.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        let nsenter = self.coordinator.take().context("no Coordinator runs")?;
        // `nsenter` only waits for the program that it started.
        for pid in children_of(i32::try_from(nsenter.id())?) {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                // Dead already, and reaped since it was looked for.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => bail!("cannot kill the Coordinator: {errno}"),
            }
        }
        reap(nsenter)
    }

    /// The end of what the Coordinator and its agent said.
    pub fn said(&self) -> String {
        let logs = [self.log(), self.state_dir().join("agent.log")];
        let said = logs.map(|path| std::fs::read_to_string(path).unwrap_or_default());
        said.map(|text| crate::tools::tail(&text)).join("\n")
    }

    /// Bytes that it has sent to the other system.
    pub fn peer_bytes(&self) -> Result<u64> {
        let mut ip = self.exec("ip");
        ip.args(["-s", "-j", "link", "show", "dev", crate::testbed::PEER_LINK]);
        let links: serde_json::Value = serde_json::from_str(&crate::tools::text(&mut ip)?)?;
        let bytes = links[0]["stats64"]["tx"]["bytes"].as_u64();
        bytes.context("`ip` does not tell how many bytes were sent")
    }

    /// From now on the agent's peak is counted anew (`proc_pid_clear_refs(5)`).
    pub fn forget_agents_peak(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.agent()?);
        std::fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
    }

    /// The most memory that the agent has had resident, MiB.
    pub fn agents_peak_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent()?))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.split_whitespace().next());
        let kib: f64 = kib.context("the kernel tells no peak")?.parse()?;
        Ok(kib / 1024.0)
    }

    fn agent(&self) -> Result<i32> {
        let mut members = self.namespace.members().into_iter();
        let serves = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("ums-agent\0serve") && !line.starts_with("nsenter")
        };
        members.find(serves).context("no agent serves")
    }

    /// A path of the system, as it is reached from outside.
    pub fn outside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.namespace.init()));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The Coordinator's socket, from outside.
    fn socket(&self) -> PathBuf {
        self.outside(&self.run_dir().join("ums.sock"))
    }

    /// Where the Coordinator's log is.
    pub fn log(&self) -> PathBuf {
        self.directory.join("coordinator.log")
    }

    /// Ends everything inside.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.namespace.end()?;
        match self.coordinator.take() {
            Some(nsenter) => reap(nsenter),
            None => Ok(()),
        }
    }
}

/// Waits for the end of an `nsenter` whose child has ended. It stops itself when its child is stopped
/// (`continue_as_child` of util-linux), and would not see the child's end then.
fn reap(mut nsenter: Child) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(nsenter.id())?);
    wait_for("nsenter's end", START_PATIENCE, || {
        // Until it is reaped below the number is its own.
        let _ = kill(pid, Signal::SIGCONT);
        nsenter.try_wait().ok().flatten()
    })
    .map(drop)
}

/// Makes certificates, starts both Coordinators and makes them known to each other.
pub(crate) fn introduce(authority: &Path, systems: [&mut System; 2]) -> Result<()> {
    let directory = authority.display().to_string();
    systems[0].ums_without_config(&["ca", "init", "--dir", &directory])?;
    let known = [0, 1].map(|index| (systems[index].name.clone(), systems[index].ip));
    for (system, (peer, ip)) in systems.into_iter().zip(known.into_iter().rev()) {
        system.configure()?;
        let (pki, own) = (system.state_dir().join("pki"), system.ip.to_string());
        let out = pki.display().to_string();
        let name = system.name.clone();
        let issue = [
            "ca", "issue", &name, "--dir", &directory, "--ip", &own, "--out", &out,
        ];
        system.ums_without_config(&issue)?;
        system.ums_ok(&[
            "peer",
            "add",
            &peer,
            "--address",
            &format!("{ip}:{PEER_PORT}"),
        ])?;
        system.start_coordinator()?;
    }
    Ok(())
}
