//! Connections that are open while a service moves: there, back again, and when the move is given
//! up. Their clients keep talking to the old address and check every byte.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use common::{
    Moving, PATIENCE, SLOW_MBIT, is_only_at, nothing_acknowledged_is_lost, post, process, remove,
    strike, systems, systems_set,
};
use ums_core::report::{MigrationReport, Outcome};
use ums_testbed::client::echo::Echo;
use ums_testbed::client::{self, Loads, Summary, account, echo, pipeline, subscriber};
use ums_testbed::rootfs;
use ums_testbed::streams::{Account, GREETING};
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{Tools, skipped, wait_for};
use ums_testbed::workload::postgresql::{self, Installation};
use ums_testbed::workload::streams::{self, Clients};
use ums_testbed::workload::{LEDGER_PORT, REDIS_PORT, record, start_ledger, start_redis};

/// How often the clients of Redis send a batch.
const PERIOD: Duration = Duration::from_millis(20);

/// Datagrams that one move may lose: those that the frozen service had received and not read, for
/// CRIU carries no queue of a UDP socket, and those on their way when a place on a bridge or a tunnel
/// changes hands. A move that did not hold them would lose several times as many.
const LOST_MAX: u64 = 2;

/// A short life for a Frontman.
const RETIRE_SECONDS: u64 = 5;

/// Bytes that an upload sends in some 16 ms: fewer unacknowledged at once would not show that it
/// went on sending while the service was frozen.
const HELD_MIN: u64 = 1024;

#[test]
fn connections_to_streams_live_there_and_back_again() {
    let test = "connections_to_streams_live_there_and_back_again";
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    let mut clients = start_streams(&testbed, 0);
    for (from, to) in [(&testbed.a, &testbed.b), (&testbed.b, &testbed.a)] {
        let before: Vec<u64> = acknowledged(&clients);
        moved(&testbed, from, to, "streams");
        every_acknowledged_byte_was_read(&testbed, to, &clients);
        // Who comes now finds the service at either address.
        for system in [&testbed.a, &testbed.b] {
            at(&testbed, system, streams::PORT, echo::once);
        }
        uploads_go_on(&mut clients, &before);
    }
    uploads_were_held(&clients);
    stop_streams(&testbed, clients, 2 * LOST_MAX);
    is_only_at(&testbed, &testbed.a, "streams", "/bin/ums-streams");
    remove(testbed);
}

/// A service finds its network whole when it executes its first instruction: what it sends then is
/// not lost, and a connection that it opens at once has not to wait for a second attempt.
#[test]
fn the_first_packet_that_a_service_sends_arrives() {
    let test = "the_first_packet_that_a_service_sends_arrives";
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    let ip = testbed.world_ip(&testbed.a);
    let bind = || Ok(UdpSocket::bind((ip, 0))?);
    let server = testbed.world.in_network(bind).expect("a server");
    server.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let address = server.local_addr().expect("it has an address");
    streams::start(&testbed, &testbed.a, Some(address), 0).expect("the service runs");
    let mut greeting = [0; 16];
    let (count, _) = server.recv_from(&mut greeting).expect("a greeting");
    assert_eq!(&greeting[..count], GREETING);
    remove(testbed);
}

#[test]
fn connections_to_redis_live_there_and_back_again() {
    let test = "connections_to_redis_live_there_and_back_again";
    if rootfs::program("redis-server").is_err() {
        return skipped(test, "redis-server is missing: run `cargo xtask setup`");
    }
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    start_redis(&testbed, &testbed.a).expect("redis runs");
    let address = SocketAddr::from((testbed.a.ip(), REDIS_PORT));
    let (world, mut loads) = (&testbed.world, Loads::default());
    let started = loads.start(world, "subscriber", move |stop| {
        subscriber::run(address, PERIOD, stop)
    });
    started.expect("a client");
    let started = loads.start(world, "pipeline", move |stop| {
        pipeline::run(address, PERIOD, stop)
    });
    started.expect("a client");
    moved(&testbed, &testbed.a, &testbed.b, "redis");
    moved(&testbed, &testbed.b, &testbed.a, "redis");
    nobody_gave_up(&mut loads);
    all_went_well(loads.stop());
    remove(testbed);
}

