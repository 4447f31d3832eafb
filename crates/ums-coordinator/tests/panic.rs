//! A migration whose task panics: shown as stuck, then undone or completed from the journal, and its
//! service is not locked.

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use support::agent::{What, When};
use support::{PATIENCE, SERVICE, Two, disk};
use ums_api::client::{MigrationView, WatchQuery, paths};
use ums_core::report::Outcome;

/// Long enough that a person, or this test, sees a migration that is stuck before it is taken up
/// again, and that nobody but the migration uses the journal.
fn slow(limits: &mut ums_coordinator::Limits) {
    limits.retry_first = Duration::from_secs(1);
    limits.reconcile_every = Duration::from_secs(3600);
}

/// The source's journal breaks, and with it the task, when the write after this operation fails.
async fn panics_after(operation: &'static str, outcome: Outcome) {
    let two = Two::with(|a, _| slow(&mut a.limits)).await;
    two.a.agent.fault(operation, When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.a.agent.is_reached().await;
    two.a.disk().store(disk::BREAKING, Ordering::SeqCst);
    two.a.agent.release();
    let stuck = two.a.over(id).await;
    assert_eq!(stuck.report.outcome, Outcome::Stuck, "{stuck:#?}");
    let error = stuck.report.error.unwrap_or_default();
    assert!(
        error.contains("a fault that a test has put here"),
        "{error}"
    );
    let until = Instant::now() + PATIENCE;
    let path = paths::migration(id, &WatchQuery::default());
    let view = loop {
        let view: MigrationView = two.a.get(&path).await.expect("it is known");
        if view.report.outcome == outcome {
            break view;
        }
        assert!(Instant::now() < until, "{view:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    two.settled(&view, operation).await;
    // Nothing of it locks the service: it may move again, or move back.
    let (from, to) = match outcome {
        Outcome::Completed => (&two.b, "a"),
        _ => (&two.a, "b"),
    };
    let again = from.migrate(SERVICE, to).await.expect("admitted");
    let again = from.over(again.report.migration_id).await;
    assert_eq!(again.report.outcome, Outcome::Completed, "{again:#?}");
}

#[tokio::test]
async fn before_the_commit_it_is_stuck_and_then_undone() {
    panics_after("open", Outcome::Abandoned).await;
}

#[tokio::test]
async fn in_the_commit_it_is_stuck_and_then_completed() {
    panics_after("checkpoint", Outcome::Completed).await;
}
