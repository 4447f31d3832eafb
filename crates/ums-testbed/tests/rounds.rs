//! Pre-copy with real tools: memory goes over in rounds, and is right at the other end.

mod common;

use common::{LARGE_MIB, LINK_MBIT, Moving, SLOW_MBIT, agent, hog_stayed, process, strike};
use ums_core::plan::Plan;
use ums_core::report::{MigrationReport, Outcome};
use ums_core::technique::Technique;
use ums_testbed::client::keys;
use ums_testbed::hog::Request;
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::skipped;
use ums_testbed::workload::{
    REDIS_PORT, addresses, ask_hog, count, start_hog, start_hog_with, start_redis,
};

/// Keys that Redis holds.
const KEYS: u64 = 20_000;
/// Memory of the hog, MiB.
const HOG_MIB: u64 = 128;
/// Memory of which some has certainly gone over, and more has not.
const PART_BYTES: u64 = 8 << 20;
/// Moves of each service.
const MOVES: usize = 4;

/// Two systems, joined by the link that is usual.
fn systems(test: &str) -> Option<Testbed> {
    common::systems(test, LINK_MBIT)
}

/// Whether the kernel tells which pages change.
fn can(test: &str, testbed: &Testbed, service: &str) -> bool {
    let plan = ["plan", service, "--to", "b", "--technique", "pre-copy"];
    let output = testbed.a.ums(&plan).expect("a plan");
    let can = output.status.success();
    if !can {
        skipped(test, "a kernel that tells which pages change (Linux 6.7)");
    }
    can
}

/// Moves it by pre-copy.
fn migrate(testbed: &Testbed, from: &System, to: &System, service: &str) -> MigrationReport {
    let options = ["--technique", "pre-copy"];
    let report = testbed.migrate(from, to, service, &options);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert_eq!(report.technique, Some(Technique::PreCopy));
    report
}

#[test]
fn memory_that_went_over_in_rounds_is_right() {
    let test = "memory_that_went_over_in_rounds_is_right";
    let Some(testbed) = systems(test) else {
        return;
    };
    start_hog(&testbed, &testbed.a, "hog", HOG_MIB).expect("the hog runs");
    if !can(test, &testbed, "hog") {
        return;
    }
    let (mut from, mut to) = (&testbed.a, &testbed.b);
    for _ in 0..MOVES {
        let report = migrate(&testbed, from, to, "hog");
        assert!(report.rounds >= 1, "{report:?}");
        let status = ask_hog(&testbed, to, Request::Verify).expect("it answers");
        assert_eq!(status.intact, Some(true), "{status:?}");
        eprintln!(
            "{} rounds, frozen for {:?} ms",
            report.rounds, report.freeze_ms
        );
        (from, to) = (to, from);
    }
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

#[test]
fn redis_moves_by_pre_copy_while_it_is_written() {
    let test = "redis_moves_by_pre_copy_while_it_is_written";
    let Some(testbed) = systems(test) else {
        return;
    };
    start_redis(&testbed, &testbed.a).expect("redis runs");
    if !can(test, &testbed, "redis") {
        return;
    }
    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis, KEYS));
    set.expect("the keys are set");
    let counter = count(&testbed).expect("a counter");
    let (mut from, mut to) = (&testbed.a, &testbed.b);
    for _ in 0..MOVES {
        let report = migrate(&testbed, from, to, "redis");
        assert!(report.rounds >= 1, "{report:?}");
        let here: Vec<_> = redis
            .iter()
            .filter(|address| address.ip() == to.ip())
            .copied()
            .collect();
        let wrong = testbed.world.in_network(|| keys::wrong(&here, KEYS));
        assert_eq!(wrong.expect("the keys are read"), 0);
        (from, to) = (to, from);
    }
    let counted = counter.stop().expect("the counter's client goes on");
    assert_eq!((counted.lost, counted.doubled), (0, 0));
    assert_eq!(counted.value, counted.summary.requests);
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

/// A migration whose rounds are under way, with more to come.
fn in_rounds(testbed: &Testbed) -> Moving {
    let moving = Moving::start_by("pre-copy", &testbed.a, &testbed.b, "hog");
    moving.wait(&testbed.a, "a round", |view| {
        let bytes = view["report"]["bytes"]["memory"].as_u64();
        view["report"]["rounds"].as_u64() >= Some(1) && bytes >= Some(PART_BYTES)
    });
    moving
}

