//! One run: a migration under faults, until all is over, and what is wrong with it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use ums_api::client::{MigrateRequest, MigrationView, Resolution, ResolveRequest, paths};
use ums_core::id::MigrationId;
use ums_core::report::Outcome;

use super::fault::{Kind, Moment, Side, Strike, Will};
use super::host;
use super::system::{self, Coordinator};
use super::truth::{Container, Frontman, Keeper, Life};
use super::world::{Mutant, World};

/// Period of looking whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long it may take, faults included. Longer than all that any run waits for.
const PATIENCE: Duration = Duration::from_secs(400);
/// How long chance may strike.
const CHANCE_LASTS: Duration = Duration::from_secs(90);

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum End {
    /// Nothing was begun.
    NotAdmitted,
    /// The service executes at the destination.
    Completed,
    /// The service executes at the source.
    Abandoned,
    /// It has executed at the destination, and was then ended by a fault.
    CompletedThenLost,
    /// It was ended at the source by a fault; the migration was given up.
    AbandonedAndLost,
    /// An instance was lost when it was let run, so that nobody knows whether it has executed; the
    /// report said that a person is needed, who took the service back to the source.
    Resolved,
}

/// What a run was.
pub(super) struct Played {
    pub(super) end: Option<End>,
    pub(super) wrong: Vec<String>,
    pub(super) trace: Vec<String>,
    pub(super) moments: Vec<(Kind, Moment)>,
    pub(super) struck: Vec<Strike>,
}

/// Plays a run.
pub(super) fn play(will: Will, mutant: Option<Mutant>) -> Played {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let world = World::new(will, mutant);
    let end = runtime.block_on(async {
        host::begin();
        go(&world).await
    });
    world.end();
    drop(runtime);
    let fates = world.fates();
    let mut truth = world.truth();
    Played {
        end,
        wrong: std::mem::take(&mut truth.violations),
        trace: std::mem::take(&mut truth.trace),
        moments: fates.moments.clone(),
        struck: fates.struck.clone(),
    }
}

async fn go(world: &Arc<World>) -> Option<End> {
    {
        let mut truth = world.truth();
        truth.node(Side::A).service = Some(Container {
            specification: system::specification(),
            gate: None,
            arriving: None,
            keeper: Some(Keeper {
                phase: Life::Executing,
                ledger: 0,
                resumed: false,
            }),
            packets_held: false,
        });
        truth.judge();
    }
    for side in Side::BOTH {
        world.start_agent(side);
        world.start_coordinator(side).await;
    }
    let id = admitted(world).await;
    let Some(end) = settled(world, id).await else {
        world.truth().violation("it does not end");
        return None;
    };
    let Some(id) = id else {
        return Some(end);
    };
    let before = told(world, id).await;
    world.restart_coordinators().await;
    let after = told(world, id).await;
    if before != after {
        world.truth().violation(format!(
            "a restart changes the report: {before:?} {after:?}"
        ));
    }
    Some(end)
}

/// What both sides tell in the end.
async fn told(world: &Arc<World>, id: MigrationId) -> Vec<Option<String>> {
    let mut told = Vec::new();
    for side in Side::BOTH {
        let Some(coordinator) = world.coordinator(side) else {
            told.push(None);
            continue;
        };
        let view = coordinator.view(id).await;
        told.push(view.map(|view| format!("{:?} {:?}", view.report.outcome, view.report.endpoint)));
    }
    told
}

