//! The memory hog in a container made by runc directly, as the paper's way needs it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Cell;
use crate::rootfs;
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::{Tools, run};

/// Name of the container and of its network namespace.
pub(super) const NAME: &str = "paper-hog";

/// The container's own address, the same on both systems, as its network namespace moves along.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

/// The system's end of the container's link.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

/// Where the hog answers.
const PORT: u16 = 7000;

/// Capabilities that container engines give by default, as far as a hog could use them.
const CAPABILITIES: [&str; 4] = [
    "CAP_CHOWN",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETUID",
];

/// Where the hog in the container answers, from inside the system that it runs on.
pub(super) fn address() -> SocketAddr {
    SocketAddr::from((ADDRESS, PORT))
}

/// The place for the container on one system.
pub(super) struct Place<'a> {
    pub(super) system: &'a System,
    tools: &'a Tools,
}

impl<'a> Place<'a> {
    /// Makes the bundle, the root filesystem and the network namespace, all before anything is
    /// measured: the paper's way gets its destination prepared.
    pub(super) fn prepare(testbed: &'a Testbed, system: &'a System, cell: Cell) -> Result<Self> {
        let place = Self {
            system,
            tools: testbed.tools(),
        };
        let bundle = place.bundle();
        let hog = place.tools.own("ums-hog")?;
        rootfs::minimal(&bundle.join("rootfs"), &[&hog])?;
        let config = serde_json::to_vec_pretty(&place.config(cell))?;
        std::fs::write(bundle.join("config.json"), config)?;
        place
            .make_network()
            .context("cannot make the container's network")?;
        Ok(place)
    }

    /// The OCI bundle.
    pub(super) fn bundle(&self) -> PathBuf {
        self.system.directory().join("paper-way")
    }

    /// Where images are written and arrive: in memory.
    pub(super) fn images(&self) -> PathBuf {
        self.system.run_dir().join("paper-images")
    }

    /// What runc has to say.
    pub(super) fn log(&self) -> PathBuf {
        self.system.run_dir().join("runc.log")
    }

    /// Where a `runc checkpoint` tells that it serves pages.
    pub(super) fn status(&self) -> PathBuf {
        self.system.run_dir().join("runc.status")
    }

    /// `criu` of the bundle.
    pub(super) fn criu(&self) -> Command {
        self.system.exec(self.tools.bundled("criu"))
    }

    /// `runc` of the bundle, with its `criu` first in PATH.
    pub(super) fn runc(&self) -> Command {
        self.with_runc(self.system.exec(self.tools.bundled("runc")))
    }

    /// The same, with a new file for writing as its descriptor 3.
    pub(super) fn runc_with_status(&self, status: &Path) -> Command {
        let mut shell = self.system.exec("sh");
        shell.args(["-c", "exec 3>\"$0\" \"$@\""]).arg(status);
        shell.arg(self.tools.bundled("runc"));
        self.with_runc(shell)
    }

    fn with_runc(&self, mut command: Command) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env(
            "PATH",
            format!("{}:{path}", self.tools.bundle().join("bin").display()),
        );
        command
            .arg("--root")
            .arg(self.system.run_dir().join("runc"));
        command.arg("--log").arg(self.log());
        command
    }

    /// Removes the container and its traces, whether it runs or not.
    pub(super) fn clear(&self) -> Result<()> {
        // Fails when there is no container, which is what is wanted.
        let _ = run(self.runc().args(["delete", "--force", NAME]));
        let traces = [self.images(), self.status()];
        run(self.system.exec("rm").arg("-rf").args(traces))?;
        let _ = run(self.system.exec("ip").args(["netns", "del", NAME]));
        std::fs::remove_dir_all(self.bundle()).context("cannot remove the container's bundle")
    }

    fn make_network(&self) -> Result<()> {
        let ip = |words: &str| run(self.system.exec("ip").args(words.split(' ')));
        ip(&format!("netns add {NAME}"))?;
        ip(&format!(
            "link add paper0 type veth peer name eth0 netns {NAME}"
        ))?;
        ip(&format!("addr add {GATEWAY}/30 dev paper0"))?;
        ip("link set paper0 up")?;
        ip(&format!("-n {NAME} addr add {ADDRESS}/30 dev eth0"))?;
        ip(&format!("-n {NAME} link set eth0 up"))?;
        ip(&format!("-n {NAME} link set lo up"))?;
        Ok(())
    }

    /// What runc is to make: a plain container, less the cgroup mount, which CRIU can't carry
    /// where hierarchies of both versions are in use.
    fn config(&self, cell: Cell) -> Value {
        let capabilities = json!(CAPABILITIES);
        let mut args = vec!["/bin/ums-hog".to_owned()];
        args.extend(super::hog_arguments(cell));
        args.extend(["--listen".to_owned(), format!("0.0.0.0:{PORT}")]);
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
        let device_options = ["nosuid", "strictatime", "mode=755", "size=65536k"];
        let pts = [
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
        ];
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities
                },
                "noNewPrivileges": true
            },
            "root": { "path": "rootfs", "readonly": true },
            "hostname": NAME,
            "mounts": [
                mount("/proc", "proc", &[]),
                mount("/dev", "tmpfs", &device_options),
                mount("/dev/pts", "devpts", &pts),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            "linux": {
                "cgroupsPath": format!("/{NAME}"),
                "resources": { "devices": [{ "allow": true, "access": "rwm" }] },
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                    { "type": "network", "path": format!("/run/netns/{NAME}") }
                ]
            }
        })
    }
}
