//! The programs of a system are replaced by the next release's, under running services and in the middle
//! of a migration: what the previous release left running (keepers, Frontmen and who stands by for them),
//! and what it wrote, is understood; and systems of the two releases move services to each other.

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use common::{
    LARGE_MIB, Moving, PATIENCE, SLOW_MBIT, agent, coordinator, exit, hog_is_only_at, process,
    remove, services, strike,
};
use ums_core::facts::LossKind;
use ums_core::report::{MigrationReport, Outcome};
use ums_testbed::client::echo::Echo;
use ums_testbed::hog::Request;
use ums_testbed::system::System;
use ums_testbed::testbed::{Settings, Testbed};
use ums_testbed::tools::{Tools, is_long, skipped, wait_for};
use ums_testbed::workload::{ask_hog, start_hog, streams};

/// Which of a system's two programs is replaced first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Coordinator,
    Agent,
}

/// Two systems of the previous release, or `None` after saying that the test is left out.
fn previous(test: &str, rate_mbit: u32) -> Option<Testbed> {
    let tools = Tools::find().expect("this program's own path is known");
    let lacking = tools.lacking();
    let reason = "the previous release is not there: its commit is not in this clone";
    let Some(programs) = Tools::previous().filter(|_| lacking.is_none()) else {
        skipped(test, &lacking.unwrap_or_else(|| reason.to_owned()));
        return None;
    };
    let plan = Settings {
        rate_mbit: Some(rate_mbit),
    };
    let mut testbed = Testbed::create(&tools, &plan).expect("a testbed");
    for system in [&mut testbed.a, &mut testbed.b] {
        system.install(&programs).expect("programs");
    }
    testbed.start_coordinators().expect("both answer");
    Some(testbed)
}

/// Replaces all programs of a system and starts them again, one after the other.
fn update(system: &mut System, to: &Path, first: First) {
    system.install(to).expect("new programs");
    match first {
        First::Coordinator => {
            restart_coordinator(system);
            restart_agent(system);
        }
        First::Agent => {
            restart_agent(system);
            restart_coordinator(system);
        }
    }
}

fn restart_coordinator(system: &mut System) {
    strike(coordinator(system));
    system.kill_coordinator().expect("it was running");
    system.start_coordinator().expect("it answers again");
}

/// Ends the agent: the Coordinator starts another one, of the program that is there now.
fn restart_agent(system: &System) {
    let before = agent(system);
    strike(before);
    let next = || {
        let pid = process(system, &["ums-agent", "serve"]);
        (pid != before && services(system).is_some()).then_some(())
    };
    wait_for("the next agent", PATIENCE, next)
        .unwrap_or_else(|error| panic!("{error}: {}", system.said()));
}

fn own_programs(testbed: &Testbed) -> PathBuf {
    testbed.tools().bin_dir().to_owned()
}

/// Every service of the system is there and runs.
fn all_run(system: &System, names: &[&str]) {
    let running = || {
        let all = services(system)?;
        let runs = |name: &&str| {
            all.iter()
                .any(|view| view["specification"]["name"] == **name && view["status"] == "running")
        };
        (all.len() == names.len() && names.iter().all(runs)).then_some(())
    };
    wait_for("services that run", PATIENCE, running).unwrap_or_else(|error| {
        let all = services(system);
        panic!("{error}: {all:?}\n{}", system.said())
    });
}

fn moved(testbed: &Testbed, from: &System, to: &System, service: &str) -> MigrationReport {
    let report = testbed.migrate(from, to, service, &[]).expect("a report");
    let said = || format!("{}\n{}", testbed.a.said(), testbed.b.said());
    assert_eq!(
        report.outcome,
        Outcome::Completed,
        "{:?}\n{}",
        report.error,
        said()
    );
    report
}

