//! A Docker engine of Debian's packages in a network namespace of its own, with `ums-runtime` registered.

use std::process::{Child, Output, Stdio};

use super::departed::program;
use super::*;

/// The engine, which goes with this.
pub struct Docker {
    dir: tempfile::TempDir,
    netns: String,
    daemon: Child,
}

/// What somebody has configured before.
pub const CONFIG: &str = "{\n  \"log-level\": \"warn\"\n}\n";

/// Programs that it takes.
const PROGRAMS: [&str; 3] = ["dockerd", "containerd", "docker"];

fn path(bundle: &Path) -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/sbin:/sbin:{}", bundle.join("bin").display())
}

impl Docker {
    /// Starts one; skips where there is none.
    pub fn start(test: &str, bundle: &Path) -> Option<Self> {
        let path = path(bundle);
        let there = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
        if !PROGRAMS.iter().all(there) {
            skip(test, "needs Docker: install docker.io");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let netns = format!("ums-docker-{}", std::process::id());
        ip(&["netns", "add", &netns]);
        ip(&["-n", &netns, "link", "set", "lo", "up"]);
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("daemon.json"), CONFIG).unwrap();
        std::fs::create_dir(at("bin")).unwrap();
        let shim = at("bin/containerd-shim-ums-v2");
        std::os::unix::fs::symlink(program().unwrap(), shim).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let daemon = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{netns}"))
            .arg("dockerd")
            .arg("--config-file")
            .arg(at("daemon.json"))
            .arg("--host")
            .arg(format!("unix://{}", at("docker.sock").display()))
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--cgroup-parent")
            .arg(format!("/{netns}"))
            .arg("--pidfile")
            .arg(at("pid"))
            .env("PATH", format!("{}:{path}", at("bin").display()))
            .env("UMS_RUNTIME_DIR", at("run/runtime"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut this = Self { dir, netns, daemon };
        wait_until("the engine answers", || {
            let ended = this.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "{}", this.log());
            this.run(&["info"]).status.success()
        });
        this.host("install");
        wait_until("the engine has the runtime", || {
            this.runtimes().contains("ums")
        });
        Some(this)
    }

    /// `ums host install docker`, or its undoing; the engine runs meanwhile.
    pub fn host(&self, command: &str) {
        let told = Command::new(program().unwrap().with_file_name("ums"))
            .arg("--run-dir")
            .arg(self.at("run"))
            .args(["host", command, "docker", "--file"])
            .arg(self.at("daemon.json"))
            .arg("--pid-file")
            .arg(self.at("pid"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&told.stderr);
        assert!(told.status.success(), "{said}");
    }

    /// What it has for runtimes.
    pub fn runtimes(&self) -> String {
        self.succeeds(&["info", "--format", "{{json .Runtimes}}"])
    }

    /// Its configuration.
    pub fn config(&self) -> String {
        std::fs::read_to_string(self.at("daemon.json")).unwrap()
    }

    /// Its own log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    /// The directory of offers that its runtime looks into.
    pub fn offers(&self) -> PathBuf {
        self.at("run/runtime")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command of a person.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut docker = Command::new("docker");
        docker
            .arg("--host")
            .arg(format!("unix://{}", self.at("docker.sock").display()))
            .args(args)
            .stdin(Stdio::null());
        docker
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command prints, which must succeed.
    pub fn succeeds(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// One value of `docker inspect`.
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.succeeds(&["inspect", "--format", format, container])
    }

    /// Makes an image of a root filesystem.
    pub fn import(&self, root: &Path, name: &str) {
        let tar = self.at("image.tar");
        let made = Command::new("tar")
            .arg("-C")
            .arg(root)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status();
        assert!(made.unwrap().success());
        self.succeeds(&["import", tar.to_str().unwrap(), name]);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let all = self.run(&["ps", "--all", "--quiet"]);
        for id in String::from_utf8_lossy(&all.stdout).lines() {
            self.run(&["rm", "--force", id]);
        }
        let pid = nix::unistd::Pid::from_raw(self.daemon.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.daemon.wait();
        ip(&["netns", "delete", &self.netns]);
        unmount_below(self.dir.path());
        if let Ok(group) = ums_checkpoint::cgroup::Cgroup::at(&format!("/{}", self.netns)) {
            let _ = group.remove();
        }
    }
}

pub fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success());
}