#[test]
fn a_transaction_in_postgresql_lives_there_and_back_again() {
    let test = "a_transaction_in_postgresql_lives_there_and_back_again";
    let tools = Tools::find().expect("this program's own path is known");
    let installation = match Installation::find(&tools) {
        Ok(installation) => installation,
        Err(error) => return skipped(test, &format!("{error:#}")),
    };
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    postgresql::start(&testbed, &testbed.a, &installation).expect("PostgreSQL runs");
    let address = SocketAddr::from((testbed.a.ip(), postgresql::PORT));
    let (mut loads, psql) = (Loads::default(), installation.psql());
    let started = loads.start(&testbed.world, "psql", move |stop| {
        client::postgresql::run(&psql, address, PERIOD, stop)
    });
    started.expect("a client");
    moved(&testbed, &testbed.a, &testbed.b, "postgresql");
    moved(&testbed, &testbed.b, &testbed.a, "postgresql");
    nobody_gave_up(&mut loads);
    all_went_well(loads.stop());
    remove(testbed);
}

#[test]
fn connections_go_on_when_a_migration_is_abandoned() {
    let test = "connections_go_on_when_a_migration_is_abandoned";
    go_on_after(test, "no more of it", |testbed| {
        let abort = ["abort", "streams", "--reason", "no more of it"];
        testbed.a.ums_ok(&abort).expect("the abort is accepted");
    });
}

/// A killed CRIU leaves the sockets in repair mode. What a thread sees that waits for data at that
/// moment is the matrix's question, whose ledger has such a thread.
#[test]
fn connections_go_on_when_criu_is_killed_in_the_dump() {
    let test = "connections_go_on_when_criu_is_killed_in_the_dump";
    go_on_after(test, "CRIU ended", |testbed| {
        strike(process(&testbed.a, &["criu", "swrk"]));
    });
}

/// Strikes while memory streams: the migration is abandoned for this reason, and no client notices.
fn go_on_after(test: &str, reason: &str, strike: impl FnOnce(&Testbed)) {
    let Some(testbed) = systems(test, SLOW_MBIT) else {
        return;
    };
    let mut clients = start_streams(&testbed, common::LARGE_MIB);
    let before = acknowledged(&clients);
    let moving = Moving::start(&testbed.a, &testbed.b, "streams");
    moving.wait_for_memory(&testbed.a, 8 << 20);
    strike(&testbed);
    moving.end().must_be_abandoned(&[reason]);
    every_acknowledged_byte_was_read(&testbed, &testbed.a, &clients);
    uploads_go_on(&mut clients, &before);
    at(&testbed, &testbed.a, streams::PORT, echo::once);
    stop_streams(&testbed, clients, LOST_MAX);
    is_only_at(&testbed, &testbed.a, "streams", "/bin/ums-streams");
    remove(testbed);
}

/// Where another service has its address, a service keeps its own inside: its connections go on, and new
/// clients reach it, there and back again.
#[test]
fn a_service_whose_address_is_taken_moves_with_its_connections() {
    let test = "a_service_whose_address_is_taken_moves_with_its_connections";
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    start_ledger(&testbed, &testbed.b, 1).expect("the ledger runs");
    let taken = address_of(&testbed.b, "ledger");
    streams::start_with(&testbed, &testbed.a, None, 0, &["--address", &taken])
        .expect("the service runs");
    assert_eq!(address_of(&testbed.a, "streams"), taken);
    let at_a = SocketAddr::from((testbed.a.ip(), streams::PORT));
    let at_b = SocketAddr::from((testbed.b.ip(), streams::PORT));
    let open = |at| testbed.world.in_network(|| Echo::open(at, 1));
    let mut first = open(at_a).expect("a connection");
    first.exchange().expect("an answer");
    moved(&testbed, &testbed.a, &testbed.b, "streams");
    first.exchange().expect("an answer from the new place");
    let mut second = open(at_b).expect("a connection to the new place");
    second.exchange().expect("an answer");
    at(&testbed, &testbed.a, streams::PORT, echo::once);
    let ledger = SocketAddr::from((testbed.b.ip(), LEDGER_PORT));
    let verified = || ums_testbed::ledger::verify(ledger).map(drop);
    testbed.world.in_network(verified).expect("its neighbour");
    moved(&testbed, &testbed.b, &testbed.a, "streams");
    first.exchange().expect("an answer at home");
    second.exchange().expect("an answer at home");
    for system in [&testbed.a, &testbed.b] {
        at(&testbed, system, streams::PORT, echo::once);
    }
    testbed.world.in_network(verified).expect("its neighbour");
    drop((first, second));
    remove(testbed);
}

/// The service's own address, as `ums list` has it.
fn address_of(system: &System, service: &str) -> String {
    let text = system.ums_ok(&["list", "--json"]).expect("a list");
    let list: serde_json::Value = serde_json::from_str(&text).expect("a list");
    let specifications = list.as_array().into_iter().flatten();
    let mut specifications = specifications.map(|view| &view["specification"]);
    let own = specifications.find(|specification| specification["name"] == service);
    let address = own.expect("it is listed")["address"].as_str();
    address.expect("an address").to_owned()
}

