//! The streams service, and the clients that keep a connection to it open.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;

use super::{answers, root_of};
use crate::client::transfer::{Download, Progress, Upload, download, upload};
use crate::client::{Loads, datagrams, echo, finish, websocket};
use crate::system::System;
use crate::testbed::Testbed;

/// Port of the streams service, TCP and UDP, on the systems and inside.
pub const PORT: u16 = 7100;

/// Its port for WebSocket clients.
pub const WEBSOCKET_PORT: u16 = 7101;

/// How often a busy client does what it does.
const PERIOD: Duration = Duration::from_millis(5);

/// Connections that are open and idle.
const CROWD: u64 = 200;

/// The stream that is sent faster than the service reads.
pub const SLOW: u64 = 13;

/// Streams that the service sends: at a steady rate, to a client that has closed its direction, and
/// faster than the client reads.
const DOWNLOADS: [Download; 3] = [
    Download {
        name: "download",
        id: 1,
        rate: 256,
        pause: Duration::ZERO,
        half_closed: false,
    },
    Download {
        name: "download half-closed",
        id: 2,
        rate: 64,
        pause: Duration::ZERO,
        half_closed: true,
    },
    Download {
        name: "slow reader",
        id: 3,
        rate: 0,
        pause: Duration::from_millis(50),
        half_closed: false,
    },
];

/// Streams that clients send: all the time in small parts, on a connection that the service has
/// closed in its direction, and faster than the service reads.
const UPLOADS: [Upload; 3] = [
    Upload {
        name: "upload",
        id: 11,
        half_closed: false,
        rate: 0,
        chunk: 64,
        period: Duration::from_millis(1),
    },
    Upload {
        name: "upload half-closed",
        id: 12,
        half_closed: true,
        rate: 0,
        chunk: 512,
        period: PERIOD,
    },
    Upload {
        name: "slow writer",
        id: SLOW,
        half_closed: false,
        rate: 64,
        chunk: 16 * 1024,
        period: Duration::ZERO,
    },
];

/// Starts the service on `system`; it calls `dial` if that is given, and holds `mib` MiB besides.
pub fn start(testbed: &Testbed, system: &System, dial: Option<SocketAddr>, mib: u64) -> Result<()> {
    start_with(testbed, system, dial, mib, &[])
}

/// The same, with further arguments of `ums run`.
pub fn start_with(
    testbed: &Testbed,
    system: &System,
    dial: Option<SocketAddr>,
    mib: u64,
    further: &[&str],
) -> Result<()> {
    let root = root_of(testbed, "streams", testbed.tools().own("ums-streams")?)?;
    let ports = [
        format!("{PORT}:{PORT}"),
        format!("{PORT}:{PORT}/udp"),
        format!("{WEBSOCKET_PORT}:{WEBSOCKET_PORT}"),
    ];
    let mut arguments = vec!["run", "streams", "--rootfs", &root];
    arguments.extend(further);
    for port in &ports {
        arguments.extend(["--publish", port]);
    }
    let (mib, dial) = (mib.to_string(), dial.map(|server| server.to_string()));
    arguments.extend(["--", "/bin/ums-streams", "--mib", &mib]);
    if let Some(server) = &dial {
        arguments.extend(["--dial", server]);
    }
    system.ums_ok(&arguments)?;
    answers(testbed, system, PORT)
}

/// A server in the world that waits for the service's call.
pub fn world_server(testbed: &Testbed) -> Result<TcpListener> {
    let ip = testbed.world_ip(&testbed.a);
    let bind = || Ok(TcpListener::bind((ip, 0))?);
    testbed.world.in_network(bind)
}

/// Clients of the service, and what the kernel knows of each upload.
#[derive(Debug)]
pub struct Clients {
    /// All of them.
    pub loads: Loads,
    /// Stream and progress of each upload.
    pub uploads: Vec<(u64, Arc<Progress>)>,
    /// Whether a message on the service's own call was answered.
    pub called: Arc<AtomicBool>,
}

impl Clients {
    /// Starts one client of each kind at the service's place on `system`; `server` gets the
    /// service's call.
    pub fn start(testbed: &Testbed, system: &System, server: TcpListener) -> Result<Self> {
        let address = SocketAddr::from((system.ip(), PORT));
        let websocket = SocketAddr::from((system.ip(), WEBSOCKET_PORT));
        let world = &testbed.world;
        let (mut loads, mut uploads) = (Loads::default(), Vec::new());
        for plan in &DOWNLOADS {
            loads.start(world, plan.name, move |stop| download(address, plan, stop))?;
        }
        for plan in &UPLOADS {
            let progress = Arc::new(Progress::default());
            uploads.push((plan.id, Arc::clone(&progress)));
            loads.start(world, plan.name, move |stop| {
                upload(address, plan, &progress, stop)
            })?;
        }
        loads.start(world, "echo", move |stop| echo::run(address, PERIOD, stop))?;
        loads.start(world, "idle connections", move |stop| {
            echo::crowd(address, CROWD, stop)
        })?;
        let called = Arc::new(AtomicBool::new(false));
        let answered = Arc::clone(&called);
        loads.start(world, "outgoing", move |stop| {
            echo::called(&server, PERIOD, &answered, stop)
        })?;
        loads.start(world, "udp", move |stop| {
            datagrams::run(address, PERIOD, stop)
        })?;
        loads.start(world, "websocket", move |stop| {
            websocket::run(websocket, PERIOD, stop)
        })?;
        Ok(Self {
            loads,
            uploads,
            called,
        })
    }

    /// Lets all streams end; the service is asked at `address`.
    pub fn finish(testbed: &Testbed, address: SocketAddr) -> Result<()> {
        let downloads = DOWNLOADS.iter().map(|plan| plan.id);
        let mut ids = downloads.chain(UPLOADS.iter().map(|plan| plan.id));
        let all = || ids.try_for_each(|id| finish(address, id));
        testbed.world.in_network(all)
    }
}
