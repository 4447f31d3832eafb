//! PostgreSQL, from Debian's packages, wherever they are: installed or only unpacked.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::START_PATIENCE;
use crate::client::postgresql::{Psql, ping};
use crate::rootfs::{self, copy, copy_all, files, with_libraries};
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::{Tools, run, wait_for};

/// Port of PostgreSQL, on the systems and inside.
pub const PORT: u16 = 5432;

/// The user that it runs as: it refuses to run as root.
const USER: u32 = 70;

/// Lets it take root for that user, where a service of another user can't be checkpointed: the
/// kernel shows a process's limits to another user only with CAP_SYS_RESOURCE (`prlimit(2)`), and
/// CRIU asks for them.
const DISGUISE: &str = "unsigned getuid(void) { return 70; } unsigned geteuid(void) { return 70; }";

/// Where that is inside.
const DISGUISE_PATH: &str = "/bin/disguise.so";

/// The bit of CAP_SYS_RESOURCE.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// Makes a cluster, and becomes the server. Nothing of it outlives a test, so that nothing has to
/// be on the disk at once.
const START: &str = "\
initdb=$1/initdb; server=$1/postgres; \
$initdb --no-sync --pgdata=/data/cluster --username=postgres --auth=trust --locale=C >/dev/null && \
echo 'host all all all trust' >>/data/cluster/pg_hba.conf && \
exec $server -D /data/cluster -c listen_addresses='*' -c fsync=off -c jit=off \
-c unix_socket_directories='' -c shared_buffers=16MB";

/// An installation of the server and `psql`.
#[derive(Debug, Clone)]
pub struct Installation {
    /// What its paths begin with.
    root: PathBuf,
    version: String,
}

impl Installation {
    /// The host's, or the one that `cargo xtask setup` has unpacked.
    pub fn find(tools: &Tools) -> Result<Self> {
        let places = [PathBuf::from("/"), tools.unpacked("postgresql")?];
        let found = places.into_iter().find_map(Self::at);
        found.context("PostgreSQL is not installed: run `cargo xtask setup`")
    }

    fn at(root: PathBuf) -> Option<Self> {
        let versions = std::fs::read_dir(root.join("usr/lib/postgresql")).ok()?;
        let names = versions.flatten().map(|entry| entry.file_name());
        let versions = names.filter_map(|name| name.into_string().ok());
        let of = |version| Self {
            root: root.clone(),
            version,
        };
        versions.map(of).find(Self::programs_are_there)
    }

    fn programs_are_there(&self) -> bool {
        let needed = ["initdb", "postgres", "psql"];
        let is_there = |name| self.outside(&self.program(name)).is_file();
        needed.into_iter().all(is_there)
    }

    /// A program as it is known inside, where it has to find its own files from there.
    fn program(&self, name: &str) -> PathBuf {
        self.directory("lib").join("bin").join(name)
    }

    fn directory(&self, kind: &str) -> PathBuf {
        let mut path = Path::new("/usr").join(kind);
        path.extend(["postgresql", &self.version]);
        path
    }

    fn outside(&self, inside: &Path) -> PathBuf {
        self.root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The client.
    pub fn psql(&self) -> Psql {
        Psql {
            program: self.outside(&self.program("psql")),
            libraries: rootfs::library_path(&self.root),
        }
    }

    /// Makes a root filesystem with the server.
    fn install(&self, directory: &Path) -> Result<()> {
        rootfs::minimal(directory, &[&rootfs::program("sh")?])?;
        let programs = ["initdb", "postgres"].map(|name| self.program(name));
        let modules = files(&self.outside(&self.directory("lib").join("lib")))?
            .into_iter()
            // The compiler for queries is larger than all the rest.
            .filter(|name| name.ends_with(".so") && !name.starts_with("llvmjit"))
            .map(|name| self.directory("lib").join("lib").join(name));
        for path in programs.into_iter().chain(modules) {
            self.copy(&path, directory)?;
        }
        for program in ["initdb", "postgres"].map(|name| self.outside(&self.program(name))) {
            with_libraries(directory, &program, &self.root)?;
        }
        let share = self.directory("share");
        let to = directory.join(share.strip_prefix("/").unwrap_or(&share));
        copy_all(&self.outside(&share), &to, &[])?;
        let passwd =
            format!("root:x:0:0:root:/:/bin/false\npostgres:x:{USER}:{USER}::/data:/bin/sh\n");
        std::fs::write(directory.join("etc/passwd"), passwd)?;
        let cluster = directory.join("data/cluster");
        std::fs::create_dir(&cluster)?;
        std::fs::set_permissions(&cluster, PermissionsExt::from_mode(0o700))?;
        std::os::unix::fs::chown(&cluster, Some(USER), Some(USER))?;
        Ok(())
    }

    fn copy(&self, inside: &Path, directory: &Path) -> Result<()> {
        let to = directory.join(inside.strip_prefix("/").unwrap_or(inside));
        copy(&self.outside(inside), &to)
    }
}

/// Whether this process, and so CRIU, has CAP_SYS_RESOURCE.
pub fn may_ask_for_limits() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.context("no capabilities in /proc/self/status")?;
    Ok(u64::from_str_radix(mask.trim(), 16)? & CAP_SYS_RESOURCE != 0)
}

/// Compiles the disguise into a root filesystem; the linker that Rust needs is a compiler too.
fn disguise(directory: &Path) -> Result<()> {
    let source = directory.join("disguise.c");
    std::fs::write(&source, DISGUISE)?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]);
    cc.arg(directory.join(DISGUISE_PATH.trim_start_matches('/')));
    run(cc.arg(&source)).map(|_| ())
}

/// Starts PostgreSQL on `system`, with an empty cluster.
pub fn start(testbed: &Testbed, system: &System, installation: &Installation) -> Result<()> {
    let directory = testbed.directory().join("rootfs-postgresql");
    if !directory.exists() {
        let made = installation.install(&directory);
        made.context("cannot make a root filesystem for PostgreSQL")?;
    }
    let root = directory.display().to_string();
    let programs = installation.directory("lib").join("bin");
    let (publish, programs) = (format!("{PORT}:{PORT}"), programs.display().to_string());
    let mut arguments = vec![
        "run",
        "postgresql",
        "--rootfs",
        &root,
        "--publish",
        &publish,
    ];
    let (user, preload) = (
        format!("{USER}:{USER}"),
        format!("LD_PRELOAD={DISGUISE_PATH}"),
    );
    if may_ask_for_limits()? {
        arguments.extend(["--user", &user]);
    } else {
        disguise(&directory)?;
        arguments.extend(["--env", &preload]);
    }
    arguments.extend(["--", "/bin/sh", "-c", START, "start", &programs]);
    system.ums_ok(&arguments)?;
    let (psql, address) = (installation.psql(), SocketAddr::from((system.ip(), PORT)));
    wait_for("PostgreSQL's first answer", START_PATIENCE, || {
        testbed.world.in_network(|| ping(&psql, address)).ok()
    })
}
