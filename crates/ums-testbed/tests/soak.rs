//! The soak: a service under load moves a hundred times there and a hundred times back, and nothing
//! grows.

mod common;

use std::fmt;

use common::{agent, coordinator, remove, systems};
use ums_core::report::Outcome;
use ums_testbed::inventory::{Inventory, descriptors};
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{is_long, wait_for};
use ums_testbed::witness::Witness;
use ums_testbed::workload::{ledger_file, record, start_ledger};

/// Round trips.
const TRIPS: usize = 100;

/// After so many trips everything that is made once has been made: threads, connections, buffers.
const WARM: usize = 20;

/// How often the figures are taken, trips.
const EVERY: usize = 10;

/// What an allocator may keep more without being asked to, KiB.
const RSS_SLACK_KIB: u64 = 8 * 1024;

/// What a program may have more open or running for a moment: connections that are being closed,
/// threads that wait for work.
const SLACK: usize = 12;

/// The most that one migration may take in a journal, bytes: two dozen short events.
const JOURNAL_BYTES: u64 = 32 * 1024;

/// Figures of one program.
#[derive(Clone, Copy, Default)]
struct Figures {
    rss_kib: u64,
    descriptors: usize,
    threads: usize,
}

/// Figures of one system.
#[derive(Clone, Default)]
struct Sample {
    coordinator: Figures,
    agent: Figures,
    journal_bytes: u64,
    things: Inventory,
}

impl fmt::Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rss_kib,
            descriptors,
            threads,
        } = self;
        write!(
            out,
            "{rss_kib} KiB, {descriptors} descriptors, {threads} threads"
        )
    }
}

impl Figures {
    fn of(pid: i32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Self {
            rss_kib: value("VmRSS:").unwrap_or_default(),
            descriptors: descriptors(pid).len(),
            threads: value("Threads:").unwrap_or_default() as usize,
        }
    }

    fn must_not_have_grown(&self, since: &Self, whose: &str) {
        assert!(
            self.rss_kib <= since.rss_kib + RSS_SLACK_KIB
                && self.descriptors <= since.descriptors + SLACK
                && self.threads <= since.threads + SLACK,
            "{whose} grew from {since} to {self}"
        );
    }
}

fn sample(testbed: &Testbed, system: &System) -> Sample {
    let journal = system.state_dir().join("journal.redb");
    Sample {
        coordinator: Figures::of(coordinator(system)),
        agent: Figures::of(agent(system)),
        journal_bytes: std::fs::metadata(journal).expect("a journal").len(),
        things: Inventory::take(system, testbed.tools()),
    }
}

/// Moves the service once, and waits until its last pages are in: before, it can't go back.
fn hop(testbed: &Testbed, from: &System, to: &System) {
    let settled = || {
        let migrations = common::get(to, "agent.sock", "/v1/migrations")?;
        migrations.as_array()?.is_empty().then_some(())
    };
    let report = testbed.migrate(from, to, "ledger", &[]).expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{report:?}");
    wait_for("the last pages", common::PATIENCE, settled).expect("it settles");
}

#[test]
fn two_hundred_moves_leave_nothing_and_nothing_grows() {
    let test = "two_hundred_moves_leave_nothing_and_nothing_grows";
    if !is_long(test) {
        return;
    }
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    start_ledger(&testbed, &testbed.a, 1).expect("the ledger runs");
    let client = record(&testbed).expect("a client");
    let mut warm = Vec::new();
    for trip in 1..=TRIPS {
        // The file of the last trip becomes the one of the next: a witness for each.
        let places = [&testbed.a, &testbed.b].map(ledger_file).to_vec();
        let witness = Witness::begin(places);
        hop(&testbed, &testbed.a, &testbed.b);
        hop(&testbed, &testbed.b, &testbed.a);
        witness.end().expect("one instance");
        if trip % EVERY != 0 {
            continue;
        }
        let now = [&testbed.a, &testbed.b].map(|system| sample(&testbed, system));
        for (name, sample) in ["a", "b"].into_iter().zip(&now) {
            let (journal, things) = (sample.journal_bytes / 1024, sample.things.count());
            eprintln!(
                "after {trip} trips, {name}: Coordinator {}; agent {}; journal {journal} KiB; \
                 {things} things",
                sample.coordinator, sample.agent
            );
        }
        if trip == WARM {
            warm = now.to_vec();
        }
        if trip == TRIPS {
            judge(&testbed, &warm);
        }
    }
    let recorded = client.stop().expect("the client goes on to the end");
    assert_eq!(recorded.summary.reconnects, 0, "its connection was lost");
    common::nothing_acknowledged_is_lost(&testbed.a, &recorded);
    remove(testbed);
}

/// Compares with what it was when all was warm; what is on its way out may take a moment.
fn judge(testbed: &Testbed, warm: &[Sample]) {
    for (system, then) in [&testbed.a, &testbed.b].into_iter().zip(warm) {
        let mut left = Vec::new();
        let same = wait_for("the same things", common::PATIENCE, || {
            left = sample(testbed, system).things.since(&then.things).0;
            left.is_empty().then_some(())
        });
        same.unwrap_or_else(|error| panic!("{error}: {left:#?}"));
        let now = sample(testbed, system);
        let name = system.name();
        now.coordinator
            .must_not_have_grown(&then.coordinator, &format!("the Coordinator of {name}"));
        now.agent
            .must_not_have_grown(&then.agent, &format!("the agent of {name}"));
        let moves = 2 * (TRIPS - WARM) as u64;
        let grown = now.journal_bytes.saturating_sub(then.journal_bytes);
        assert!(
            grown <= moves * JOURNAL_BYTES,
            "the journal grew by {grown} bytes"
        );
    }
}
