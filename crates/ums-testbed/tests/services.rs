//! Real services are moved under load: no client loses its connection, all data is right, and nothing
//! of them stands in the way of a move.

mod common;

use common::{PATIENCE, exit, get, remains, remove, systems};
use ums_core::report::Outcome;
use ums_testbed::services::{Clients, Footprint, Service};
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{Tools, skipped, wait_for};

/// The link's rate where it does not matter, Mbit/s.
const RATE_MBIT: u32 = 1000;

/// Moves of each service: by default, and in a long test.
const MOVES: [usize; 2] = [3, 10];

/// Nothing of it is refused, and nothing of it is lost that anybody would have to agree to.
fn nothing_stands_in_the_way(at: &System, to: &System, service: &Service) {
    let plan = ["plan", service.name, "--to", to.name()];
    let output = at.ums(&plan).expect("`ums plan` starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(exit::DONE), "{said}");
}

/// All memory has arrived, and its size is known.
fn settled(at: &System, service: &Service) -> Footprint {
    let settled = wait_for("the last pages", PATIENCE, || {
        let migrations = get(at, "agent.sock", "/v1/migrations")?;
        migrations.as_array()?.is_empty().then_some(())
    });
    settled.unwrap_or_else(|error| panic!("{error}: {}", at.said()));
    Footprint::of(at, service.name)
}

/// Where it is not, there is nothing of it.
fn nothing_remains(other: &System, name: &str) {
    let mut seen = Vec::new();
    let gone = wait_for("nothing of it where it is not", PATIENCE, || {
        seen = remains(other, name);
        let processes = Footprint::of(other, name).processes;
        (seen.is_empty() && processes == 0).then_some(())
    });
    gone.unwrap_or_else(|error| panic!("{error}: {seen:#?}"));
}

fn is_well(clients: &mut dyn Clients, testbed: &Testbed, at: &System, moves: usize) {
    let checked = clients.check(testbed, at);
    checked.unwrap_or_else(|error| {
        let (name, said) = (at.name(), at.said());
        panic!("after {moves} moves, at {name}: {error:?}\n{said}")
    });
}

/// There, back at once, and so on; its data is looked at after every second and every third move.
fn is_moved(testbed: &Testbed, service: &Service, clients: &mut dyn Clients, moves: usize) {
    let (mut from, mut to) = (&testbed.a, &testbed.b);
    for turn in 1..=moves {
        let begun = clients.before_a_move(testbed, from);
        begun.unwrap_or_else(|error| panic!("before move {turn}: {error:#}"));
        let report = testbed.migrate(from, to, service.name, &[]);
        let report = report.expect("a report");
        eprintln!(
            "move {turn}: {:?}, {} rounds, frozen for {:?} ms",
            report.bytes, report.rounds, report.freeze_ms
        );
        let (outcome, error) = (report.outcome, report.error);
        assert_eq!(outcome, Outcome::Completed, "move {turn}: {error:?}");
        if turn % 2 == 0 || turn % 3 == 0 {
            is_well(clients, testbed, to, turn);
        }
        (from, to) = (to, from);
    }
}

fn moves_under_load(test: &str, name: &str) {
    let service = Service::named(name).expect("a service");
    let tools = Tools::find().expect("this program's own path is known");
    if let Some(lacking) = service.lacking(&tools) {
        return skipped(test, &lacking);
    }
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    let moves = MOVES[usize::from(std::env::var_os("UMS_TEST_LONG").is_some())];
    service.start(&testbed, &testbed.a).expect("it runs");
    let mut clients = service.clients(&testbed, &testbed.a).expect("its clients");
    is_well(&mut *clients, &testbed, &testbed.a, 0);
    nothing_stands_in_the_way(&testbed.a, &testbed.b, &service);
    let before = Footprint::of(&testbed.a, name);
    is_moved(&testbed, &service, &mut *clients, moves);
    let at = [&testbed.a, &testbed.b][moves % 2];
    let after = settled(at, &service);
    eprintln!("{name}: {before} before {moves} moves, {after} afterwards");
    for (client, summary) in clients.stop() {
        let seen = summary.unwrap_or_else(|error| panic!("{client} of {name}: {error:#}"));
        assert!(seen.requests > 0, "{seen:?}");
        assert_eq!((seen.failed, seen.reconnects), (0, 0), "{seen:?}");
    }
    let most = service.mib_max * 1024;
    assert!(after.anonymous_kib <= most, "{name} takes {after}");
    let other = [&testbed.b, &testbed.a][moves % 2];
    nothing_remains(other, name);
    remove(testbed);
}

#[test]
fn a_go_server_moves_under_load() {
    moves_under_load("a_go_server_moves_under_load", "go");
}

#[test]
fn a_java_server_moves_under_load() {
    moves_under_load("a_java_server_moves_under_load", "jvm");
}

#[test]
fn a_node_server_moves_under_load() {
    moves_under_load("a_node_server_moves_under_load", "node");
}

#[test]
fn a_python_server_that_forks_its_workers_moves_under_load() {
    let test = "a_python_server_that_forks_its_workers_moves_under_load";
    moves_under_load(test, "prefork");
}

#[test]
fn a_supervisor_moves_under_load() {
    moves_under_load("a_supervisor_moves_under_load", "supervisor");
}

#[test]
fn nginx_moves_under_load() {
    moves_under_load("nginx_moves_under_load", "nginx");
}

#[test]
fn memcached_moves_under_load() {
    moves_under_load("memcached_moves_under_load", "memcached");
}

#[test]
fn redis_moves_while_it_saves() {
    moves_under_load("redis_moves_while_it_saves", "redis");
}

#[test]
fn postgresql_moves_under_load() {
    moves_under_load("postgresql_moves_under_load", "postgresql");
}
