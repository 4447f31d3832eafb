//! States that lie inside a container alone: a service's connections to itself, open files without
//! their names, watches. Each is moved there and back, and checks itself.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{remove, systems};
use ums_core::report::Outcome;
use ums_testbed::rootfs;
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{is_long, wait_for};

/// Rounds that must be right after each move.
const ROUNDS: usize = 3;
/// Longest wait for them: a connection whose words were under way waits for a timer of TCP.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rate of the link, Mbit/s.
const RATE_MBIT: u32 = 1000;

fn start(testbed: &Testbed, what: &str) {
    let root = testbed.directory().join("rootfs-inside");
    let program = testbed.tools().own("ums-inside").expect("it is built");
    rootfs::minimal(&root, &[&program]).expect("a root filesystem");
    let root = root.display().to_string();
    let run = ["run", "inside", "--rootfs", &root, "--", "/bin/ums-inside"];
    let run = [&run[..], &[what]].concat();
    testbed.a.ums_ok(&run).expect("it runs");
    rounds(&testbed.a, 0);
}

/// What the service has said there.
fn said(system: &System) -> String {
    let log = system.state_dir().join("services/inside/log");
    std::fs::read_to_string(system.outside(&log)).unwrap_or_default()
}

/// Waits for some rounds beyond what was said, all of them right; returns how much is said now.
fn rounds(system: &System, already: usize) -> usize {
    let enough = wait_for("rounds of checks", PATIENCE, || {
        let said = said(system);
        let new = said.get(already..).unwrap_or_default();
        let ticks = new.lines().filter(|line| line.starts_with("tick ")).count();
        (ticks >= ROUNDS || new.contains("BAD")).then(|| said.clone())
    });
    let said = enough.unwrap_or_else(|error| panic!("{error}: {}", said(system)));
    let bad = said.lines().find(|line| line.starts_with("BAD"));
    assert_eq!(bad, None, "at {}", system.name());
    said.len()
}

/// Moves it so many times, from system to system.
fn moves(testbed: &Testbed, times: usize) {
    for time in 0..times {
        let (from, to) = match time % 2 {
            0 => (&testbed.a, &testbed.b),
            _ => (&testbed.b, &testbed.a),
        };
        let report = testbed.migrate(from, to, "inside", &[]);
        let report = report.expect("a report");
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        rounds(to, 0);
    }
}

/// Names that CRIU made below a directory.
fn made_names(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() && !entry.path().is_symlink() {
            found.extend(made_names(&entry.path()));
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        found.extend(name.starts_with("link_remap").then_some(name));
    }
    found
}

#[test]
fn connections_to_itself_move_in_every_state() {
    let Some(testbed) = systems("connections_to_itself_move_in_every_state", RATE_MBIT) else {
        return;
    };
    start(&testbed, "connections");
    moves(&testbed, 4);
    remove(testbed);
}

#[test]
fn connections_to_itself_move_in_every_state_twenty_times() {
    let test = "connections_to_itself_move_in_every_state_twenty_times";
    if !is_long(test) {
        return;
    }
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    start(&testbed, "connections");
    moves(&testbed, 20);
    remove(testbed);
}

#[test]
fn a_connection_to_itself_that_is_not_accepted_is_refused_before_the_freeze() {
    let test = "a_connection_to_itself_that_is_not_accepted_is_refused_before_the_freeze";
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    start(&testbed, "unaccepted");
    let already = rounds(&testbed.a, 0);
    let report = testbed.migrate(&testbed.a, &testbed.b, "inside", &[]);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Abandoned);
    let error = report.error.unwrap_or_default();
    assert!(error.contains("connections to itself"), "{error}");
    rounds(&testbed.a, already);
    remove(testbed);
}

#[test]
fn open_files_move_that_have_lost_a_name() {
    let Some(testbed) = systems("open_files_move_that_have_lost_a_name", RATE_MBIT) else {
        return;
    };
    start(&testbed, "files");
    moves(&testbed, 3);
    let tree = testbed.b.state_dir().join("services/inside/upper");
    let names = made_names(&testbed.b.outside(&tree));
    assert_eq!(names, Vec::<String>::new());
    remove(testbed);
}

#[test]
fn watches_move() {
    let Some(testbed) = systems("watches_move", RATE_MBIT) else {
        return;
    };
    start(&testbed, "watches");
    moves(&testbed, 3);
    remove(testbed);
}