/// Asks for the migration, until it is admitted or nobody would ask any more.
async fn admitted(world: &Arc<World>) -> Option<MigrationId> {
    let request = MigrateRequest {
        service: system::service_name(),
        destination: system::system_name(Side::B),
        approach: None,
        technique: None,
        max_downtime_ms: None,
        accept_loss: false,
        engine: None,
        measure: false,
    };
    let body = serde_json::to_string(&request).expect("a request");
    for _ in 0..60 {
        if let Some(source) = world.coordinator(Side::A) {
            let known = source.history().await.unwrap_or_default();
            if let Some(view) = known.first() {
                return Some(view.report.migration_id);
            }
            let answer = source.ask::<MigrationView>(Method::POST, paths::MIGRATIONS, body.clone());
            if let Some(Ok(view)) = answer.await {
                return Some(view.report.migration_id);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

/// Waits until nothing is left to do, judging meanwhile; how it ended, or `None` if it does not.
///
/// A person who is needed comes late, and once.
async fn settled(world: &Arc<World>, id: Option<MigrationId>) -> Option<End> {
    let mut began = tokio::time::Instant::now();
    let mut resolved = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if began.elapsed() > CHANCE_LASTS {
            world.fates().end();
        }
        let sides = Side::BOTH.map(|side| (world.coordinator(side), world.agent(side)));
        let [(Some(a), Some(at_a)), (Some(b), Some(at_b))] = sides else {
            continue;
        };
        let view = match id {
            Some(id) => a.view(id).await,
            None => None,
        };
        if let Some(view) = &view {
            truthful(world, view);
        }
        let calm = world.is_calm();
        if calm && a.is_done() && b.is_done() {
            if at_a.held() + at_b.held() > 0 {
                world
                    .truth()
                    .violation("an agent still holds something of it");
            }
            let end = judge(world, &b, view, id).await;
            return Some(if resolved { End::Resolved } else { end });
        }
        if began.elapsed() > PATIENCE {
            if resolved || !needs_a_person(world, &view?) {
                return None;
            }
            resolve(world, id?).await;
            (resolved, began) = (true, tokio::time::Instant::now());
        }
    }
}

/// What the report says while something is still going on must be so.
fn truthful(world: &World, view: &MigrationView) {
    let mut truth = world.truth();
    let [a, b] = Side::BOTH.map(|side| truth.life(side) == Some(Life::Executing));
    let [lost_a, lost_b] = truth.lost;
    let lie = match view.report.outcome {
        Outcome::Completed => a || !(b || lost_b),
        Outcome::Abandoned | Outcome::Refused => b || !(a || lost_a),
        Outcome::Running | Outcome::Stuck => false,
    };
    if lie {
        truth.violation(format!("the report says {:?}", view.report.outcome));
    }
}

/// It does not end. That is so for good reason only where an instance is lost at the destination,
/// and then it says so.
fn needs_a_person(world: &World, view: &MigrationView) -> bool {
    let lost = world.truth().lost[Side::B.index()];
    lost && view.report.outcome == Outcome::Stuck && view.resolvable
}

/// A person does what `docs/runbook.md` says: has what is left at the destination discarded, then
/// the source's copy taken back.
async fn resolve(world: &Arc<World>, id: MigrationId) {
    world.truth().risk_taken = true;
    for (side, choice) in [
        (Side::B, Resolution::Discard),
        (Side::A, Resolution::TakeBack),
    ] {
        let request = ResolveRequest {
            choice,
            confirm: id.to_string(),
        };
        let body = serde_json::to_string(&request).expect("a request");
        let path = paths::resolve(id);
        let answer = match world.coordinator(side) {
            Some(coordinator) => {
                coordinator
                    .ask::<MigrationView>(Method::POST, &path, body)
                    .await
            }
            None => None,
        };
        let answer = answer.map(|answer| answer.map(|_| ()));
        world
            .truth()
            .note(format!("{choice:?} at {}: {answer:?}", side.name()));
    }
}

/// All is over: judges what is left.
async fn judge(
    world: &Arc<World>,
    b: &Coordinator,
    view: Option<MigrationView>,
    id: Option<MigrationId>,
) -> End {
    let there = match id {
        Some(id) => b.view(id).await,
        None => None,
    };
    let mut truth = world.truth();
    let Some(view) = view else {
        if id.is_some() {
            truth.violation("the migration is forgotten");
        }
        return End::NotAdmitted;
    };
    let report = view.report;
    let completed = report.outcome == Outcome::Completed;
    let (place, end, lost) = match report.outcome {
        Outcome::Completed => (Side::B, End::Completed, End::CompletedThenLost),
        _ => (Side::A, End::Abandoned, End::AbandonedAndLost),
    };
    let mut wrong = Vec::new();
    if !matches!(
        report.outcome,
        Outcome::Completed | Outcome::Abandoned | Outcome::Refused
    ) {
        wrong.push(format!(
            "it is over, and the report says {:?}",
            report.outcome
        ));
    }
    if report.error.is_some() == completed || report.downtime_ms.is_some() != completed {
        wrong.push(format!("the report is at odds with itself: {report:?}"));
    }
    let answers_at = Some(system::endpoint(place).to_string());
    if report.endpoint != answers_at && (completed || report.endpoint.is_some()) {
        wrong.push(format!(
            "the report says that it answers at {:?}",
            report.endpoint
        ));
    }
    if let Some(there) = there.map(|view| view.report.outcome)
        && there != report.outcome
    {
        wrong.push(format!("the destination says {there:?}"));
    }
    let is_lost = truth.lost[place.index()] && truth.life(place) != Some(Life::Executing);
    if !is_lost && truth.life(place) != Some(Life::Executing) {
        wrong.push(format!("it does not execute on {}", place.name()));
    }
    match &truth.nodes[place.index()].service {
        Some(service)
            if service.gate.is_none() && service.arriving.is_none() && !service.packets_held => {}
        other => wrong.push(format!("on {}: {other:?}", place.name())),
    }
    if truth.nodes[place.other().index()].service.is_some() {
        wrong.push(format!("something is left on {}", place.other().name()));
    }
    let frontmen = Side::BOTH.map(|side| truth.nodes[side.index()].frontman);
    let wanted = [completed.then_some(Frontman::Leading), None];
    if frontmen != wanted {
        wrong.push(format!("Frontmen: {frontmen:?}"));
    }
    for wrong in wrong {
        truth.violation(wrong);
    }
    if is_lost { lost } else { end }
}
