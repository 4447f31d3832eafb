//! The source: one task owns one migration, and takes it through the 15 steps (UMS §III-B).
//!
//! [`run`] is the whole of it: the steps to the commit as a list, the unwinding below them, and
//! what comes after the commit, which knows one way back only: on the destination's word that it has
//! not executed the service and never will, or on the operator's decision. Everything it does is written to the
//! journal through the saga's transition function before or right after it is done.

mod migration;
mod steps;
mod undo;

use std::sync::Arc;

use ums_core::report::Outcome;
use ums_core::saga::{Action, Event, Saga, SagaState};

pub(crate) use migration::{Failure, Migration, finished_view, view_of};

use crate::shared::Shared;
use crate::tasks::caught;
use migration::Pause;

/// Begins a migration that was admitted and whose request is in the journal.
pub(crate) fn begin(shared: &Arc<Shared>, migration: Migration) {
    shared.tasks.spawn(watched(migration, true));
}

/// Goes on with a migration that a restart found unfinished.
pub(crate) fn resume(shared: &Arc<Shared>, saga: Saga, written: u32) {
    let migration = readmitted(shared, saga, written);
    shared.tasks.spawn(watched(migration, false));
}

fn readmitted(shared: &Arc<Shared>, saga: Saga, written: u32) -> Migration {
    let live = shared.registry.readmit(view_of(&saga));
    Migration::new(Arc::clone(shared), saga, written, live)
}

/// Runs a migration to its end. One that panics, which is a fault of this program, is shown as stuck;
/// then the journal tells where it stands, and it is undone or completed as after a restart. So a
/// service is not left frozen for it, nor locked until somebody starts the Coordinator again.
async fn watched(mut migration: Migration, mut fresh: bool) {
    let (shared, id) = (Arc::clone(&migration.shared), migration.id());
    let mut pause = Pause::new(&shared.config.limits);
    loop {
        let live = Arc::clone(&migration.live);
        let Err(panic) = caught(run(migration, fresh)).await else {
            return;
        };
        tracing::error!(migration = %id, panic, "stuck: its task panicked; it is taken up again");
        live.panicked(&panic);
        let (saga, written) = loop {
            pause.wait().await;
            match shared.journal(move |journal| journal.saga(id)).await {
                Ok(Some(known)) => break known,
                // It was never begun, durably.
                Ok(None) => return shared.registry.forget(id),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(migration = %id, error, "the journal can't be read");
                }
            }
        };
        migration = readmitted(&shared, saga, written);
        // Those who watched the old one ask again.
        live.update(|_| {});
        fresh = false;
    }
}

async fn run(mut migration: Migration, fresh: bool) {
    let m = &mut migration;
    if *m.saga().phase() == SagaState::Forward {
        let gone = if fresh {
            to_the_commit(m).await
        } else {
            Err(restarted())
        };
        if let Err(failure) = gone {
            m.give_up(failure).await;
        }
    }
    if *m.saga().phase() == SagaState::Committed {
        from_the_commit(m).await;
    }
    if matches!(m.saga().phase(), SagaState::Abandoning(_)) {
        undo::undo(m).await;
    }
    if let Action::Finish(outcome) = m.saga().what_next() {
        m.finish(outcome).await;
    }
    undo::catch_up(m).await;
    m.leave();
}

/// The happy path to the commit. Whatever fails here is undone.
async fn to_the_commit(m: &mut Migration) -> Result<(), Failure> {
    let here = steps::determine_approach(m).await?; //                        1
    let plan = steps::verify_peer(m, here).await?; //                         2
    steps::send_specification(m, &plan).await?; //                            3
    let created = steps::create_container(m).await?; //                       4, 5, 6
    steps::open_data_path(m, &plan, &created).await?; //                             7
    let digest = steps::checkpoint_and_transfer(m, &plan).await?; //          8, 9, 10
    steps::restore(m, digest).await?; //                                      11, 12
    steps::confirm(m, &plan).await?;
    m.commit().await //                                                       13: no way back
}

/// What follows the commit. Each step is repeated until it is done, over restarts too; only the
/// first may end with the commit taken back.
async fn from_the_commit(m: &mut Migration) {
    steps::run_at_destination(m).await; //                                    13
    if *m.saga().phase() != SagaState::Committed {
        return;
    }
    steps::announce(m).await; //                                              14
    steps::delete_source(m).await; //                                         15
}

fn restarted() -> Failure {
    Failure::between("the Coordinator of the source was restarted before the commit")
}

/// The event that gives a migration up.
fn abandon(saga: &Saga, failure: Failure, at_us: u64) -> Event {
    match failure.step {
        Some(step) if saga.is_under_way(step) => Event::StepFailed {
            step,
            at_us,
            error: failure.error,
            without_effect: failure.without_effect,
            refusals: failure.refusals,
        },
        _ => Event::Abandoned {
            at_us,
            reason: failure.error,
        },
    }
}

/// In words for a person.
fn ending_in_words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Running => "under way",
        Outcome::Completed => "completed",
        Outcome::Abandoned => "abandoned",
        Outcome::Refused => "refused",
        Outcome::Stuck => "stuck",
    }
}
