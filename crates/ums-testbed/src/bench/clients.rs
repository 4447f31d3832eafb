//! What clients see of a move on connections that stay open: the longest gap beside the service's
//! own downtime, and the way through the tunnel beside the direct one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ums_core::report::Outcome;

use super::wire_floor;
use crate::client::{Load, echo, open};
use crate::streams::Request;
use crate::system::System;
use crate::testbed::Testbed;
use crate::workload::streams;

/// How often the client on the open connection asks: the gap is known that well.
const PERIOD: Duration = Duration::from_millis(1);

/// How long that client asks before and after a move.
const LEAD: Duration = Duration::from_millis(500);

/// Bytes of a message whose round trip is timed.
const MESSAGE: usize = 64;

/// Round trips that are timed.
const ROUND_TRIPS: usize = 1000;

/// Bytes whose download is timed: half a second on a link of 1 Gbit/s.
const BULK: u64 = 64 << 20;

/// The way between a client and the service.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Download on one connection, Mbit/s.
    pub mbit_s: f64,
    /// Median round trip of a small message, microseconds.
    pub round_trip_us: f64,
    /// The round trip that 99 of 100 stay below, microseconds.
    pub round_trip_p99_us: f64,
}

/// What the Frontman did with the packets of clients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Packets that it held when it began to lead.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that it has lost since its start, held or led: over a bound, on the way, or refused by
    /// a device.
    pub lost: u64,
}

/// One move, seen by clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientSample {
    /// Which run, from 1.
    pub run: u32,
    /// The system that the service moved to.
    pub to: String,
    /// The service's downtime as reported, milliseconds.
    pub downtime_ms: f64,
    /// The longest time without an answer on an open connection, milliseconds.
    pub gap_ms: f64,
    /// Packets held during the move.
    pub held: Held,
    /// A connection from before the move, which goes through the tunnel; `None` after the way
    /// back, when no packet needs one.
    pub tunnel: Option<Route>,
    /// A new connection to the service's new place.
    pub direct: Route,
    /// What one plain TCP stream between the systems gets, Mbit/s: the tunnel's upper limit.
    pub link_mbit_s: f64,
}

/// Moves the streams service from `a` to `b` and back. Both Coordinators must run.
pub fn measure(testbed: &Testbed, run: u32) -> Result<Vec<ClientSample>> {
    let (a, b) = (&testbed.a, &testbed.b);
    streams::start(testbed, a, None, 0)?;
    let mut held = testbed.world.in_network(|| Probe::open(place(a)))?;
    let there = moved(testbed, run, (a, b), Some(&mut held))?;
    let back = moved(testbed, run, (b, a), None)?;
    a.ums_ok(&["rm", "streams"])?;
    // A Frontman there may still lead clients to a.
    let _ = b.ums(&["rm", "streams"])?;
    Ok(vec![there, back])
}

fn moved(
    testbed: &Testbed,
    run: u32,
    (from, to): (&System, &System),
    held: Option<&mut Probe>,
) -> Result<ClientSample> {
    // The old address, also on the way back: a connection is what is to be kept.
    let address = place(&testbed.a);
    let client = Load::start(&testbed.world, move |stop| echo::run(address, PERIOD, stop))?;
    std::thread::sleep(LEAD);
    let report = testbed.migrate(from, to, "streams", &[])?;
    std::thread::sleep(LEAD);
    let seen = client.stop().context("the connection was lost")?;
    let error = report.error.as_deref().unwrap_or("no error is given");
    ensure!(
        report.outcome == Outcome::Completed,
        "the streams service did not move: {error}"
    );
    let tunnel = held.map(Probe::measure).transpose()?;
    let held = held_by(from)?;
    let direct = testbed.world.in_network(|| Probe::open(place(to)));
    let floor = wire_floor::time(testbed, BULK)?;
    Ok(ClientSample {
        run,
        to: to.name().to_owned(),
        downtime_ms: report.downtime_ms.context("a move without a downtime")?,
        gap_ms: seen.longest_gap_ms,
        held,
        tunnel,
        direct: direct?.measure()?,
        link_mbit_s: mbit_s(BULK, floor),
    })
}

/// What the Frontman of the service says that has left this system.
fn held_by(system: &System) -> Result<Held> {
    let directory = system.run_dir().join("tunnel/near");
    let near = |kind: &str| system.outside(&directory.join(format!("streams.{kind}")));
    // Written when it began to lead.
    let record: Value = serde_json::from_slice(&std::fs::read(near("json"))?)?;
    let now = told(near("sock"))?;
    let count = |counts: &Value, name: &str| counts[name].as_u64().context("not a count");
    let (then, now) = (&record["status"]["counts"], &now["ok"]["counts"]);
    let lost = ["dropped_over_bound", "incomplete", "refused_by_device"];
    Ok(Held {
        packets: count(then, "held_packets")?,
        bytes: count(then, "held_bytes")?,
        lost: lost
            .iter()
            .map(|name| count(now, name))
            .sum::<Result<_>>()?,
    })
}

/// What it answers on its control socket.
fn told(socket: PathBuf) -> Result<Value> {
    let mut stream = UnixStream::connect(&socket)?;
    stream.write_all(b"{\"status\":{}}\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

fn place(system: &System) -> SocketAddr {
    SocketAddr::from((system.ip(), streams::PORT))
}

/// Two connections to the service, to be measured when they are wanted.
struct Probe {
    echo: TcpStream,
    bulk: TcpStream,
}

impl Probe {
    fn open(address: SocketAddr) -> Result<Self> {
        let mut echo = open(address, Request::Echo)?;
        round_trip(&mut echo)?;
        // The request comes later: until then it is idle.
        let bulk = crate::client::connect(address)?;
        Ok(Self { echo, bulk })
    }

    fn measure(&mut self) -> Result<Route> {
        let all = (0..ROUND_TRIPS).map(|_| round_trip(&mut self.echo));
        let mut all: Vec<Duration> = all.collect::<Result<_>>()?;
        all.sort_unstable();
        let us = |index: usize| all[index].as_secs_f64() * 1e6;
        Ok(Route {
            mbit_s: mbit_s(BULK, self.download()?),
            round_trip_us: us(ROUND_TRIPS / 2),
            round_trip_p99_us: us(ROUND_TRIPS * 99 / 100),
        })
    }

    fn download(&mut self) -> Result<Duration> {
        // A stream of its own, which nobody else asks for: its local port is as good as any.
        let id = u64::from(self.bulk.local_addr()?.port());
        let request = Request::Download(id, 0);
        self.bulk.write_all(format!("{request}\n").as_bytes())?;
        let (mut buffer, mut left) = (vec![0; 256 * 1024], BULK);
        let began = Instant::now();
        while left > 0 {
            let count = self.bulk.read(&mut buffer)? as u64;
            ensure!(count > 0, "the stream ended {left} bytes early");
            left = left.saturating_sub(count);
        }
        Ok(began.elapsed())
    }
}

fn round_trip(stream: &mut TcpStream) -> Result<Duration> {
    let (message, mut answer) = ([1; MESSAGE], [0; MESSAGE]);
    let began = Instant::now();
    stream.write_all(&message)?;
    stream.read_exact(&mut answer).context("no answer")?;
    ensure!(message == answer, "another message came back");
    Ok(began.elapsed())
}

fn mbit_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / 1e6 / time.as_secs_f64()
}
