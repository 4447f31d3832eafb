//! Post-copy and hybrid with real tools: pages stay at the source until the service runs at the destination,
//! and come over to the last one; or the service is dead there, and the source says so.

mod common;

use common::{
    LARGE_MIB, LINK_MBIT, Moving, PATIENCE, SLOW_MBIT, agent, exit, process, processes, remove,
    strike,
};
use ums_core::report::{MigrationReport, Outcome};
use ums_testbed::client::keys;
use ums_testbed::hog::Request;
use ums_testbed::specimen::ALL;
use ums_testbed::system::System;
use ums_testbed::testbed::{PEER_LINK, Testbed};
use ums_testbed::tools::{run, wait_for};
use ums_testbed::workload::{REDIS_PORT, addresses, ask_hog, count, start_hog, start_redis};

/// Memory of the hog that moves there and back, MiB.
const HOG_MIB: u64 = 256;
/// Keys that Redis holds.
const KEYS: u64 = 20_000;

/// Moves it; says for how long the service needed its source, milliseconds.
fn migrate(
    testbed: &Testbed,
    (from, to): (&System, &System),
    service: &str,
    technique: &str,
) -> MigrationReport {
    let report = testbed.migrate(from, to, service, &["--technique", technique]);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let words = serde_json::to_value(report.technique).expect("a word");
    assert_eq!(words, technique);
    eprintln!(
        "{technique}: down for {:?} ms, at risk for {:?} ms, {} rounds",
        report.downtime_ms, report.at_risk_ms, report.rounds
    );
    report
}

fn is_intact(testbed: &Testbed, at: &System) {
    let status = ask_hog(testbed, at, Request::Verify).expect("it answers");
    assert_eq!(status.intact, Some(true), "{status:?}");
}

#[test]
fn memory_that_stayed_behind_comes_there_and_back() {
    let test = "memory_that_stayed_behind_comes_there_and_back";
    let Some(testbed) = common::systems_with_hog(test, LINK_MBIT, HOG_MIB) else {
        return;
    };
    let (there, back) = ((&testbed.a, &testbed.b), (&testbed.b, &testbed.a));
    let first = migrate(&testbed, there, "hog", "post-copy");
    is_intact(&testbed, &testbed.b);
    // Over this link all of it takes two seconds at the least: it did not go in the freeze.
    assert!(first.at_risk_ms > first.downtime_ms, "{first:?}");
    migrate(&testbed, back, "hog", "post-copy");
    is_intact(&testbed, &testbed.a);
    let plan = ["plan", "hog", "--to", "b", "--technique", "hybrid"];
    if testbed.a.ums(&plan).expect("a plan").status.success() {
        let hybrid = migrate(&testbed, there, "hog", "hybrid");
        assert!(
            hybrid.rounds >= 1 && hybrid.at_risk_ms.is_some(),
            "{hybrid:?}"
        );
        is_intact(&testbed, &testbed.b);
    }
    remove(testbed);
}

/// Services whose memory is of several processes, and of every kind.
const SPECIMENS: [&str; 5] = ["forked", "torture", "locked", "hugepage", "wipeonfork"];

#[test]
fn memory_of_every_kind_and_of_many_processes_moves_by_post_copy() {
    let test = "memory_of_every_kind_and_of_many_processes_moves_by_post_copy";
    let Some(testbed) = common::systems(test, LINK_MBIT) else {
        return;
    };
    let (there, back) = ((&testbed.a, &testbed.b), (&testbed.b, &testbed.a));
    for name in SPECIMENS {
        let specimen = ALL.iter().find(|one| one.name == name);
        let specimen = specimen.expect("it is listed");
        specimen.start(&testbed, &testbed.a).expect("it runs");
        for (from, to) in [there, back] {
            migrate(&testbed, (from, to), specimen.name, "post-copy");
            let well = specimen.goes_on(to);
            well.unwrap_or_else(|error| panic!("{}: {error:#}", specimen.name));
        }
        specimen.remove(&testbed.a).expect("it is removed");
    }
    remove(testbed);
}

#[test]
fn redis_moves_by_post_copy_while_it_is_written() {
    let test = "redis_moves_by_post_copy_while_it_is_written";
    let Some(testbed) = common::systems(test, LINK_MBIT) else {
        return;
    };
    start_redis(&testbed, &testbed.a).expect("redis runs");
    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis, KEYS));
    set.expect("the keys are set");
    let counter = count(&testbed).expect("a counter");
    for (from, to) in [(&testbed.a, &testbed.b), (&testbed.b, &testbed.a)] {
        migrate(&testbed, (from, to), "redis", "post-copy");
        let here = redis.iter().filter(|address| address.ip() == to.ip());
        let here: Vec<_> = here.copied().collect();
        let wrong = testbed.world.in_network(|| keys::wrong(&here, KEYS));
        assert_eq!(wrong.expect("the keys are read"), 0);
    }
    let counted = counter.stop().expect("the counter's client goes on");
    assert_eq!((counted.lost, counted.doubled), (0, 0));
    assert_eq!(counted.value, counted.summary.requests);
    remove(testbed);
}

