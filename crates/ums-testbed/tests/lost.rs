//! What is lost, and what is cut off, between *prepared* and the carrying out of the commit: with
//! real systems, at that very moment.
//!
//! The moment is held still: the source's Coordinator is stopped while the destination restores, so
//! that it learns of *prepared* only when the test lets it.

mod common;

use common::{
    Moving, PATIENCE, coordinator, exit, get, hog_is_only_at, hog_stayed, process, remove, stop,
    strike, systems_with_hog,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use ums_core::report::Outcome;
use ums_testbed::system::System;
use ums_testbed::testbed::{PEER_LINK, Testbed};
use ums_testbed::tools::{run, wait_for};

/// Memory that is over the link at once: what matters comes after it.
const SMALL_MIB: u64 = 8;

/// A link on which nothing takes long, Mbit/s.
const FAST_MBIT: u32 = 1000;

fn go_on(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGCONT).expect("it is there to go on");
}

/// A hog that is prepared at the destination, whose answer lies before the source's Coordinator,
/// which is stopped and has not read it; with that Coordinator.
fn prepared(test: &str) -> Option<(Testbed, Moving, i32)> {
    let testbed = systems_with_hog(test, FAST_MBIT, SMALL_MIB)?;
    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    // Where nobody dumps, CRIU restores.
    let criu = process(&testbed.b, &["criu", "swrk"]);
    stop(criu);
    // It has asked for the restore, which waits for CRIU.
    moving.wait_for_step(&testbed.a, 11);
    let source = coordinator(&testbed.a);
    stop(source);
    go_on(criu);
    let id = moving.id().to_owned();
    wait_for("the held service", PATIENCE, || {
        phase_is(&testbed.b, &id, "arriving: prepared")
    })
    .expect("it is prepared");
    wait_for("the destination's answer", PATIENCE, || {
        answer_waits(source)
    })
    .expect("the destination has answered");
    Some((testbed, moving, source))
}

fn phase_is(system: &System, id: &str, phase: &str) -> Option<()> {
    let view = get(system, "ums.sock", &format!("/v1/migrations/{id}"))?;
    (view["progress"]["phase"] == phase).then_some(())
}

/// Whether something has arrived over the network that a stopped process has not read.
fn answer_waits(pid: i32) -> Option<()> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    let unread = |line: &str| {
        let queues = line.split_whitespace().nth(4)?;
        let (_, received) = queues.split_once(':')?;
        // Established ones only: a listener's queue counts connections.
        let established = line.split_whitespace().nth(3) == Some("01");
        let some = u64::from_str_radix(received, 16).ok()? > 0;
        (established && some).then_some(())
    };
    table.lines().skip(1).find_map(unread)
}

fn link(testbed: &Testbed, state: &str) {
    let mut ip = testbed.a.exec("ip");
    run(ip.args(["link", "set", PEER_LINK, state])).expect("the link obeys");
}

/// What a system says about the cut-off hog, once something may be decided there.
fn offered(system: &System) -> Value {
    let said = wait_for("something to decide", PATIENCE, || {
        let output = system.ums(&["resolve", "hog", "--json"]).ok()?;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    });
    said.unwrap_or_else(|error| panic!("{error}; {}", system.said()))
}

fn decide(system: &System, decision: &str) {
    let arguments = ["resolve", "hog", decision, "--accept-risk-for", "hog"];
    system.ums_ok(&arguments).expect("it is decided");
}

#[test]
fn the_keeper_of_the_destination_is_killed_before_the_commit_is_carried_out() {
    let test = "the_keeper_of_the_destination_is_killed_before_the_commit_is_carried_out";
    let Some((testbed, moving, source)) = prepared(test) else {
        return;
    };
    strike(process(&testbed.b, &["ums-agent", "keeper"]));
    go_on(source);
    moving
        .end()
        .must_be_abandoned(&["gone before its first instruction"]);
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn a_service_that_is_cut_off_at_the_commit_is_taken_back() {
    let test = "a_service_that_is_cut_off_at_the_commit_is_taken_back";
    let Some((testbed, moving, source)) = prepared(test) else {
        return;
    };
    link(&testbed, "down");
    go_on(source);
    let known = offered(&testbed.a);
    assert_eq!(known["offers"][0]["choice"], "take-back", "{known:#}");
    decide(&testbed.a, "--take-back");
    moving
        .end()
        .must_be_abandoned(&["taken back by the operator"]);
    link(&testbed, "up");
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn a_service_that_is_cut_off_at_the_commit_is_run_at_the_destination() {
    let test = "a_service_that_is_cut_off_at_the_commit_is_run_at_the_destination";
    let Some((testbed, moving, source)) = prepared(test) else {
        return;
    };
    link(&testbed, "down");
    go_on(source);
    offered(&testbed.a);
    let known = offered(&testbed.b);
    assert_eq!(known["offers"][0]["choice"], "run", "{known:#}");
    decide(&testbed.b, "--run");
    link(&testbed, "up");
    let ended = moving.end();
    assert_eq!(ended.code, Some(exit::DONE), "{ended:?}");
    assert_eq!(ended.report.outcome, Outcome::Completed, "{ended:?}");
    hog_is_only_at(&testbed, &testbed.b);
    remove(testbed);
}
