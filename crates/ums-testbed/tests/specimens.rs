//! Services in every state that is listed in `ums_testbed::specimen`: what is carried is moved there and
//! back, at once and after a while, and finds it as it was; what is refused goes on undisturbed; what a
//! move changes is told before and after it.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Moving, SLOW_MBIT, process, remove, stop_criu, strike, systems};
use ums_core::report::Outcome;
use ums_testbed::specimen::{ALL, Expected, Specimen};
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::is_long;

/// The link's rate where it does not matter, Mbit/s.
const RATE_MBIT: u32 = 1000;
/// Specimens at a time: a system sends as many services as this at once, by default.
const AT_A_TIME: usize = 4;

/// Moves of the torture in a long test, and after how many it is waited for it: the others begin at
/// once, while its pages may still be on their way.
const MOVES: usize = 1000;
const WAITS_AFTER: usize = 5;

/// Names of the specimens to look at, with commas in between; all of them where it is not set.
const ONLY: &str = "UMS_SPECIMENS";

fn wanted(specimen: &Specimen) -> bool {
    let only = std::env::var(ONLY).unwrap_or_default();
    only.is_empty() || only.split(',').any(|name| name == specimen.name)
}

/// What of these is not as expected.
fn failures(testbed: &Testbed, specimens: &[&Specimen]) -> Vec<String> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(specimen) = specimens.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = specimen.is_as_expected(testbed) {
                let told = format!("{}: {error:#}", specimen.name);
                failed.lock().expect("nobody panics with it").push(told);
                // It may be at either; the testbed takes along what can't be removed.
                let _ = specimen.remove(&testbed.a);
                let _ = specimen.remove(&testbed.b);
            }
        }
    };
    std::thread::scope(|scope| (0..AT_A_TIME).for_each(|_| drop(scope.spawn(work))));
    failed.into_inner().expect("nobody panicked with it")
}

/// Those that `of_this` holds of must be as expected.
fn are_as_expected(test: &str, of_this: impl Fn(&Specimen) -> bool) {
    let specimens: Vec<&Specimen> = ALL
        .iter()
        .filter(|one| wanted(one) && of_this(one))
        .collect();
    if specimens.is_empty() {
        return;
    }
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    let failed = failures(&testbed, &specimens);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    remove(testbed);
}

#[test]
fn every_specimen_is_the_same_after_moves() {
    are_as_expected("every_specimen_is_the_same_after_moves", |specimen| {
        specimen.expected == Expected::Carried
    });
}

#[test]
fn what_is_refused_is_not_frozen_for_it() {
    are_as_expected("what_is_refused_is_not_frozen_for_it", |specimen| {
        matches!(specimen.expected, Expected::Refused(..))
    });
}

#[test]
fn what_only_the_freeze_tells_is_given_up_in_it_by_name() {
    are_as_expected(
        "what_only_the_freeze_tells_is_given_up_in_it_by_name",
        |specimen| matches!(specimen.expected, Expected::Abandoned(_)),
    );
}

#[test]
fn what_a_move_changes_is_told_before_and_after() {
    are_as_expected("what_a_move_changes_is_told_before_and_after", |specimen| {
        matches!(specimen.expected, Expected::Declared(..))
    });
}

/// Waits, with memory that takes a while to dump over a slow link.
const WAITS: Specimen = Specimen {
    name: "waits-large",
    program: "waits",
    source: include_str!("../specimens/waits.c"),
    arguments: &["48"],
    memory: None,
    expected: Expected::Carried,
};
/// Memory of which some has been dumped, and more has not.
const PART_BYTES: u64 = 4 << 20;

#[test]
fn waits_go_on_when_a_move_is_abandoned() {
    let test = "waits_go_on_when_a_move_is_abandoned";
    let Some(testbed) = systems(test, SLOW_MBIT) else {
        return;
    };
    let (a, b) = (&testbed.a, &testbed.b);
    WAITS.start(&testbed, a).expect("it starts");

    // In the middle of the dump.
    let moving = Moving::start(a, b, WAITS.name);
    moving.wait_for_memory(a, PART_BYTES);
    strike(process(a, &["criu", "swrk"]));
    moving.end().must_be_abandoned(&["CRIU"]);
    WAITS.goes_on(a).expect("as if nothing had been");

    // After it: where nobody dumps, CRIU restores.
    let moving = Moving::start(a, b, WAITS.name);
    stop_criu(b, WAITS.name);
    strike(process(b, &["ums-agent", "keeper"]));
    moving.end().must_be_abandoned(&["keeper"]);
    WAITS.goes_on(a).expect("as if nothing had been");

    // What was interrupted then can be interrupted again.
    let report = testbed.migrate(a, b, WAITS.name, &[]).expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    WAITS.goes_on(b).expect("it goes on");

    WAITS.remove(b).expect("it is removed");
    remove(testbed);
}

/// Changes of devices that a move makes itself, and that its service has not read about yet.
const LISTENER_MOVES: usize = 10;

#[test]
fn a_listener_to_links_moves_ten_times() {
    let test = "a_listener_to_links_moves_ten_times";
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    let listener = ALL.iter().find(|one| one.name == "moment-links");
    let listener = listener.expect("it is listed");
    listener.start(&testbed, &testbed.a).expect("it runs");
    let (mut from, mut to) = (&testbed.a, &testbed.b);
    for turn in 1..=LISTENER_MOVES {
        let report = testbed.migrate(from, to, listener.name, &[]);
        let report = report.expect("a report");
        let (outcome, error) = (report.outcome, report.error);
        assert_eq!(outcome, Outcome::Completed, "move {turn}: {error:?}");
        (from, to) = (to, from);
    }
    listener.goes_on(from).expect("it listens");
    listener.remove(from).expect("it is removed");
    remove(testbed);
}

#[test]
fn the_torture_is_the_same_after_a_thousand_moves() {
    let test = "the_torture_is_the_same_after_a_thousand_moves";
    if !is_long(test) {
        return;
    }
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    let torture = ALL.iter().find(|one| one.name == "torture");
    let torture = torture.expect("it is listed");
    torture.start(&testbed, &testbed.a).expect("it runs");
    let (mut from, mut to) = (&testbed.a, &testbed.b);
    for turn in 1..=moves() {
        let report = testbed.migrate(from, to, torture.name, &[]);
        let report = report.expect("a report");
        let (outcome, error) = (report.outcome, report.error);
        assert_eq!(outcome, Outcome::Completed, "move {turn}: {error:?}");
        if turn % WAITS_AFTER == 0 || turn == moves() {
            let well = torture.goes_on(to);
            well.unwrap_or_else(|error| panic!("after {turn} moves: {error:#}"));
        }
        (from, to) = (to, from);
    }
    torture.remove(from).expect("it is removed");
    remove(testbed);
}

/// As many as `UMS_TORTURE_MOVES` says.
fn moves() -> usize {
    let given = std::env::var("UMS_TORTURE_MOVES").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(MOVES)
}
