//! What is lost between *prepared* and the commit, and what is cut off at the commit: what the two
//! Coordinators settle by themselves, what an operator decides, and what never hides.

mod support;

use std::net::SocketAddr;
use std::time::Instant;

use serde::Serialize;
use support::agent::{What, When};
use support::world::Life;
use support::{PATIENCE, SERVICE, System, Two};
use ums_api::client::{
    AbortRequest, MigrationView, Resolution, ResolveRequest, ResolveView, WatchQuery, paths,
};
use ums_api::http::ClientError;
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::MigrationId;
use ums_core::report::Outcome;

impl System {
    async fn resolution(&self, id: MigrationId) -> Result<ResolveView, Problem> {
        problem(self.get(&paths::resolve(id)).await)
    }

    async fn decide(
        &self,
        id: MigrationId,
        choice: Resolution,
        confirm: &str,
    ) -> Result<MigrationView, Problem> {
        let request = ResolveRequest {
            choice,
            confirm: confirm.to_owned(),
        };
        self.post(&paths::resolve(id), &request).await
    }

    async fn post(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<MigrationView, Problem> {
        problem(self.client().post(path, body, PATIENCE).await)
    }

    async fn view(&self, id: MigrationId) -> MigrationView {
        let path = paths::migration(id, &WatchQuery::default());
        self.get(&path).await.expect("it is known")
    }

    /// Waits until a migration is as wanted.
    async fn until(
        &self,
        id: MigrationId,
        wanted: impl Fn(&MigrationView) -> bool,
    ) -> MigrationView {
        let end = Instant::now() + PATIENCE;
        loop {
            let view = self.view(id).await;
            if wanted(&view) {
                return view;
            }
            assert!(Instant::now() < end, "{view:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

fn problem<T>(answer: Result<T, ClientError>) -> Result<T, Problem> {
    answer.map_err(|error| match error {
        ClientError::Problem(problem) => *problem,
        other => panic!("{other}"),
    })
}

/// Both systems, cut off from each other when the source has committed and the destination has not
/// heard of it; and where the links led.
async fn cut_off() -> (Two, MigrationId, [SocketAddr; 2]) {
    let two = Two::new().await;
    // The destination looks at what it holds before it takes the commit on.
    two.b
        .agent
        .fault("migration", When::Before, What::Fail, u32::MAX);
    let id = two.migrate().await;
    two.a.until(id, |view| view.resolvable).await;
    let led = [&two.a, &two.b].map(|system| system.link.cut().expect("it led somewhere"));
    // Nothing of the source has arrived for a while: no commit is under way any more.
    two.b.until(id, |view| view.resolvable).await;
    two.b.agent.heal();
    (two, id, led)
}

fn heal(two: &Two, led: [SocketAddr; 2]) {
    two.a.link.lead_to(led[0]);
    two.b.link.lead_to(led[1]);
}

fn life(two: &Two, system: &str) -> Option<Life> {
    let mut world = two.world.look();
    let service = world.node(system).services.get(SERVICE);
    service.map(|service| service.state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_before_the_commit_is_taken_back_by_itself() {
    let two = Two::new().await;
    two.b.agent.fault("restore", When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.b.agent.is_reached().await;
    two.b.agent.lose(id);
    two.b.agent.release();
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned, "{view:#?}");
    let error = view.report.error.clone().expect("a reason");
    assert!(
        error.contains("gone before its first instruction"),
        "{error}"
    );
    two.settled(&view, "lost").await;
    let there = two.b.view(id).await;
    assert_eq!(there.report.outcome, Outcome::Abandoned, "{there:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_is_taken_back_after_restarts_too() {
    let mut two = Two::new().await;
    two.b.agent.fault("discard", When::Before, What::Hang, 1);
    two.b.agent.fault("restore", When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.b.agent.is_reached().await;
    two.b.agent.lose(id);
    two.b.agent.release();
    // *Lost* is written, and not answered yet.
    two.b.agent.is_reached().await;
    assert_eq!(life(&two, "a"), Some(Life::Frozen));
    two.a.kill().await;
    two.b.kill().await;
    two.b.start().await;
    two.a.start().await;
    two.b.agent.release();
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned, "{view:#?}");
    two.settled(&view, "lost, and restarted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_after_it_was_asked_to_run_is_stuck_until_somebody_decides() {
    let two = Two::new().await;
    two.b.agent.fault("run", When::Before, What::Hang, 1);
    let id = two.migrate().await;
    two.b.agent.is_reached().await;
    two.b.agent.lose(id);
    two.b.agent.release();
    for system in [&two.a, &two.b] {
        let stuck = |view: &MigrationView| view.report.outcome == Outcome::Stuck;
        let view = system.until(id, stuck).await;
        assert!(view.resolvable, "{view:#?}");
        let error = view.report.error.expect("a reason");
        assert!(error.contains(&format!("ums resolve {id}")), "{error}");
    }
    assert_eq!(life(&two, "a"), Some(Life::Frozen));
    // Whether it has executed is not known, so it can't be run again.
    let offers = two.b.resolution(id).await.expect("it is stuck").offers;
    assert_eq!(offers.len(), 1);
    let refused = two.b.decide(id, Resolution::Run, SERVICE).await;
    assert_eq!(
        refused.expect_err("not offered").kind,
        ProblemKind::NotNeeded
    );
    two.b
        .decide(id, Resolution::Discard, SERVICE)
        .await
        .expect("decided");
    let discarded = |view: &MigrationView| {
        let error = view.report.error.as_ref();
        error.is_some_and(|error| error.contains("discarded"))
    };
    two.a.until(id, discarded).await;
    assert_eq!(life(&two, "a"), Some(Life::Frozen));
    two.a
        .decide(id, Resolution::TakeBack, SERVICE)
        .await
        .expect("decided");
    let view = two
        .a
        .until(id, |view| view.report.outcome == Outcome::Abandoned)
        .await;
    two.settled(&view, "stuck").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_was_taken_back_has_the_destination_discard() {
    let (two, id, led) = cut_off().await;
    let known = two.a.resolution(id).await.expect("it is cut off");
    assert!(known.known.contains("committed"), "{known:#?}");
    assert_eq!(known.offers.len(), 1);
    assert_eq!(known.offers[0].choice, Resolution::TakeBack);
    two.a
        .decide(id, Resolution::TakeBack, &id.to_string())
        .await
        .expect("decided");
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned, "{view:#?}");
    let error = view.report.error.clone().expect("a reason");
    assert!(error.contains("by the operator of `a`"), "{error}");
    assert_eq!(life(&two, "a"), Some(Life::Executing));
    assert_eq!(life(&two, "b"), Some(Life::Held));
    heal(&two, led);
    two.settled(&view, "taken back").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_was_run_completes_when_the_source_is_back() {
    let (mut two, id, led) = cut_off().await;
    let known = two.b.resolution(id).await.expect("it is cut off");
    let offered: Vec<Resolution> = known.offers.iter().map(|offer| offer.choice).collect();
    assert_eq!(offered, [Resolution::Run, Resolution::Discard]);
    two.b
        .decide(id, Resolution::Run, SERVICE)
        .await
        .expect("decided");
    assert_eq!(life(&two, "b"), Some(Life::Executing));
    assert_eq!(life(&two, "a"), Some(Life::Frozen));
    two.b.kill().await;
    two.b.start().await;
    heal(
        &two,
        [led[0], two.b.link.cut().expect("it leads somewhere")],
    );
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
    two.settled(&view, "run").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_was_discarded_has_the_source_take_back() {
    let (two, id, led) = cut_off().await;
    two.b
        .decide(id, Resolution::Discard, SERVICE)
        .await
        .expect("decided");
    assert_eq!(life(&two, "b"), None);
    heal(&two, led);
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned, "{view:#?}");
    two.settled(&view, "discarded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_decisions_that_contradict_each_other_are_shown_on_both_sides() {
    let (two, id, led) = cut_off().await;
    two.b
        .decide(id, Resolution::Run, SERVICE)
        .await
        .expect("decided");
    two.a
        .decide(id, Resolution::TakeBack, SERVICE)
        .await
        .expect("decided");
    two.a.over(id).await;
    heal(&two, led);
    for system in [&two.a, &two.b] {
        let view = system
            .until(id, |view| view.report.outcome == Outcome::Stuck)
            .await;
        let error = view.report.error.expect("a reason");
        assert!(
            error.contains("CONFLICT") && error.contains("ums rm"),
            "{error}"
        );
    }
    // The risk that the operators took is the only thing that is wrong.
    let violations = two.world.look().violations.clone();
    assert!(
        violations.iter().all(|it| it.contains("executes on")),
        "{violations:#?}"
    );
    assert_eq!(life(&two, "a"), Some(Life::Executing));
    assert_eq!(life(&two, "b"), Some(Life::Executing));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_decided_that_needs_no_decision() {
    let two = Two::new().await;
    two.a.agent.fault("checkpoint", When::Before, What::Hang, 1);
    let id = two.migrate().await;
    two.a.agent.is_reached().await;
    let early = two.a.resolution(id).await.expect_err("it goes on");
    assert_eq!((early.status, early.kind.as_str()), (409, "not-needed"));
    let early = two.a.decide(id, Resolution::TakeBack, SERVICE).await;
    assert_eq!(early.expect_err("it goes on").kind, ProblemKind::NotNeeded);
    two.a.agent.release();
    let view = two.a.over(id).await;
    two.settled(&view, "nothing").await;
    for system in [&two.a, &two.b] {
        let late = system.resolution(id).await.expect_err("it is over");
        assert_eq!(late.kind, ProblemKind::NotNeeded);
    }
    let unknown = MigrationId(uuid::Uuid::now_v7());
    let unknown = two.a.resolution(unknown).await.expect_err("not known");
    assert_eq!(unknown.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_is_confirmed_and_is_this_sides() {
    let (two, id, led) = cut_off().await;
    let unsure = two.a.decide(id, Resolution::TakeBack, "yes").await;
    assert_eq!(
        unsure.expect_err("not confirmed").kind,
        ProblemKind::NotConfirmed
    );
    for (system, choice) in [(&two.a, Resolution::Run), (&two.b, Resolution::TakeBack)] {
        let other = system.decide(id, choice, SERVICE).await;
        assert_eq!(
            other.expect_err("the other side's").kind,
            ProblemKind::NotNeeded
        );
    }
    let abort = AbortRequest::default();
    let late = two.a.post(&paths::abort(id), &abort).await;
    let late = late.expect_err("it is committed");
    assert!(late.detail.contains("ums resolve"), "{late}");
    // Only one direction heals: the source can be asked, and decides.
    two.a.link.lead_to(led[0]);
    let end = Instant::now() + PATIENCE;
    while life(&two, "b") != Some(Life::Executing) {
        assert!(Instant::now() < end, "{:#?}", two.world.look().log);
        let asked = two.b.resolution(id).await.expect_err("the source answers");
        assert_eq!(asked.kind, ProblemKind::NotNeeded);
    }
    two.b.link.lead_to(led[1]);
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
    two.settled(&view, "healed").await;
}
