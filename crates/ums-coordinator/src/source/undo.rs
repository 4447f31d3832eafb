//! The way back: compensations in reverse, until the service runs at the source as if nothing had
//! been asked.

use ums_api::http::ClientError;
use ums_api::problem::{Problem, ProblemKind};
use ums_core::saga::{Action, COMPENSATION_TRIES_MAX, Compensation, Event, row_of};
use ums_core::step::Step;

use super::migration::{Migration, Pause};

/// Problems of the agent that mean that there is nothing to undo any more: it knows of no such
/// thing, or the service has exited by itself.
const NOTHING_TO_UNDO: [ProblemKind; 4] = [
    ProblemKind::ServiceExited,
    ProblemKind::ServiceUnknown,
    ProblemKind::MigrationUnknown,
    ProblemKind::Unknown,
];

/// Undoes what was begun. A migration that can't be undone is shown as stuck, and tried on.
pub(super) async fn undo(m: &mut Migration) {
    let mut pause = Pause::new(m.limits());
    let mut begun = None;
    loop {
        let step = match m.saga().what_next() {
            Action::Compensate(step) | Action::Stuck { step, .. } => step,
            _ => return,
        };
        if begun != Some(step) {
            if !m.saga().is_being_undone(step) {
                m.note(Event::CompensationStarted {
                    step,
                    at_us: m.now_us(),
                })
                .await;
            }
            begun = Some(step);
            pause = Pause::new(m.limits());
        }
        let row = row_of(step);
        match compensate(m, step).await {
            Ok(frozen_since_us) => {
                let at_us = m.now_us();
                m.note(Event::CompensationDone {
                    step,
                    at_us,
                    frozen_since_us,
                })
                .await;
            }
            Err(Failed::Conflict(error)) => {
                m.record_until_written(vec![conflict(m, step, error)]).await
            }
            Err(Failed::Again(error)) if row.compensation.may_be_put_off() => {
                m.note(Event::CompensationPutOff {
                    step,
                    at_us: m.now_us(),
                    error,
                })
                .await;
            }
            Err(Failed::Again(error)) => {
                m.waiting(&format!("step {} has to be undone: {error}", step.number()));
                // Once stuck, further failures are no news, and a journal must not grow with them.
                if matches!(m.saga().what_next(), Action::Compensate(_)) {
                    m.note(Event::CompensationFailed {
                        step,
                        at_us: m.now_us(),
                        error,
                    })
                    .await;
                    if matches!(m.saga().what_next(), Action::Stuck { .. }) {
                        let tries = COMPENSATION_TRIES_MAX;
                        tracing::error!(migration = %m.id(), tries, "stuck: a person is needed");
                    }
                }
                pause.wait().await;
            }
        }
    }
}

/// Does in the background what was put off.
pub(super) async fn catch_up(m: &mut Migration) {
    let mut pause = Pause::new(m.limits());
    while let Action::CatchUp(step) = m.saga().what_next() {
        match compensate(m, step).await {
            Ok(frozen_since_us) => {
                let at_us = m.now_us();
                m.record_until_written(vec![Event::CompensationDone {
                    step,
                    at_us,
                    frozen_since_us,
                }])
                .await;
            }
            Err(Failed::Conflict(error)) => {
                m.record_until_written(vec![conflict(m, step, error)]).await
            }
            Err(Failed::Again(error)) => {
                tracing::debug!(migration = %m.id(), error, "the destination can't be told yet");
                pause.wait().await;
            }
        }
    }
}

/// Why a compensation is not done.
enum Failed {
    /// It may be, when it is tried again.
    Again(String),
    /// The destination runs what was given up here.
    Conflict(String),
}

impl From<String> for Failed {
    fn from(error: String) -> Self {
        Self::Again(error)
    }
}

/// What neither side can mend: it is written, and shown until a person has chosen.
fn conflict(m: &Migration, step: Step, error: String) -> Event {
    tracing::error!(migration = %m.id(), error, "conflict: two copies may execute");
    Event::Conflict {
        step,
        at_us: m.now_us(),
        error,
    }
}

/// Undoes one step. Idempotent, and content when the step never had an effect.
async fn compensate(m: &Migration, step: Step) -> Result<Option<u64>, Failed> {
    match row_of(step).compensation {
        Compensation::ReleaseDestination => release_destination(m).await.map(|()| None),
        Compensation::CloseDataPath => Ok(close_data_path(m).await.map(|()| None)?),
        Compensation::ResumeSource => Ok(resume_source(m).await?),
        Compensation::Nothing(_) | Compensation::CoveredBy(_) | Compensation::ForwardOnly => {
            Ok(None)
        }
    }
}

/// The service runs on, its endpoint is its own again, and so is its gate. In this order: what the
/// Frontman holds is handed over to a service that answers.
async fn resume_source(m: &Migration) -> Result<Option<u64>, String> {
    let (agent, id, service) = (m.agent(), m.id(), m.saga().request().service.clone());
    let frozen_since = match m.saga().delivered() {
        Some((frozen_at_us, _)) => Some(frozen_at_us),
        None => frozen_in_vain(m).await,
    };
    settled(agent.thaw(id, &service).await)?;
    settled(agent.frontman_yield(id, &service).await)?;
    settled(agent.unblock(id, &service).await)?;
    Ok(frozen_since)
}

/// When a checkpoint that has failed froze the service, if it did. The keeper may have thawed it by itself
/// since, so what is counted from here on is an upper bound.
async fn frozen_in_vain(m: &Migration) -> Option<u64> {
    let begun_us = m.saga().started_us(Step::Checkpoint)?;
    let state = m.agent().migration(m.id()).await.ok()?;
    let frozen_us = m.stopwatch.at_ns(state.frozen_at_ns?);
    // Else it was frozen by an earlier migration.
    (frozen_us >= begun_us).then_some(frozen_us)
}

/// Thawing a service that is not frozen ends what the agent does for the migration.
async fn close_data_path(m: &Migration) -> Result<(), String> {
    let (agent, id, service) = (m.agent(), m.id(), m.saga().request().service.clone());
    settled(agent.thaw(id, &service).await)?;
    settled(agent.unblock(id, &service).await)
}

async fn release_destination(m: &Migration) -> Result<(), Failed> {
    let unknown = || "the destination is no peer any more; add it again".to_owned();
    let client = m.peer().ok_or_else(unknown)?;
    let Err(error) = client.abort(m.id()).await else {
        return Ok(());
    };
    let committed = |problem: &Problem| problem.kind == ProblemKind::Committed;
    if !error.problem().is_some_and(committed) {
        return Err(Failed::Again(error.chain()));
    }
    if m.saga().leaves_pages() {
        // It ran there, and was killed when its memory could not be had: there are no two copies.
        let pages = client.pages(m.id()).await;
        let pages = pages.map_err(|error| Failed::Again(error.chain()))?;
        if pages.lost.is_some() {
            return Ok(());
        }
    }
    let there = &m.saga().request().destination;
    Err(Failed::Conflict(format!(
        "`{there}` runs the service too; keep one and delete the other with `ums rm`"
    )))
}

fn settled(answer: Result<(), ClientError>) -> Result<(), String> {
    match answer {
        Ok(()) => Ok(()),
        Err(ClientError::Problem(problem)) if NOTHING_TO_UNDO.contains(&problem.kind) => Ok(()),
        Err(error) => Err(error.chain()),
    }
}
