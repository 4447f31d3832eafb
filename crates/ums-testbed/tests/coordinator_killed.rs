//! A Coordinator is killed at a step and started again: the migration is completed or undone, one
//! instance runs, and no acknowledged increment is lost or applied twice.
//!
//! Which of the two ends comes about depends on how far the step was when the blow fell; before
//! the commit it may be either, after it only completion.

mod common;

use common::{Moving, SLOW_MBIT, coordinator, exit, is_only_at, remove, strike, systems};
use ums_core::report::Outcome;
use ums_testbed::client::keys;
use ums_testbed::testbed::Testbed;
use ums_testbed::workload::{REDIS_PORT, addresses, count, start_redis};

/// Keys that are moved along, so that there is something to be lost.
const KEYS: u64 = 20_000;

/// First step from which there is no way back.
const COMMIT: u64 = 13;

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Source,
    Destination,
}

fn killed_at(test: &str, side: Side, step: u64) {
    let Some(mut testbed) = systems(test, SLOW_MBIT) else {
        return;
    };
    start_redis(&testbed, &testbed.a).expect("redis runs");
    let redis = addresses(&testbed, REDIS_PORT);
    let set = || keys::set(&redis, KEYS);
    testbed.world.in_network(set).expect("the keys are set");
    let counter = count(&testbed).expect("a counter");

    let victim = match side {
        Side::Source => coordinator(&testbed.a),
        Side::Destination => coordinator(&testbed.b),
    };
    let moving = Moving::start(&testbed.a, &testbed.b, "redis");
    moving.wait_for_step(&testbed.a, step);
    strike(victim);
    restart(&mut testbed, side);
    let ended = moving.end();

    let report = &ended.report;
    let reached = report.steps.last().map_or(0, |step| step.step);
    eprintln!(
        "{test}: reached {reached}, {:?} {:?}",
        report.outcome, report.error
    );
    let at = match (report.outcome, ended.code) {
        (Outcome::Completed, Some(exit::DONE)) => &testbed.b,
        (Outcome::Abandoned, Some(exit::ABANDONED)) => &testbed.a,
        _ => panic!("{ended:?}"),
    };
    if step >= COMMIT {
        assert_eq!(report.outcome, Outcome::Completed, "{ended:?}");
    }
    if report.outcome == Outcome::Abandoned {
        assert!(!ended.error().is_empty(), "an abandoned migration says why");
    }
    is_only_at(&testbed, at, "redis", "/bin/redis-server");
    let here: Vec<_> = redis
        .iter()
        .filter(|address| address.ip() == at.ip())
        .copied()
        .collect();
    let wrong = testbed.world.in_network(|| keys::wrong(&here, KEYS));
    assert_eq!(wrong.expect("redis answers"), 0, "keys that are wrong");
    let counted = counter.stop().expect("the client goes on to the end");
    assert_eq!((counted.lost, counted.doubled), (0, 0), "{counted:?}");
    assert_eq!(counted.summary.failed, 0, "{counted:?}");
    assert_eq!(counted.value, counted.summary.requests, "{counted:?}");
    remove(testbed);
}

fn restart(testbed: &mut Testbed, side: Side) {
    let system = match side {
        Side::Source => &mut testbed.a,
        Side::Destination => &mut testbed.b,
    };
    system.kill_coordinator().expect("it was running");
    system.start_coordinator().expect("it answers again");
}

macro_rules! killed {
    ($($name:ident: $side:expr, $step:expr;)*) => {$(
        #[test]
        fn $name() {
            killed_at(stringify!($name), $side, $step);
        }
    )*};
}

killed! {
    source_killed_while_it_sends_the_specification: Side::Source, 3;
    source_killed_while_files_are_copied: Side::Source, 7;
    source_killed_while_the_service_is_frozen: Side::Source, 8;
    source_killed_while_the_destination_restores: Side::Source, 11;
    source_killed_when_the_service_is_held: Side::Source, 12;
    source_killed_after_the_commit: Side::Source, 13;
    source_killed_while_it_announces: Side::Source, 14;
    source_killed_while_it_deletes: Side::Source, 15;
    destination_killed_while_it_gets_the_specification: Side::Destination, 3;
    destination_killed_while_files_are_copied: Side::Destination, 7;
    destination_killed_while_the_service_is_frozen: Side::Destination, 8;
    destination_killed_while_it_restores: Side::Destination, 11;
    destination_killed_while_the_service_is_held: Side::Destination, 12;
    destination_killed_after_the_commit: Side::Destination, 13;
    destination_killed_when_the_service_runs_there: Side::Destination, 14;
    destination_killed_before_the_end: Side::Destination, 15;
}
