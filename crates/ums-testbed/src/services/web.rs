//! Services that answer HTTP requests as [`crate::client::http`] wants it, and tell how often they have
//! checked themselves and what they found.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Clients, PATIENCE, PERIOD, Service, nobody_gave_up, run, wait_in};
use crate::client::{Loads, Summary, http};
use crate::rootfs::{self, copy, copy_all, with_libraries};
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::{self, Tools, wait_for};

/// Connections of clients.
const CONNECTIONS: usize = 8;

/// Checks that a service has to make to be well.
const CHECKS: u64 = 20;

const PORT: u16 = 8080;

/// A Go program: goroutines, stacks that grow, garbage.
pub(super) const GO: Service = Service {
    name: "go",
    port: PORT,
    mib_max: 160,
    needs: |_| rootfs::program("go").map(drop),
    start: |testbed, system, service| run(testbed, system, service, go, &[], &["/bin/server"]),
    clients: web,
};

/// A Java program on a virtual machine whose heap stays as large as it is.
pub(super) const JVM: Service = Service {
    name: "jvm",
    port: PORT,
    mib_max: 320,
    needs: |_| {
        ["javac", "jlink"]
            .iter()
            .try_for_each(|name| rootfs::program(name).map(drop))
    },
    start: |testbed, system, service| {
        let command = [
            "/jvm/bin/java",
            "-Xms96m",
            "-Xmx96m",
            "-XX:+UseG1GC",
            "-Dsun.net.httpserver.nodelay=true",
            "-cp",
            "/app",
            "Server",
        ];
        run(testbed, system, service, jvm, &[], &command)
    },
    clients: web,
};

/// A program on Node.js: timers and worker threads.
pub(super) const NODE: Service = Service {
    name: "node",
    port: PORT,
    mib_max: 256,
    needs: |_| rootfs::program("node").map(drop),
    start: |testbed, system, service| {
        let command = ["/bin/node", "/app/server.mjs"];
        run(testbed, system, service, node, &[], &command)
    },
    clients: web,
};

/// A Python program that forks its workers, and has more of `multiprocessing`.
pub(super) const PREFORK: Service = Service {
    name: "prefork",
    port: PORT,
    mib_max: 160,
    needs: |_| python().map(drop),
    start: |testbed, system, service| {
        let command = ["/bin/python3", "/app/prefork.py"];
        run(testbed, system, service, prefork, &[], &command)
    },
    clients: web,
};

/// A supervisor, supervisord, with a server and a job that it starts again and again.
pub(super) const SUPERVISOR: Service = Service {
    name: "supervisor",
    port: PORT,
    mib_max: 64,
    needs: |tools| python().and(supervisord(tools)).map(drop),
    start: |testbed, system, service| {
        let options = ["--env", "PYTHONPATH=/app"];
        let supervisord = "from supervisor.supervisord import main; main()";
        let command = [
            "/bin/python3",
            "-c",
            supervisord,
            "-n",
            "-c",
            "/etc/supervisord.conf",
        ];
        run(testbed, system, service, supervisor, &options, &command)
    },
    clients: |testbed, address| {
        Ok(Box::new(Supervised {
            loads: loads(testbed, address)?,
        }))
    },
};

fn web(testbed: &Testbed, address: SocketAddr) -> Result<Box<dyn Clients>> {
    Ok(Box::new(Web {
        loads: loads(testbed, address)?,
    }))
}

fn loads(testbed: &Testbed, address: SocketAddr) -> Result<Loads> {
    let mut loads = Loads::default();
    for index in 0..CONNECTIONS {
        let name = format!("web{index}n");
        let work = {
            let name = name.clone();
            move |stop: &_| http::run(&name, &[address], PERIOD, stop)
        };
        loads.start(&testbed.world, &name, work)?;
    }
    Ok(loads)
}

struct Web {
    loads: Loads,
}

impl Clients for Web {
    fn check(&mut self, testbed: &Testbed, at: &System) -> Result<()> {
        nobody_gave_up(&mut self.loads)?;
        let address = SocketAddr::from((at.ip(), PORT));
        let before = testbed.world.in_network(|| http::health(address))?;
        wait_in(testbed, "checks of its own", || {
            let now = http::health(address)?;
            ensure!(now.bad == 0, "it found damage: {now:?}");
            Ok(now.checks >= before.checks + CHECKS)
        })
    }

    fn stop(self: Box<Self>) -> Vec<(String, Result<Summary>)> {
        self.loads.stop()
    }
}

struct Supervised {
    loads: Loads,
}

impl Clients for Supervised {
    /// The supervisor has started the job again, and read what that says.
    fn check(&mut self, _testbed: &Testbed, at: &System) -> Result<()> {
        nobody_gave_up(&mut self.loads)?;
        let data = at.state_dir().join("services/supervisor/upper/var/job");
        let files = [data.join("starts"), data.join("said")];
        let lines = || files.each_ref().map(|path| lines(path));
        let before = lines();
        wait_for("two more starts", PATIENCE, || {
            let mut pairs = lines().into_iter().zip(before);
            pairs.all(|(now, before)| now >= before + 2).then_some(())
        })
    }

