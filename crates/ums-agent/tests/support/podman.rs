//! Podman of Debian's packages, with storage and containers of its own.

use std::process::{Output, Stdio};

use super::departed::program;
use super::*;

/// Podman, without a daemon: what it has started goes with this.
pub struct Podman {
    dir: tempfile::TempDir,
    netns: String,
    path: String,
}

/// Programs that it takes.
const PROGRAMS: [&str; 3] = ["podman", "conmon", "runc"];

impl Podman {
    /// One with nothing in it; skips where there is none.
    pub fn new(test: &str, bundle: &Path) -> Option<Self> {
        let own = std::env::var("PATH").unwrap_or_default();
        let path = format!("{own}:/usr/sbin:/sbin:{}", bundle.join("bin").display());
        let there = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
        if !PROGRAMS.iter().all(there) {
            skip(test, "needs Podman: install podman and runc");
            return None;
        }
        let networks = ["/usr/lib/cni/bridge", "/usr/lib/podman/netavark"];
        if !networks.iter().any(|plugin| Path::new(plugin).exists()) {
            skip(
                test,
                "needs networks of Podman: install containernetworking-plugins or netavark",
            );
            return None;
        }
        let netns = format!("ums-podman-{}", std::process::id());
        super::docker::ip(&["netns", "add", &netns]);
        super::docker::ip(&["-n", &netns, "link", "set", "lo", "up"]);
        let dir = tempfile::tempdir().unwrap();
        // Podman finds a runtime that its configuration does not know by its path.
        Some(Self { dir, netns, path })
    }

    /// The directory of offers that its runtime looks into.
    pub fn offers(&self) -> PathBuf {
        self.at("offers")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command of a person.
    pub fn command(&self, args: &[&str]) -> Command {
        let flag = format!("--runtime-flag=ums-dir={}", self.offers().display());
        self.command_with(
            program().unwrap().to_str().unwrap(),
            &[&[&*flag], args].concat(),
        )
    }

    /// The same with a runtime by its name.
    pub fn command_with(&self, runtime: &str, args: &[&str]) -> Command {
        let mut podman = Command::new("nsenter");
        podman
            .arg(format!("--net=/run/netns/{}", self.netns))
            .arg("podman")
            .arg("--root")
            .arg(self.at("root"))
            .arg("--runroot")
            .arg(self.at("run"))
            .arg("--tmpdir")
            .arg(self.at("tmp"))
            .arg("--runtime")
            .arg(runtime)
            .arg("--cgroup-manager=cgroupfs")
            .arg("--events-backend=file")
            .args(args)
            .env("PATH", &self.path)
            .stdin(Stdio::null());
        podman
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command prints, which must succeed.
    pub fn succeeds(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// One value of `podman inspect`.
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

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["rm", "--all", "--force", "--time", "0"]);
        super::docker::ip(&["netns", "delete", &self.netns]);
        unmount_below(self.dir.path());
    }
}