/// A migration whose service runs at the destination already, with memory still at the source.
fn at_risk(testbed: &Testbed) -> Moving {
    let moving = Moving::start_by("post-copy", &testbed.a, &testbed.b, "hog");
    moving.wait(&testbed.a, "the service at the destination", |view| {
        let phase = view["progress"]["phase"].as_str().unwrap_or_default();
        phase.contains("still come from here")
    });
    moving
}

#[test]
fn agents_that_are_killed_meanwhile_cost_nothing() {
    let test = "agents_that_are_killed_meanwhile_cost_nothing";
    let Some(testbed) = common::systems_with_hog(test, SLOW_MBIT, 2 * LARGE_MIB) else {
        return;
    };
    let moving = at_risk(&testbed);
    strike(agent(&testbed.a));
    strike(agent(&testbed.b));
    let ended = moving.end();
    assert_eq!(ended.report.outcome, Outcome::Completed, "{ended:?}");
    assert!(ended.report.at_risk_ms.is_some(), "{ended:?}");
    is_intact(&testbed, &testbed.b);
    remove(testbed);
}

fn link(testbed: &Testbed, state: &str) {
    let mut ip = testbed.a.exec("ip");
    run(ip.args(["link", "set", PEER_LINK, state])).expect("the link obeys");
}

#[test]
fn a_link_that_was_cut_and_coordinators_that_were_killed_meanwhile_cost_nothing() {
    let test = "a_link_that_was_cut_and_coordinators_that_were_killed_meanwhile_cost_nothing";
    let Some(mut testbed) = common::systems_with_hog(test, SLOW_MBIT, 2 * LARGE_MIB) else {
        return;
    };
    let moving = at_risk(&testbed);
    link(&testbed, "down");
    for system in [&mut testbed.a, &mut testbed.b] {
        system.kill_coordinator().expect("it was running");
        system.start_coordinator().expect("it answers again");
    }
    assert!(
        !processes(&testbed.b, &["ums-agent", "pager"]).is_empty(),
        "all memory was there before the link was cut: nothing was tried"
    );
    link(&testbed, "up");
    let ended = moving.end();
    assert_eq!(ended.report.outcome, Outcome::Completed, "{ended:?}");
    is_intact(&testbed, &testbed.b);
    remove(testbed);
}

/// The hogs of a system, by their names: their command lines are in memory that may be away.
fn hogs(system: &System) -> Vec<i32> {
    let is_hog = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "ums-hog")
    };
    let mut found = system.namespace().members();
    found.retain(is_hog);
    found
}

/// The instance at the destination dies, the source says so, and a person has it run on there from the commit.
fn is_dead_there_and_taken_back(testbed: &Testbed, moving: Moving) {
    wait_for("the instance's death", PATIENCE, || {
        hogs(&testbed.b).is_empty().then_some(())
    })
    .expect("it does not execute with wrong memory");
    link(testbed, "up");
    let ended = moving.end();
    assert_eq!(ended.report.outcome, Outcome::Stuck, "{ended:?}");
    assert_eq!(ended.code, Some(exit::STUCK), "{ended:?}");
    for words in [
        "is dead there",
        "frozen, with the memory of the commit",
        "ums resolve",
    ] {
        assert!(ended.error().contains(words), "{ended:?}");
    }
    let here = common::services(&testbed.a).expect("its services");
    assert_eq!(here[0]["status"], "frozen", "{here:#?}");

    let dead = testbed.b.ums_ok(&["rm", "hog"]);
    dead.expect("what is dead is removed");
    let resolve = ["resolve", "hog", "--take-back", "--accept-risk-for", "hog"];
    testbed.a.ums_ok(&resolve).expect("it is taken back");
    is_intact(testbed, &testbed.a);
    wait_for("the end of the pagers", PATIENCE, || {
        let left = [&testbed.a, &testbed.b].map(|at| processes(at, &["ums-agent", "pager"]).len());
        (left == [0, 0]).then_some(())
    })
    .expect("no pager is left");
    testbed.a.ums_ok(&["rm", "hog"]).expect("removed");
}

#[test]
fn what_is_lost_with_pages_away_is_a_dead_instance_and_a_source_that_says_so() {
    let test = "what_is_lost_with_pages_away_is_a_dead_instance_and_a_source_that_says_so";
    // What does not come back is given up after the data path's patience.
    let settings = "[limits]\nidle_seconds = 15\n";
    let Some(testbed) = common::systems_set(test, SLOW_MBIT, settings) else {
        return;
    };
    let pager: &[&str] = &["ums-agent", "pager"];
    let lost: [(&str, &dyn Fn()); 4] = [
        ("the destination's pager", &|| {
            strike(process(&testbed.b, pager))
        }),
        ("the source's pager", &|| strike(process(&testbed.a, pager))),
        ("the destination's keeper", &|| {
            strike(process(&testbed.b, &["ums-agent", "keeper"]));
        }),
        ("the link", &|| link(&testbed, "down")),
    ];
    for (what, lose) in lost {
        eprintln!("lost: {what}");
        let hog = start_hog(&testbed, &testbed.a, "hog", 2 * LARGE_MIB);
        hog.expect("the hog runs");
        let moving = at_risk(&testbed);
        assert_eq!(hogs(&testbed.b).len(), 1);
        lose();
        is_dead_there_and_taken_back(&testbed, moving);
    }
    remove(testbed);
}
