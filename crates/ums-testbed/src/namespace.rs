//! A set of network, mount and PID namespaces, held by one small init process.
//!
//! The network namespace has no name: nothing of it is left once the init is gone, and the init
//! goes when the process that holds its standard input goes, even by SIGKILL.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::tools::{Tools, children_of, run, wait_for};

/// Longest wait for an init to start or end: both take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The environment variable by which a testbed's processes are known; holds its id.
pub const MARK: &str = "UMS_TESTBED";

/// Which cgroup hierarchies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Those of this machine.
    #[default]
    Machine,
    /// The unified one alone, as on a host of today. It has the controllers that this machine's others
    /// leave to it.
    Unified,
}

/// Namespaces of their own for a system or for its clients.
#[derive(Debug)]
pub struct Namespace {
    testbed: String,
    name: String,
    holder: Child,
    init: i32,
}

impl Namespace {
    /// Makes the namespaces of a testbed, whose mark their processes carry; `mounts` are directories that get a tmpfs of their own inside, and
    /// what looks like the root of every cgroup hierarchy inside is `cgroup`, of those that
    /// `layout` leaves.
    pub fn create(
        tools: &Tools,
        testbed: &str,
        name: &str,
        mounts: &[&Path],
        cgroup: Option<&str>,
        layout: Layout,
    ) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ]);
        command
            .arg(tools.own("ums-system-init")?)
            .args(mounts)
            .env(MARK, testbed)
            .current_dir("/");
        command.args((layout == Layout::Unified).then_some("unified"));
        command.args(cgroup.map(|path| format!("cgroup:{path}")));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut holder = command
            .spawn()
            .context("cannot start unshare: is it in PATH?")?;
        let mut ready = String::new();
        let stdout = holder
            .stdout
            .take()
            .context("unshare has no standard output")?;
        BufReader::new(stdout).read_line(&mut ready)?;
        // From here on dropping `namespace` ends what was started.
        let mut namespace = Self {
            testbed: testbed.to_owned(),
            name: name.to_owned(),
            holder,
            init: 0,
        };
        ensure!(
            ready.trim() == "ready",
            "the init of {name} did not start: see above"
        );
        let holder = i32::try_from(namespace.holder.id())?;
        let init = children_of(holder).first().copied();
        namespace.init = init.with_context(|| format!("the init of {name} is gone"))?;
        run(namespace.command("ip").args(["link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id of its init, as seen from here.
    pub fn init(&self) -> i32 {
        self.init
    }

    /// A command that will run inside, marked as the testbed's; standard input is empty unless set otherwise.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init.to_string(),
            "--net",
            "--mount",
            "--pid",
            "--",
        ]);
        command
            .arg(program)
            .env(MARK, &self.testbed)
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Moves the calling thread into the network namespace, for good: what it connects to from
    /// now on is what the system can reach.
    pub fn enter_network(&self) -> Result<()> {
        let path = format!("/proc/{}/ns/net", self.init);
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")
    }

    /// Runs `work` in a thread of its own inside the network namespace.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter_network().and_then(|()| work()));
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The processes inside, as seen from here: the init and all that descends from it or was
    /// brought in.
    pub fn members(&self) -> Vec<i32> {
        let Some(own) = namespace_of(self.init, "pid_for_children") else {
            return Vec::new();
        };
        let all = crate::tools::processes();
        let inside = |pid: &i32| namespace_of(*pid, "pid").as_ref() == Some(&own);
        let mut members: Vec<i32> = all.keys().copied().filter(inside).collect();
        // Containers have PID namespaces below: they descend from members.
        let mut at = 0;
        while at < members.len() {
            let found = all
                .iter()
                .filter(|(pid, parent)| **parent == members[at] && !members.contains(pid));
            let found: Vec<i32> = found.map(|(pid, _)| *pid).collect();
            members.extend(found);
            at += 1;
        }
        members
    }

    /// Ends every process inside. Repeating it does nothing.
    pub fn end(&mut self) -> Result<()> {
        drop(self.holder.stdin.take());
        let holder = i32::try_from(self.holder.id())?;
        let ended = wait_for("the end of the init", PATIENCE, || {
            matches!(self.holder.try_wait(), Ok(Some(_)) | Err(_)).then_some(())
        });
        if ended.is_err() {
            for init in children_of(holder) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(init),
                    nix::sys::signal::SIGKILL,
                );
            }
            self.holder.kill()?;
            self.holder.wait()?;
        }
        // The number may be another process's from now on.
        self.init = 0;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot end the namespace {}: {error:#}", self.name);
        }
    }
}

/// The identity of a process's namespace, such as `net:[4026531840]`.
pub fn namespace_of(pid: i32, kind: &str) -> Option<String> {
    let target = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    target.to_str().map(str::to_owned)
}
