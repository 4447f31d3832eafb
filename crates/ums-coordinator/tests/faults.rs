//! Every operation of either agent × every fault: at most one instance executes, ever; exactly one
//! at the end; nothing is left over; the report is true.

mod support;

use std::time::Duration;

use support::Two;
use support::agent::{What, When};
use ums_core::report::Outcome;

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    /// The operation fails, this often.
    Fail(u32),
    /// While it is under way, these Coordinators are killed and started again.
    Kill { source: bool, destination: bool },
    /// While it is under way, neither reaches the other for a while.
    Partition,
}

const KILL_SOURCE: Strike = Strike::Kill {
    source: true,
    destination: false,
};
const KILL_DESTINATION: Strike = Strike::Kill {
    source: false,
    destination: true,
};
const KILL_BOTH: Strike = Strike::Kill {
    source: true,
    destination: true,
};

const STRIKES: [Strike; 6] = [
    Strike::Fail(1),
    Strike::Fail(3),
    KILL_SOURCE,
    KILL_DESTINATION,
    KILL_BOTH,
    Strike::Partition,
];

const OF_SOURCE: [&str; 8] = [
    "service",
    "block",
    "open",
    "frontman/hold",
    "checkpoint",
    "frontman/lead",
    "delete-source",
    "services",
];
const OF_DESTINATION: [&str; 5] = ["facts", "create", "restore", "run", "settle"];

/// Before this, a migration may end either way; `run` and what follows it come after the commit.
fn after_commit(operation: &str) -> bool {
    ["run", "settle", "frontman/lead", "delete-source"].contains(&operation)
}

#[derive(Debug, Clone, Copy)]
struct Scenario {
    at_source: bool,
    operation: &'static str,
    when: When,
    strike: Strike,
    /// Another operation of the source that fails first, so that the way back is walked.
    first: Option<&'static str>,
}

async fn play(scenario: Scenario) {
    // No scenario waits for the end of a lease, and a busy machine must not bring one about: what strikes later
    // would never be reached.
    let lease = Duration::from_secs(3600);
    let mut two = Two::with(|a, b| {
        a.limits.lease = lease;
        b.limits.lease = lease;
    })
    .await;
    if let Some(first) = scenario.first {
        let agent = if first == "restore" {
            &two.b.agent
        } else {
            &two.a.agent
        };
        agent.fault(first, When::After, What::Fail, 1);
    }
    let agent = if scenario.at_source {
        &two.a.agent
    } else {
        &two.b.agent
    };
    let agent = std::sync::Arc::clone(agent);
    // The first look at the service is the admission's, which is no part of the migration.
    match scenario.strike {
        Strike::Fail(times) => agent.fault(scenario.operation, scenario.when, What::Fail, times),
        _ => agent.fault(scenario.operation, scenario.when, What::Hang, 1),
    }
    let id = match two.a.migrate(support::SERVICE, "b").await {
        Ok(view) => view.report.migration_id,
        Err(_) => return untouched(&two),
    };
    if !matches!(scenario.strike, Strike::Fail(_)) {
        let reached = agent.reached.notified();
        if tokio::time::timeout(support::PATIENCE, reached)
            .await
            .is_err()
        {
            let view = two.a.seen(id).await;
            let log = two.world.look().log.clone();
            panic!("{scenario:?} was never reached: {view:#?}\n{log:#?}");
        }
        strike(&mut two, scenario.strike).await;
        // Whoever asked is still there, and waits for the answer; if it was killed, the operation
        // died with its request.
        let asker_lives = match scenario.strike {
            Strike::Kill {
                source,
                destination,
            } => {
                if scenario.at_source {
                    !source
                } else {
                    !destination
                }
            }
            Strike::Fail(_) | Strike::Partition => false,
        };
        if asker_lives {
            agent.release();
        }
    }
    let over = two.a.over(id);
    let view = tokio::time::timeout(support::PATIENCE / 2, over).await;
    let view =
        view.unwrap_or_else(|_| panic!("{scenario:?} does not end: {:#?}", two.world.look().log));
    two.settled(&view, &format!("{scenario:?}")).await;
    // The view is what the journal tells in the end, too.
    let outcome = view.report.outcome;
    if after_commit(scenario.operation) {
        assert_eq!(outcome, Outcome::Completed, "{scenario:?}: {view:#?}");
    }
    if scenario.first.is_some() {
        assert_eq!(outcome, Outcome::Abandoned, "{scenario:?}: {view:#?}");
    }
    assert_eq!(
        view.report.error.is_some(),
        outcome != Outcome::Completed,
        "{view:#?}"
    );
    assert_eq!(
        view.report.downtime_ms.is_some(),
        outcome == Outcome::Completed,
        "{view:#?}"
    );
}

/// The migration was not even admitted.
fn untouched(two: &Two) {
    let wrong = two.world.look().leftovers(support::SERVICE, "a", None);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn strike(two: &mut Two, strike: Strike) {
    match strike {
        Strike::Fail(_) => {}
        Strike::Kill {
            source,
            destination,
        } => {
            if source {
                two.a.kill().await;
            }
            if destination {
                two.b.kill().await;
            }
            // Time for the other side to notice, or to wait in vain.
            tokio::time::sleep(Duration::from_millis(20)).await;
            if destination {
                two.b.start().await;
            }
            if source {
                two.a.start().await;
            }
        }
        Strike::Partition => {
            let (a, b) = (two.a.link.cut(), two.b.link.cut());
            tokio::time::sleep(Duration::from_millis(150)).await;
            // What hangs is killed, so that it does not outlast the partition.
            two.a.kill().await;
            two.b.kill().await;
            two.a.start().await;
            two.b.start().await;
            assert!(a.is_some() && b.is_some());
        }
    }
}

/// Some at once: most of the time is waiting.
async fn play_all(scenarios: Vec<Scenario>) {
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(8));
    let mut played = tokio::task::JoinSet::new();
    for scenario in scenarios {
        let permits = std::sync::Arc::clone(&permits);
        played.spawn(async move {
            let _permit = permits.acquire_owned().await.expect("open");
            play(scenario).await;
        });
    }
    while let Some(ended) = played.join_next().await {
        ended.expect("the scenario holds");
    }
}

fn every(
    at_source: bool,
    operations: &[&'static str],
    first: Option<&'static str>,
) -> Vec<Scenario> {
    let mut all = Vec::new();
    for &operation in operations {
        for strike in STRIKES {
            for when in [When::Before, When::After] {
                all.push(Scenario {
                    at_source,
                    operation,
                    when,
                    strike,
                    first,
                });
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_of_the_source() {
    // The admission asks for the list of services too; a hang there is not the migration's.
    let mut scenarios = every(true, &OF_SOURCE, None);
    scenarios.retain(|it| it.operation != "services" || matches!(it.strike, Strike::Fail(_)));
    play_all(scenarios).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_of_the_destination() {
    play_all(every(false, &OF_DESTINATION, None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_on_the_way_back() {
    let mut scenarios = every(
        true,
        &["thaw", "frontman/yield", "unblock"],
        Some("checkpoint"),
    );
    scenarios.extend(every(true, &["thaw", "unblock"], Some("open")));
    scenarios.extend(every(false, &["discard"], Some("restore")));
    play_all(scenarios).await;
}