#[test]
fn services_and_connections_live_through_an_update() {
    let test = "services_and_connections_live_through_an_update";
    let Some(mut testbed) = previous(test, 1000) else {
        return;
    };
    let next = own_programs(&testbed);
    streams::start(&testbed, &testbed.a, None, 0).expect("the service runs");
    start_hog(&testbed, &testbed.b, "hog", 8).expect("the hog runs");
    let address = SocketAddr::from((testbed.a.ip(), streams::PORT));
    let open = || Echo::open(address, 1);
    let mut echo = testbed.world.in_network(open).expect("a connection");
    let mut goes_on = |testbed: &Testbed| {
        echo.exchange().expect("the connection goes on");
        let hog = ask_hog(testbed, &testbed.b, Request::Verify).expect("the hog answers");
        assert_eq!(hog.intact, Some(true));
    };
    // From now on there is a Frontman at each end, with one that stands by.
    moved(&testbed, &testbed.a, &testbed.b, "streams");
    goes_on(&testbed);
    update(&mut testbed.b, &next, First::Coordinator);
    all_run(&testbed.b, &["hog", "streams"]);
    goes_on(&testbed);
    // The two releases move services to each other, and say what the older one does not carry.
    let report = moved(&testbed, &testbed.b, &testbed.a, "streams");
    let kinds: Vec<LossKind> = report.losses.iter().map(|loss| loss.kind).collect();
    assert_eq!(kinds, [LossKind::EarlierRelease]);
    goes_on(&testbed);
    moved(&testbed, &testbed.a, &testbed.b, "streams");
    goes_on(&testbed);
    update(&mut testbed.a, &next, First::Agent);
    all_run(&testbed.b, &["hog", "streams"]);
    goes_on(&testbed);
    moved(&testbed, &testbed.b, &testbed.a, "streams");
    goes_on(&testbed);
    // The hog's keeper is of the previous release still, nothing else is.
    moved(&testbed, &testbed.b, &testbed.a, "hog");
    all_run(&testbed.a, &["hog", "streams"]);
    hog_is_only_at(&testbed, &testbed.a);
    echo.exchange().expect("the connection goes on");
    remove(testbed);
}

/// Updates one side while the migration is at `step`: it ends well, and another one after it.
fn in_the_middle(test: &str, at_source: bool, first: First, step: u64) {
    let Some(mut testbed) = previous(test, SLOW_MBIT) else {
        return;
    };
    let next = own_programs(&testbed);
    start_hog(&testbed, &testbed.a, "hog", LARGE_MIB).expect("the hog runs");
    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    moving.wait_for_step(&testbed.a, step);
    let side = if at_source {
        &mut testbed.a
    } else {
        &mut testbed.b
    };
    update(side, &next, first);
    let ended = moving.end();
    eprintln!(
        "{test}: {:?} {:?}",
        ended.report.outcome, ended.report.error
    );
    let (at, other) = match (ended.report.outcome, ended.code) {
        (Outcome::Completed, Some(exit::DONE)) => (&testbed.b, &testbed.a),
        (Outcome::Abandoned, Some(exit::ABANDONED)) => (&testbed.a, &testbed.b),
        _ => panic!("{ended:?}\n{}\n{}", testbed.a.said(), testbed.b.said()),
    };
    hog_is_only_at(&testbed, at);
    moved(&testbed, at, other, "hog");
    hog_is_only_at(&testbed, other);
    remove(testbed);
}

macro_rules! updated {
    ($($name:ident: $source:expr, $first:expr, $step:expr;)*) => {$(
        #[test]
        fn $name() {
            in_the_middle(stringify!($name), $source, $first, $step);
        }
    )*};
}

updated! {
    a_source_is_updated_while_memory_is_sent: true, First::Coordinator, 8;
    a_source_is_updated_after_the_commit: true, First::Agent, 13;
    a_destination_is_updated_while_files_are_copied: false, First::Agent, 7;
    a_destination_is_updated_while_it_restores: false, First::Coordinator, 11;
}

#[test]
fn either_side_is_updated_at_every_step() {
    let test = "either_side_is_updated_at_every_step";
    if !is_long(test) {
        return;
    }
    for step in 3..=15 {
        for first in [First::Coordinator, First::Agent] {
            for at_source in [true, false] {
                let name = format!("{test}: step {step}, {first:?} first, source {at_source}");
                in_the_middle(&name, at_source, first, step);
            }
        }
    }
}
