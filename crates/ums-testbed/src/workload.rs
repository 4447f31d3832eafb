//! The services that are moved, as a user would start them: with `ums run`.

pub mod postgresql;
pub mod streams;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::client::{Load, Summary, counter, http, ledger as records};
use crate::hog::{self, Request};
use crate::ledger;
use crate::rootfs;
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::wait_for;

/// Port of Redis, on the systems and inside.
pub const REDIS_PORT: u16 = 6379;

/// Port of the HTTP service on the systems.
pub const HTTP_PORT: u16 = 8080;

/// Port of the memory hog, on the systems and inside.
pub const HOG_PORT: u16 = 7000;

/// Port of the ledger, on the systems and inside.
pub const LEDGER_PORT: u16 = 7001;

/// Longest wait for a service's first answer.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How often the counter is incremented: often enough to have one in flight at any freeze.
const COUNTER_PERIOD: Duration = Duration::from_millis(5);

/// How often each HTTP connection makes a request.
const HTTP_PERIOD: Duration = Duration::from_millis(10);

/// Connections of the HTTP client.
const HTTP_CONNECTIONS: usize = 4;

/// Where a service published at `port` may be: on either system.
pub fn addresses(testbed: &Testbed, port: u16) -> Vec<SocketAddr> {
    [&testbed.a, &testbed.b]
        .map(|system| SocketAddr::from((system.ip(), port)))
        .to_vec()
}

/// Starts Redis on `system`, with an append-only file in a volume.
pub fn start_redis(testbed: &Testbed, system: &System) -> Result<()> {
    let root = root_of(testbed, "redis", rootfs::program("redis-server")?)?;
    let port = REDIS_PORT.to_string();
    system.ums_ok(&[
        "run",
        "redis",
        "--rootfs",
        &root,
        "--volume",
        "data:/data",
        "--publish",
        &format!("{port}:{port}"),
        "--cwd",
        "/data",
        "--",
        "/bin/redis-server",
        "--port",
        &port,
        "--dir",
        "/data",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "yes",
    ])?;
    answers(testbed, system, REDIS_PORT)
}

/// Starts the HTTP service on `system`.
pub fn start_http(testbed: &Testbed, system: &System) -> Result<()> {
    let root = root_of(testbed, "http", testbed.tools().own("ums-http")?)?;
    let publish = format!("{HTTP_PORT}:80");
    system.ums_ok(&[
        "run",
        "http",
        "--rootfs",
        &root,
        "--publish",
        &publish,
        "--",
        "/bin/ums-http",
        "--listen",
        "0.0.0.0:80",
    ])?;
    answers(testbed, system, HTTP_PORT)
}

/// Starts a memory hog on `system`.
pub fn start_hog(testbed: &Testbed, system: &System, name: &str, mib: u64) -> Result<()> {
    start_hog_with(
        testbed,
        system,
        name,
        &["--mib".to_owned(), mib.to_string()],
    )
}

/// The same with arguments of its own.
pub fn start_hog_with(
    testbed: &Testbed,
    system: &System,
    name: &str,
    arguments: &[String],
) -> Result<()> {
    let root = root_of(testbed, "hog", testbed.tools().own("ums-hog")?)?;
    let publish = format!("{HOG_PORT}:{HOG_PORT}");
    let run = ["run", name, "--rootfs", &root, "--publish", &publish, "--"];
    let arguments = arguments.iter().map(String::as_str);
    let all = run.into_iter().chain(["/bin/ums-hog"]).chain(arguments);
    system.ums_ok(&all.collect::<Vec<_>>())?;
    ask_hog(testbed, system, Request::Status).map(|_| ())
}

/// Asks the hog on `system` as a client would, waiting for its answer.
pub fn ask_hog(testbed: &Testbed, system: &System, request: Request) -> Result<hog::Status> {
    let address = SocketAddr::from((system.ip(), HOG_PORT));
    wait_for("the hog's answer", START_PATIENCE, || {
        testbed.world.in_network(|| hog::ask(address, request)).ok()
    })
}

/// Starts a ledger on `system`, with a ballast of memory.
pub fn start_ledger(testbed: &Testbed, system: &System, mib: u64) -> Result<()> {
    let root = root_of(testbed, "ledger", testbed.tools().own("ums-ledger")?)?;
    let (volume, place) = ledger::VOLUME;
    system.ums_ok(&[
        "run",
        "ledger",
        "--rootfs",
        &root,
        "--volume",
        &format!("{volume}:{place}"),
        "--publish",
        &format!("{LEDGER_PORT}:{LEDGER_PORT}"),
        "--",
        "/bin/ums-ledger",
        "--mib",
        &mib.to_string(),
    ])?;
    answers(testbed, system, LEDGER_PORT)
}

/// The ledger's file on `system`, as it is seen from outside.
pub fn ledger_file(system: &System) -> PathBuf {
    let service = system
        .outside(&system.state_dir())
        .join("services")
        .join("ledger");
    service
        .join("volumes")
        .join(ledger::VOLUME.0)
        .join(ledger::FILE)
}

/// Starts the client that has records written.
pub fn record(testbed: &Testbed) -> Result<Load<records::Recorded>> {
    let addresses = addresses(testbed, LEDGER_PORT);
    Load::start(&testbed.world, move |stop| {
        records::run(&addresses, COUNTER_PERIOD, stop)
    })
}

/// Starts the client that increments a counter.
pub fn count(testbed: &Testbed) -> Result<Load<counter::Counted>> {
    let addresses = addresses(testbed, REDIS_PORT);
    Load::start(&testbed.world, move |stop| {
        counter::run(&addresses, COUNTER_PERIOD, stop)
    })
}

/// Starts the client that makes HTTP requests, on several connections.
pub fn request(testbed: &Testbed) -> Result<HttpLoad> {
    let connection = |index| {
        let addresses = addresses(testbed, HTTP_PORT);
        let name = format!("http{index}n");
        Load::start(&testbed.world, move |stop| {
            http::run(&name, &addresses, HTTP_PERIOD, stop)
        })
    };
    (0..HTTP_CONNECTIONS)
        .map(connection)
        .collect::<Result<_>>()
        .map(HttpLoad)
}

/// All connections of the HTTP client.
#[derive(Debug)]
pub struct HttpLoad(Vec<Load<Summary>>);

impl HttpLoad {
    /// Stops all and sums up.
    pub fn stop(self) -> Result<Summary> {
        let parts: Vec<Summary> = self.0.into_iter().map(Load::stop).collect::<Result<_>>()?;
        Ok(Summary::merged("http load", &parts))
    }
}

/// A root filesystem with one program, made once in each testbed.
/// A root filesystem with this program.
pub fn root_of(testbed: &Testbed, name: &str, program: PathBuf) -> Result<String> {
    let directory = testbed.directory().join(format!("rootfs-{name}"));
    if !directory.exists() {
        rootfs::minimal(&directory, &[&program])
            .with_context(|| format!("cannot make a root filesystem for {name}"))?;
    }
    Ok(directory.display().to_string())
}

/// Waits until somebody accepts connections at the system's port.
pub fn answers(testbed: &Testbed, system: &System, port: u16) -> Result<()> {
    let address = SocketAddr::from((system.ip(), port));
    let patience = Duration::from_secs(1);
    wait_for(&format!("an answer at {address}"), START_PATIENCE, || {
        let connected = || Ok(std::net::TcpStream::connect_timeout(&address, patience)?);
        testbed.world.in_network(connected).ok()
    })
    .map(|_| ())
}
