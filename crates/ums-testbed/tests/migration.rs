//! The main job with real tools: services move between two systems.

mod common;

use common::LINK_MBIT;
use ums_core::report::Outcome;
use ums_testbed::client::keys;
use ums_testbed::hog::Request;
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::workload::{
    REDIS_PORT, addresses, ask_hog, count, request, start_hog, start_http, start_redis,
};

/// Keys that Redis holds: fewer than in the demonstration, for several tests run at once.
const KEYS: u64 = 20_000;

/// How far the reported downtime may be from what the service itself saw, milliseconds.
const DOWNTIME_TOLERANCE_MS: f64 = 30.0;

/// Most moves of which one has to agree.
const COMPARED_MAX: usize = 12;

/// Two systems, joined by the link that is usual.
fn systems(test: &str) -> Option<Testbed> {
    common::systems(test, LINK_MBIT)
}

#[test]
fn redis_moves_there_and_back_with_all_keys_and_the_counter_right() {
    let Some(testbed) = systems("redis_moves_there_and_back_with_all_keys_and_the_counter_right")
    else {
        return;
    };
    start_redis(&testbed, &testbed.a).expect("redis runs");
    let redis = addresses(&testbed, REDIS_PORT);
    testbed
        .world
        .in_network(|| keys::set(&redis, KEYS))
        .expect("the keys are set");
    let counter = count(&testbed).expect("a counter");
    for (from, to) in [(&testbed.a, &testbed.b), (&testbed.b, &testbed.a)] {
        let report = testbed.migrate(from, to, "redis", &[]).expect("a report");
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        assert_eq!(report.steps.len(), 15);
        let here: Vec<_> = redis
            .iter()
            .filter(|address| address.ip() == to.ip())
            .copied()
            .collect();
        let wrong = testbed
            .world
            .in_network(|| keys::wrong(&here, KEYS))
            .expect("redis answers");
        assert_eq!(wrong, 0, "keys that are wrong on {}", to.name());
    }
    let counted = counter
        .stop()
        .expect("the counter's client goes on to the end");
    assert_eq!(
        (counted.lost, counted.doubled, counted.summary.failed),
        (0, 0, 0)
    );
    assert_eq!(counted.value, counted.summary.requests);
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

/// Images in a system's store that are whole.
fn images(system: &System) -> usize {
    let entries = std::fs::read_dir(system.state_dir().join("images"));
    let names = entries.into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).count()
}

#[test]
fn nothing_is_done_about_the_image_in_the_freeze() {
    let test = "nothing_is_done_about_the_image_in_the_freeze";
    let Some(testbed) = common::systems_with_hog(test, common::SLOW_MBIT, common::LARGE_MIB) else {
        return;
    };
    assert_eq!(images(&testbed.b), 0);
    let moving = common::Moving::start(&testbed.a, &testbed.b, "hog");
    moving.wait_for_memory(&testbed.a, 1 << 20);
    // It is frozen, most of its memory is still to come, and its image is whole and verified.
    assert_eq!(images(&testbed.b), 1);
    let view = moving.view(&testbed.a).expect("it is under way");
    assert_eq!(view["progress"]["step"].as_u64(), Some(8), "{view}");
    assert_eq!(moving.end().report.outcome, Outcome::Completed);
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

#[test]
fn no_http_request_fails_while_its_service_moves() {
    let Some(testbed) = systems("no_http_request_fails_while_its_service_moves") else {
        return;
    };
    start_http(&testbed, &testbed.a).expect("the service runs");
    let load = request(&testbed).expect("clients");
    let report = testbed
        .migrate(&testbed.a, &testbed.b, "http", &[])
        .expect("a report");
    let summary = load.stop().expect("the clients go on to the end");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert!(summary.requests > 0);
    assert_eq!(summary.failed, 0, "{summary:?}");
}

#[test]
fn memory_is_right_where_userfaultfd_is_not_used() {
    let Some(mut testbed) = systems("memory_is_right_where_userfaultfd_is_not_used") else {
        return;
    };
    // Only b: the way back is by userfaultfd again.
    testbed.b.kill_coordinator().expect("it was running");
    let mut config = std::fs::read_to_string(testbed.b.config()).expect("a configuration");
    config.push_str("restore = \"eager\"\n");
    std::fs::write(testbed.b.config(), config).expect("written");
    let agent = testbed.b.namespace().members().into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("ums-agent\0serve")
    });
    let agent = nix::unistd::Pid::from_raw(agent.expect("an agent"));
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGKILL).expect("it ends");
    testbed.b.start_coordinator().expect("it answers again");

    start_hog(&testbed, &testbed.a, "hog", 64).expect("the hog runs");
    let plan = testbed.a.ums_ok(&["plan", "hog", "--to", "b"]);
    let plan = plan.expect("nothing stands in the way");
    assert!(
        plan.contains("before it runs there: `restore` is set"),
        "{plan}"
    );
    let doctor = testbed.b.ums(&["doctor"]).expect("it runs").stdout;
    let doctor = String::from_utf8_lossy(&doctor);
    assert!(doctor.contains("`restore` is set to `eager`"), "{doctor}");
    for (from, to) in [(&testbed.a, &testbed.b), (&testbed.b, &testbed.a)] {
        let report = testbed.migrate(from, to, "hog", &[]).expect("a report");
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        let status = ask_hog(&testbed, to, Request::Verify).expect("the hog answers");
        assert_eq!(status.intact, Some(true), "at {}", to.name());
    }
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

#[test]
fn the_reported_downtime_is_what_the_service_saw() {
    let Some(testbed) = systems("the_reported_downtime_is_what_the_service_saw") else {
        return;
    };
    start_hog(&testbed, &testbed.a, "hog", 32).expect("the hog runs");
    // A busy machine lets the service wait for its turn beyond the switch, so one of several moves
    // counts: a report that is wrong is wrong in each.
    let ways = [(&testbed.a, &testbed.b), (&testbed.b, &testbed.a)];
    let mut compared: Vec<(f64, f64)> = Vec::new();
    for (from, to) in ways.iter().cycle().take(COMPARED_MAX) {
        ask_hog(&testbed, from, Request::Reset).expect("the hog answers");
        let report = testbed.migrate(from, to, "hog", &[]).expect("a report");
        let status = ask_hog(&testbed, to, Request::Verify).expect("the hog answers");
        assert_eq!(status.intact, Some(true));
        let reported = report.downtime_ms.expect("there was a switch");
        compared.push((reported, status.largest_gap_ms));
        if (status.largest_gap_ms - reported).abs() <= DOWNTIME_TOLERANCE_MS {
            break;
        }
    }
    let last = compared
        .last()
        .map(|(reported, seen)| (seen - reported).abs());
    assert!(
        last.is_some_and(|differs| differs <= DOWNTIME_TOLERANCE_MS),
        "reported and seen, ms: {compared:?}"
    );
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}
