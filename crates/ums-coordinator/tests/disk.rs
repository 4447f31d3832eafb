//! A disk that fails under the journal of the source.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use support::agent::{What, When};
use support::disk::{FULL, GOOD, LYING};
use support::world::Life;
use support::{SERVICE, Two};
use ums_core::report::Outcome;

async fn systems() -> (Two, Arc<AtomicU8>) {
    let two = Two::new().await;
    let mode = two.a.disk();
    (two, mode)
}

#[tokio::test]
async fn a_migration_is_refused_while_the_disk_is_full() {
    let (two, mode) = systems().await;
    mode.store(FULL, Ordering::SeqCst);
    let error = two
        .a
        .migrate(SERVICE, "b")
        .await
        .expect_err("no room for the journal");
    let problem = error.problem().expect("a problem document");
    assert_eq!((problem.status, problem.kind.as_str()), (507, "journal"));
    assert!(
        problem.detail.contains("make room on its disk"),
        "{problem}"
    );
    mode.store(GOOD, Ordering::SeqCst);
    let id = two.migrate().await;
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
    two.settled(&view, "room again").await;
}

/// At the step before the commit, with the service frozen and the destination prepared.
async fn at_the_commit(failing: u8) -> (Two, Arc<AtomicU8>, ums_core::id::MigrationId) {
    let (two, mode) = systems().await;
    two.b.agent.fault("restore", When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.b.agent.is_reached().await;
    mode.store(failing, Ordering::SeqCst);
    two.b.agent.release();
    (two, mode, id)
}

#[tokio::test]
async fn a_commit_that_can_not_be_written_leaves_the_service_frozen_until_it_is_known() {
    let (two, mode, id) = at_the_commit(FULL).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    {
        let mut world = two.world.look();
        assert_eq!(world.node("a").services[SERVICE].state, Life::Frozen);
        assert_eq!(world.node("b").services[SERVICE].state, Life::Held);
    }
    mode.store(GOOD, Ordering::SeqCst);
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned, "{view:#?}");
    let error = view.report.error.clone().expect("told");
    assert!(error.contains("the commit could not be written"), "{error}");
    two.settled(&view, "room again").await;
}

#[tokio::test]
async fn a_commit_that_was_written_in_spite_of_an_error_goes_forward() {
    let (two, mode, id) = at_the_commit(LYING).await;
    let view = two.a.over(id).await;
    assert_eq!(
        mode.load(Ordering::SeqCst),
        GOOD,
        "the disk was never asked"
    );
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
    two.settled(&view, "written").await;
}

#[tokio::test]
async fn a_disk_that_fills_up_midway_ends_the_migration_at_the_source() {
    let (two, mode) = systems().await;
    two.a.agent.fault("open", When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.a.agent.is_reached().await;
    mode.store(FULL, Ordering::SeqCst);
    two.a.agent.release();
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned, "{view:#?}");
    assert!(
        view.report
            .error
            .as_deref()
            .is_some_and(|it| it.contains("make room")),
        "{view:#?}"
    );
    two.settled(&view, "disk full").await;
    // The report is written when there is room, and is there after a restart.
    mode.store(GOOD, Ordering::SeqCst);
    let mut two = two;
    let until = std::time::Instant::now() + support::PATIENCE;
    while !two.a.remembers(id).await {
        assert!(
            std::time::Instant::now() < until,
            "the report is not written"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    two.a.kill().await;
    two.a.start().await;
    assert_eq!(two.a.over(id).await.report.outcome, Outcome::Abandoned);
}