    fn stop(self: Box<Self>) -> Vec<(String, Result<Summary>)> {
        self.loads.stop()
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .count()
}

/// Writes a source beside the root filesystem, where it is compiled.
fn source(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let place = directory.with_extension("source");
    std::fs::create_dir_all(&place)?;
    let path = place.join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Adds a source to the root filesystem, where it is interpreted.
fn install(directory: &Path, name: &str, text: &str) -> Result<()> {
    std::fs::create_dir_all(directory.join("app"))?;
    std::fs::write(directory.join("app").join(name), text)?;
    Ok(())
}

fn go(tools: &Tools, directory: &Path) -> Result<()> {
    let source = source(
        directory,
        "server.go",
        include_str!("../../services/server.go"),
    )?;
    let program = source.with_file_name("server");
    let mut command = Command::new(rootfs::program("go")?);
    command.args(["build", "-o"]).arg(&program).arg(&source);
    // No cgo, so no libraries; and its compiled standard library stays with cargo's own work.
    command.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod");
    command.env("GOCACHE", tools.unpacked("go-cache")?);
    tools::run(&mut command)?;
    rootfs::minimal(directory, &[])?;
    copy(&program, &directory.join("bin/server"))
}

/// With a runtime of the modules that it needs, made by `jlink`.
fn jvm(_tools: &Tools, directory: &Path) -> Result<()> {
    let source = source(
        directory,
        "Server.java",
        include_str!("../../services/Server.java"),
    )?;
    rootfs::minimal(directory, &[])?;
    let mut javac = Command::new(rootfs::program("javac")?);
    tools::run(javac.arg("-d").arg(directory.join("app")).arg(&source))?;
    let mut jlink = Command::new(rootfs::program("jlink")?);
    jlink.args([
        "--add-modules",
        "java.base,jdk.httpserver",
        "--strip-debug",
        "--output",
    ]);
    tools::run(jlink.arg(directory.join("jvm")))?;
    // The others need only these, the virtual machine itself, and libraries of the same.
    for name in ["server/libjvm.so", "libjli.so"] {
        let library = directory.join("jvm/lib").join(name);
        with_libraries(directory, &library, Path::new("/"))?;
    }
    Ok(())
}

fn node(_tools: &Tools, directory: &Path) -> Result<()> {
    rootfs::minimal(directory, &[&rootfs::program("node")?])?;
    install(
        directory,
        "server.mjs",
        include_str!("../../services/server.mjs"),
    )
}

/// Debian's own Python: another one may be a script that looks for one.
fn python() -> Result<PathBuf> {
    let program =
        std::fs::canonicalize("/usr/bin/python3").context("`python3` is not installed")?;
    let modules = "import http.server, multiprocessing.shared_memory, socketserver";
    tools::run(Command::new(&program).args(["-c", modules]))?;
    Ok(program)
}

fn prefork(_tools: &Tools, directory: &Path) -> Result<()> {
    python_in(directory, &[])?;
    install(
        directory,
        "prefork.py",
        include_str!("../../services/prefork.py"),
    )
}

/// A root filesystem with Python and these programs.
fn python_in(directory: &Path, programs: &[&Path]) -> Result<()> {
    let program = python()?;
    rootfs::minimal(directory, programs)?;
    copy(&program, &directory.join("bin/python3"))?;
    with_libraries(directory, &program, Path::new("/"))?;
    let ask = "import sysconfig; print(sysconfig.get_path('stdlib'))";
    let modules = PathBuf::from(tools::text(Command::new(&program).args(["-c", ask]))?);
    let inside = modules
        .strip_prefix("/")
        .context("its modules have no place")?;
    let unneeded = [
        "test",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "tkinter",
        "__pycache__",
    ];
    copy_all(&modules, &directory.join(inside), &unneeded)?;
    // Modules that are libraries need libraries.
    let libraries = modules.join("lib-dynload");
    for library in rootfs::files(&libraries)? {
        with_libraries(directory, &libraries.join(library), Path::new("/"))?;
    }
    Ok(())
}

/// Where Debian has modules of Python, below the root directory.
const PYTHON_PACKAGES: &str = "usr/lib/python3/dist-packages";

/// Where supervisord is: installed, or unpacked by `cargo xtask setup`.
fn supervisord(tools: &Tools) -> Result<PathBuf> {
    let place = Path::new(PYTHON_PACKAGES);
    let module = place.join("supervisor/supervisord.py");
    let root = tools.installed_or_unpacked("supervisor", &module)?;
    Ok(root.join(place))
}

fn supervisor(tools: &Tools, directory: &Path) -> Result<()> {
    let (shell, server) = (rootfs::program("sh")?, tools.own("ums-http")?);
    python_in(directory, &[&shell, &server])?;
    copy(&rootfs::program("busybox")?, &directory.join("bin/sleep"))?;
    // What the host has is not unpacked a second time.
    let places = [supervisord(tools)?, Path::new("/").join(PYTHON_PACKAGES)];
    for name in ["supervisor", "pkg_resources"] {
        let mut modules = places.iter().map(|place| place.join(name));
        let from = modules.find(|path| path.is_dir());
        let from = from.with_context(|| format!("python's module {name} is nowhere"))?;
        copy_all(&from, &directory.join("app").join(name), &[])?;
    }
    std::fs::create_dir_all(directory.join("var/job"))?;
    let configuration = include_str!("../../services/supervisord.conf");
    std::fs::write(directory.join("etc/supervisord.conf"), configuration)?;
    Ok(())
}
