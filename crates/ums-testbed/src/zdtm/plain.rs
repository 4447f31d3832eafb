//! Plain CRIU: a test in a container that runc makes of the `config.json` that UMS made for the same
//! test, checkpointed and restored by runc on the same system.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::service::{Running, failed};
use super::{Suite, Test, Verdict};
use crate::system::System;
use crate::tools::{Tools, run, text};

/// What CRIU is told beside what runc tells it: what UMS tells it too.
const CRIU_OPTIONS: &str = "link-remap\nghost-limit 268435456\nirmap-scan-path /\n";
/// Longest wait for runc, seconds: a CRIU that waits for what does not come is not waited for.
const RUNC_SECONDS: &str = "30";
/// What CRIU says on a machine whose root lacks `CAP_SYS_RESOURCE`, and which means nothing.
const HARMLESS: &str = "RLIMIT_NOFILE for self";
/// What both directions are told: UMS carries connections, locks and unix sockets too.
const CARRIED: [&str; 3] = ["--tcp-established", "--ext-unix-sk", "--file-locks"];

/// A container of runc's own.
struct Container<'a> {
    system: &'a System,
    tools: &'a Tools,
    name: &'a str,
}

/// Starts a test, checkpoints and restores it, and lets it check itself.
pub(super) fn plain(
    tools: &Tools,
    suite: &Suite,
    (test, name): (&Test, &str),
    system: &System,
    config: Value,
) -> Verdict {
    let container = Container {
        system,
        tools,
        name,
    };
    let checked = container
        .make(suite, config)
        .and_then(|()| container.start(test))
        .and_then(|running| {
            container.checkpoint()?;
            container.restore()?;
            running.check_below(&container.part("upper"))
        });
    container.clear();
    checked.map_or_else(|error| failed(&error), |()| Verdict::Passed)
}

/// The `config.json` that UMS made for a service.
pub(super) fn config(system: &System, name: &str) -> Result<Value> {
    let service = system.run_dir().join("services").join(name);
    let path = system.outside(&service.join("bundle").join("config.json"));
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

impl Container<'_> {
    fn directory(&self) -> PathBuf {
        self.system.directory().join("plain").join(self.name)
    }

    fn part(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Makes its root filesystem, shared memory and network as UMS does, and its bundle.
    fn make(&self, suite: &Suite, config: Value) -> Result<()> {
        for part in ["upper", "work", "merged", "shm", "images"] {
            std::fs::create_dir_all(self.part(part))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            suite.rootfs.display(),
            self.part("upper").display(),
            self.part("work").display()
        );
        let mut overlay = self.system.exec("mount");
        overlay.args(["-t", "overlay", "overlay", "-o", &options]);
        run(overlay.arg(self.part("merged")))?;
        let mut shm = self.system.exec("mount");
        run(shm.args(["-t", "tmpfs", "tmpfs"]).arg(self.part("shm")))?;
        self.ip(&["netns", "add", self.name])?;
        self.ip(&["-n", self.name, "link", "set", "lo", "up"])?;
        std::fs::write(self.part("criu.conf"), CRIU_OPTIONS)?;
        let config = serde_json::to_vec(&self.own(config)?)?;
        Ok(std::fs::write(self.part("config.json"), config)?)
    }

    /// A service's configuration with this container's places in it.
    fn own(&self, mut config: Value) -> Result<Value> {
        config["root"]["path"] = json!(self.part("merged"));
        config["annotations"] = json!({ "org.criu.config": self.part("criu.conf") });
        config["linux"]["cgroupsPath"] = json!(format!("/zdtm-plain/{}", self.name));
        // The keeper allows a service its devices; here there is none.
        config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        for namespace in namespaces.context("a container has namespaces")? {
            if namespace["type"] == "network" {
                namespace["path"] = json!(format!("/run/netns/{}", self.name));
            }
        }
        let mounts = config["mounts"].as_array_mut();
        for mount in mounts.context("a container has mounts")? {
            if mount["destination"] == "/dev/shm" {
                mount["source"] = json!(self.part("shm"));
            }
        }
        Ok(config)
    }

    fn start<'a>(&'a self, test: &'a Test) -> Result<Running<'a>> {
        self.runc(&["run", "--detach", "--bundle"], &[&self.directory()])?;
        Running::started(test, self.name, &self.part("upper"))
    }

    fn checkpoint(&self) -> Result<()> {
        let mut words = vec!["checkpoint"];
        words.extend(CARRIED);
        self.with_images(&words, &[])
    }

    fn restore(&self) -> Result<()> {
        let bundle = self.directory();
        let mut words = vec!["restore", "--detach"];
        words.extend(CARRIED);
        self.with_images(&words, &["--bundle".as_ref(), &bundle])
    }

    fn with_images(&self, words: &[&str], more: &[&Path]) -> Result<()> {
        let images = self.part("images");
        let mut paths: Vec<&Path> = vec!["--image-path".as_ref(), &images];
        paths.extend::<[&Path; 2]>(["--work-path".as_ref(), &images]);
        paths.extend(more);
        self.runc(words, &paths)
    }

    /// Runs runc on this container, without output: a container inherits it.
    fn runc(&self, words: &[&str], paths: &[&Path]) -> Result<()> {
        let mut runc = self.runc_command();
        runc.args(words).args(paths).arg(self.name);
        let [stdin, stdout, stderr] = [Stdio::null(), Stdio::null(), Stdio::null()];
        let status = runc.stdin(stdin).stdout(stdout).stderr(stderr).status();
        let status = status.context("cannot start runc")?;
        if status.success() {
            return Ok(());
        }
        let said = ["images/dump.log", "images/restore.log", "runc.log"].map(|name| {
            let log = std::fs::read_to_string(self.part(name)).unwrap_or_default();
            let wrong = log.lines().filter(|line| line.contains("rror"));
            let wrong = wrong.filter(|line| !line.contains(HARMLESS));
            wrong.take(3).collect::<Vec<_>>().join("; ")
        });
        bail!("`runc {}` failed ({status}): {}", words[0], said.join(" "))
    }

    fn runc_command(&self) -> Command {
        let mut command = self.system.exec("timeout");
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.tools.bundle().join("bin");
        command.env("PATH", format!("{}:{path}", bin.display()));
        command.args(["--kill-after=5", RUNC_SECONDS]);
        command.arg(self.tools.bundled("runc"));
        command.arg("--root").arg(self.part("runc"));
        command.arg("--log").arg(self.part("runc.log"));
        command
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        run(self.system.exec("ip").args(words)).map(drop)
    }

    /// Removes it and its traces, whatever of them there are; the rest goes with the testbed.
    fn clear(&self) {
        let mut delete = self.runc_command();
        let _ = text(delete.args(["delete", "--force", self.name]));
        for part in ["merged", "shm"] {
            let _ = run(self.system.exec("umount").arg("-l").arg(self.part(part)));
        }
        let _ = self.ip(&["netns", "del", self.name]);
        let _ = run(self
            .system
            .exec("rm")
            .args(["-rf", "--one-file-system"])
            .arg(self.directory()));
    }
}