/// A Frontman stays as long as a connection from before the move lives, however silent, and then for
/// its time.
#[test]
fn a_silent_connection_keeps_its_frontman() {
    let test = "a_silent_connection_keeps_its_frontman";
    let settings = format!("[limits]\nretire_seconds = {RETIRE_SECONDS}\n");
    let Some(testbed) = systems_set(test, 1000, &settings) else {
        return;
    };
    streams::start(&testbed, &testbed.a, None, 0).expect("the service runs");
    let address = SocketAddr::from((testbed.a.ip(), streams::PORT));
    let open = || Echo::open(address, 1);
    let mut echo = testbed.world.in_network(open).expect("a connection");
    echo.exchange().expect("an answer");
    moved(&testbed, &testbed.a, &testbed.b, "streams");
    let ends_at = || {
        let file = testbed.a.run_dir().join("tunnel/near/streams.json");
        let text = std::fs::read(testbed.a.outside(&file)).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
        record["status"]["ends_at"].as_u64()
    };
    let first = ends_at().expect("a Frontman");
    wait_for("a longer life", PATIENCE, || {
        let ends_at = ends_at().expect("a Frontman still");
        (ends_at > first + 2 * RETIRE_SECONDS).then_some(())
    })
    .expect("it is renewed");
    echo.exchange().expect("an answer from the new place");
    drop(echo);
    wait_for("its end", PATIENCE, || ends_at().is_none().then_some(())).expect("it ends");
    is_only_at(&testbed, &testbed.b, "streams", "/bin/ums-streams");
    remove(testbed);
}

/// Where systems work on connections, open ones are reset once at each switch, and a new client of the
/// old address is led to the new place.
#[test]
fn without_a_tunnel_connections_begin_anew_and_nothing_is_lost() {
    let test = "without_a_tunnel_connections_begin_anew_and_nothing_is_lost";
    let Some(testbed) = systems_set(test, 1000, "frontman = \"connections\"\n") else {
        return;
    };
    start_ledger(&testbed, &testbed.a, 1).expect("the ledger runs");
    let client = record(&testbed).expect("a client");
    let verified = |address| ums_testbed::ledger::verify(address).map(drop);
    moved(&testbed, &testbed.a, &testbed.b, "ledger");
    at(&testbed, &testbed.a, LEDGER_PORT, verified);
    moved(&testbed, &testbed.b, &testbed.a, "ledger");
    at(&testbed, &testbed.a, LEDGER_PORT, verified);
    is_only_at(&testbed, &testbed.a, "ledger", "/bin/ums-ledger");
    let recorded = client.stop().expect("the client goes on to the end");
    assert!(recorded.summary.reconnects >= 1, "{recorded:?}");
    nothing_acknowledged_is_lost(&testbed.a, &recorded);
    remove(testbed);
}

#[test]
fn late_requests_to_a_proxy_change_nothing() {
    let test = "late_requests_to_a_proxy_change_nothing";
    late_requests_change_nothing(test, "frontman = \"connections\"\n");
}

#[test]
fn late_requests_to_a_tunnel_change_nothing() {
    late_requests_change_nothing("late_requests_to_a_tunnel_change_nothing", "");
}

/// A request of another migration that comes late leads nobody away, and gives nothing back.
fn late_requests_change_nothing(test: &str, settings: &str) {
    let Some(testbed) = systems_set(test, 1000, settings) else {
        return;
    };
    start_ledger(&testbed, &testbed.a, 1).expect("the ledger runs");
    let verified = |address| ums_testbed::ledger::verify(address).map(drop);
    moved(&testbed, &testbed.a, &testbed.b, "ledger");
    at(&testbed, &testbed.a, LEDGER_PORT, verified);
    let nowhere = SocketAddr::from((testbed.b.ip(), LEDGER_PORT + 1));
    let lead = serde_json::json!({"service": "ledger", "endpoints": [nowhere]});
    let give_back = serde_json::json!({"service": "ledger"});
    let another = "01890000-0000-7000-8000-000000000000";
    for (operation, body) in [("lead", lead), ("yield", give_back)] {
        let path = format!("/v1/migrations/{another}/frontman/{operation}");
        let answer = post(&testbed.a, "agent.sock", &path, &body);
        assert!(answer.is_some(), "`{operation}` is answered");
        at(&testbed, &testbed.a, LEDGER_PORT, verified);
    }
    // Home, and away again, where a Frontman of the first time may be left.
    moved(&testbed, &testbed.b, &testbed.a, "ledger");
    at(&testbed, &testbed.a, LEDGER_PORT, verified);
    moved(&testbed, &testbed.a, &testbed.b, "ledger");
    at(&testbed, &testbed.a, LEDGER_PORT, verified);
    remove(testbed);
}