/// Nothing is left in a process of what has tracked it.
fn is_not_tracked(pid: i32) {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its mappings");
    let flags = smaps
        .lines()
        .filter_map(|line| line.strip_prefix("VmFlags:"));
    let tracked = flags.filter(|flags| flags.split_whitespace().any(|flag| flag == "uw"));
    assert_eq!(tracked.count(), 0, "mappings that are tracked");
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    let links = entries.map(|entry| std::fs::read_link(entry.expect("an entry").path()));
    let uffd = |link: &std::io::Result<std::path::PathBuf>| {
        let link = link.as_ref().ok();
        link.is_some_and(|link| link.to_string_lossy().contains("userfaultfd"))
    };
    assert_eq!(links.filter(uffd).count(), 0, "descriptors that track");
}

/// What is predicted of a move of the hog, by a look at what it writes.
fn measured(testbed: &Testbed) -> Plan {
    let plan = ["plan", "hog", "--to", "b", "--measure", "--json"];
    let output = testbed.a.ums(&plan).expect("a plan");
    serde_json::from_slice(&output.stdout).expect("a plan as JSON")
}

#[test]
fn a_plan_reckons_with_what_the_service_writes() {
    let test = "a_plan_reckons_with_what_the_service_writes";
    let Some(testbed) = systems(test) else {
        return;
    };
    start_hog(&testbed, &testbed.a, "hog", HOG_MIB).expect("the hog runs");
    if !can(test, &testbed, "hog") {
        return;
    }
    let pid = process(&testbed.a, &["/bin/ums-hog"]);
    let quiet = measured(&testbed);
    is_not_tracked(pid);
    let Some(little) = quiet.prediction.written_bytes_per_second else {
        panic!("it was not measured: {quiet:?}");
    };
    assert_eq!(quiet.unmeasured, None);
    for (from, to) in [(&testbed.a, &testbed.b), (&testbed.b, &testbed.a)] {
        let report = migrate(&testbed, from, to, "hog");
        let predicted = report.predicted.expect("what was predicted");
        assert!(predicted.memory_bytes >= HOG_MIB << 20, "{predicted:?}");
        assert!(predicted.downtime_ms > 0, "{predicted:?}");
    }
    let status = ask_hog(&testbed, &testbed.a, Request::Verify).expect("it answers");
    assert_eq!(status.intact, Some(true), "{status:?}");
    // The first migration has shown what the link is good for.
    let rate = measured(&testbed).prediction.bytes_per_second;
    assert_ne!(rate, quiet.prediction.bytes_per_second);
    testbed.a.ums_ok(&["rm", "hog"]).expect("it is removed");

    let busy = ["--mib", "64", "--dirty", "200"].map(str::to_owned);
    start_hog_with(&testbed, &testbed.a, "hog", &busy).expect("a busy hog runs");
    let busy = measured(&testbed).prediction;
    let much = busy.written_bytes_per_second;
    assert!(much > Some(little), "{busy:?} against {little}");
    assert!(
        busy.frozen_bytes > quiet.prediction.frozen_bytes,
        "{busy:?}"
    );
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

#[test]
fn rounds_that_are_cut_off_leave_the_service_as_it_was() {
    let test = "rounds_that_are_cut_off_leave_the_service_as_it_was";
    let Some(testbed) = common::systems_with_hog(test, SLOW_MBIT, LARGE_MIB) else {
        return;
    };
    if !can(test, &testbed, "hog") {
        return;
    }
    let pid = process(&testbed.a, &["/bin/ums-hog"]);

    let moving = in_rounds(&testbed);
    let abort = ["abort", "hog", "--reason", "no more of it"];
    testbed.a.ums_ok(&abort).expect("the abort is accepted");
    moving.end().must_be_abandoned(&["no more of it"]);
    is_not_tracked(pid);
    hog_stayed(&testbed);

    let moving = in_rounds(&testbed);
    strike(agent(&testbed.a));
    moving.end().must_be_abandoned(&["agent"]);
    is_not_tracked(pid);
    hog_stayed(&testbed);

    let moving = in_rounds(&testbed);
    strike(agent(&testbed.b));
    moving.end().must_be_abandoned(&["data path"]);
    is_not_tracked(pid);
    hog_stayed(&testbed);

    // What a failed attempt has consumed is sent again.
    let report = migrate(&testbed, &testbed.a, &testbed.b, "hog");
    assert!(report.rounds >= 1, "{report:?}");
    let status = ask_hog(&testbed, &testbed.b, Request::Verify).expect("it answers");
    assert_eq!(status.intact, Some(true), "{status:?}");
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}