/// The streams service on `a`, and all of its clients at work.
fn start_streams(testbed: &Testbed, mib: u64) -> Clients {
    let server = streams::world_server(testbed).expect("a server in the world");
    let dial = server.local_addr().expect("it listens");
    streams::start(testbed, &testbed.a, Some(dial), mib).expect("the service runs");
    let clients = Clients::start(testbed, &testbed.a, server).expect("clients");
    let at_work = || {
        let sent = acknowledged(&clients).iter().all(|bytes| *bytes > 0);
        (sent && clients.called.load(Ordering::Relaxed)).then_some(())
    };
    let what = "every upload's first bytes, and the service's own call";
    wait_for(what, PATIENCE, at_work).expect("they begin");
    clients
}

/// Ends the streams and their clients. All went well, and no more datagrams are lost than these.
fn stop_streams(testbed: &Testbed, mut clients: Clients, lost_max: u64) {
    nobody_gave_up(&mut clients.loads);
    let address = SocketAddr::from((testbed.a.ip(), streams::PORT));
    Clients::finish(testbed, address).expect("the service ends its streams");
    let mut found = clients.loads.stop();
    for (_, result) in found.iter_mut().filter(|(name, _)| name == "udp") {
        if let Ok(udp) = result {
            eprintln!("{} of {} datagrams lost", udp.failed, udp.requests);
            udp.failed = udp.failed.saturating_sub(lost_max);
        }
    }
    all_went_well(found);
}

fn all_went_well(found: Vec<(String, Result<Summary>)>) {
    let mut wrong = Vec::new();
    for (name, result) in found {
        match result {
            Ok(seen) => {
                let gap = seen.longest_gap_ms;
                eprintln!(
                    "{name}: {} requests, longest gap {gap:.1} ms",
                    seen.requests
                );
                let well = seen.requests > 0 && (seen.failed, seen.reconnects) == (0, 0);
                wrong.extend((!well).then(|| format!("{seen:?}")));
            }
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

fn moved(testbed: &Testbed, from: &System, to: &System, service: &str) -> MigrationReport {
    let report = testbed.migrate(from, to, service, &[]).expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let ms = |value: Option<f64>| value.unwrap_or_default();
    let (downtime, freeze) = (ms(report.downtime_ms), ms(report.freeze_ms));
    eprintln!(
        "{service} to {}: downtime {downtime:.1} ms, frozen {freeze:.1} ms",
        to.name()
    );
    report
}

fn acknowledged(clients: &Clients) -> Vec<u64> {
    let each = clients.uploads.iter();
    each.map(|(_, progress)| progress.acknowledged()).collect()
}

/// What the clients' kernels hold to be received has been read by the service that runs now, or
/// will be: acknowledged in the name of a copy that is gone, it would never be.
fn every_acknowledged_byte_was_read(testbed: &Testbed, system: &System, clients: &Clients) {
    let address = SocketAddr::from((system.ip(), streams::PORT));
    for (id, progress) in &clients.uploads {
        let acknowledged = progress.acknowledged();
        let read = wait_for("what was acknowledged", PATIENCE, || {
            let read = testbed.world.in_network(|| account(address, *id)).ok()?;
            // The slow one has some MiB before it, and is compared at its end.
            (read.bytes >= acknowledged || *id == streams::SLOW).then_some(read)
        });
        let read = read.unwrap_or_else(|error| panic!("{error}: {acknowledged} bytes of {id}"));
        assert_eq!(read, Account::expected(*id, read.bytes), "stream {id}");
    }
}

fn uploads_go_on(clients: &mut Clients, before: &[u64]) {
    let more = wait_for("more of every upload", PATIENCE, || {
        nobody_gave_up(&mut clients.loads);
        let now = acknowledged(clients);
        let grown = now.iter().zip(before).all(|(now, before)| now > before);
        grown.then_some(())
    });
    more.expect("they go on");
}

fn nobody_gave_up(loads: &mut Loads) {
    let ended = loads.ended();
    assert!(ended.is_empty(), "clients gave up: {ended:#?}");
}

/// The clients did send while nobody answered.
fn uploads_were_held(clients: &Clients) {
    for (id, progress) in &clients.uploads {
        let held = progress.unacknowledged_max();
        assert!(
            held >= HELD_MIN,
            "stream {id}: at most {held} bytes were held"
        );
    }
}

/// Does something as a new client of the system's endpoint.
fn at(
    testbed: &Testbed,
    system: &System,
    port: u16,
    work: impl Fn(SocketAddr) -> Result<()> + Sync,
) {
    let address = SocketAddr::from((system.ip(), port));
    let done = testbed.world.in_network(|| work(address));
    done.unwrap_or_else(|error| panic!("a new client at {address}: {error:#}"));
}
