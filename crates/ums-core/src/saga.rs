//! The saga of a migration, as the source Coordinator runs it: a pure function of its journal.
//!
//! ```text
//!                    Requested
//!                        │
//!                        ▼    every step 1 … 12 done
//!                     Forward ──────────────── Committed ──▶ Committed ── 13, 14, 15 done ──┐
//!                        │                                                                  │
//!     StepFailed, Abandoned                                                              Finished
//!                        ▼                                                                  │
//!                   Abandoning ── nothing left to compensate ── Finished ──▶ Ended ◀────────┘
//!                      │    ▲    ▲
//!  tries used up       ▼    │    └── TakenBack, from Committed while 13 is not done
//!                     (stuck)
//! ```
//!
//! [`next`] is the only way to change a [`Saga`]; the Coordinator writes an event to its journal
//! and applies it here, and after a crash folds the journal through the same function. What is not
//! legal can't be written: from *Committed* to *Abandoning* there is [`Event::TakenBack`] alone. It
//! is written on the destination's durable word that no instruction was executed there and none
//! will be, or by an operator who was told the risk ([`TakenBackBy`]); so no crash and no silence can
//! thaw a service whose destination may run it.
//!
//! Compensations run in reverse over the steps that were begun, unless it is certain that a step
//! failed without effect. A saga that a restart finds in *Forward* is abandoned: what the agents
//! did meanwhile is not known, and before the commit undoing is always safe.

mod account;
mod event;
mod table;

use std::collections::BTreeMap;

pub use event::{Chosen, Event, Output, Request, TakenBackBy};
pub use table::{Actor, Compensation, PIVOT, Row, TABLE, row_of};

use crate::plan::Prediction;
use crate::preflight::Refusal;
use crate::report::{MigrationReport, Outcome};
use crate::step::Step;
use crate::technique::{Approach, Technique};

/// How often a compensation is tried before the migration counts as stuck. It is tried on after
/// that, but a person should look.
pub const COMPENSATION_TRIES_MAX: u32 = 8;

/// A migration, folded from its journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Saga {
    request: Request,
    phase: SagaState,
    records: BTreeMap<Step, Record>,
    /// Kept beside the phase, which forgets it at the end.
    refusals: Vec<Refusal>,
}

/// Which way it goes.
#[derive(Debug, Clone, PartialEq)]
pub enum SagaState {
    /// Towards the commit.
    Forward,
    /// Back, because of this.
    Abandoning(Cause),
    /// Past the commit: forward, unless it is taken back.
    Committed,
    /// Over.
    Ended(Box<MigrationReport>),
}

/// Why a migration is given up.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// In words.
    pub error: String,
}

/// A step that was begun.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    started_us: u64,
    ended_us: Option<u64>,
    status: Status,
    undoing: Option<Undoing>,
}

#[derive(Debug, Clone, PartialEq)]
enum Status {
    Started,
    Done(Output),
    /// It certainly had no effect.
    FailedWithoutEffect,
    /// Its effect is not known.
    Failed,
}

#[derive(Debug, Clone, PartialEq)]
enum Undoing {
    Started {
        tries: u32,
        error: Option<String>,
    },
    PutOff {
        error: String,
    },
    /// The destination runs what was given up here.
    Conflict {
        error: String,
    },
    Done {
        at_us: u64,
        frozen_since_us: Option<u64>,
    },
}

/// What has to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run this step.
    Run(Step),
    /// Write the commit.
    Commit,
    /// Undo this step.
    Compensate(Step),
    /// Undo this step, though it has failed so often that a person is needed.
    Stuck {
        /// The step.
        step: Step,
        /// Why it could not be undone.
        error: String,
    },
    /// Write the report.
    Finish(Outcome),
    /// Undo this step in the background: it was put off.
    CatchUp(Step),
    /// Nothing, ever.
    Rest,
}

/// An event that the state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the event {event} is not legal in a migration that is {state}")]
pub struct IllegalEvent {
    /// The event, in short.
    pub event: String,
    /// The state, in short.
    pub state: String,
}

/// Folds a journal.
pub fn fold<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Option<Saga>, IllegalEvent> {
    let mut saga = None;
    for event in events {
        saga = Some(next(saga, event)?);
    }
    Ok(saga)
}

/// The one transition function: the state after `event`, or why it can't happen.
pub fn next(saga: Option<Saga>, event: &Event) -> Result<Saga, IllegalEvent> {
    let Some(mut saga) = saga else {
        return match event {
            Event::Requested(request) => Ok(Saga::new(request.clone())),
            _ => Err(illegal(event, "not yet requested")),
        };
    };
    if !saga.allows(event) {
        return Err(illegal(event, saga.describe()));
    }
    saga.apply(event);
    Ok(saga)
}

impl Saga {
    fn new(request: Request) -> Self {
        Self {
            request,
            phase: SagaState::Forward,
            records: BTreeMap::new(),
            refusals: Vec::new(),
        }
    }

    /// What was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Which way it goes.
    pub fn phase(&self) -> &SagaState {
        &self.phase
    }

    /// Whether the commit was written.
    pub fn is_committed(&self) -> bool {
        match &self.phase {
            SagaState::Committed => true,
            SagaState::Ended(report) => report.outcome == Outcome::Completed,
            SagaState::Forward | SagaState::Abandoning(_) => false,
        }
    }

    /// The step that was begun last.
    pub fn current_step(&self) -> Option<Step> {
        self.records.keys().next_back().copied()
    }

    /// What a step handed on, once done.
    pub fn output(&self, step: Step) -> Option<&Output> {
        match self.records.get(&step).map(|record| &record.status) {
            Some(Status::Done(output)) => Some(output),
            _ => None,
        }
    }

    /// Where the service will answer at the destination.
    pub fn endpoints(&self) -> &[std::net::SocketAddr] {
        match self.output(Step::ConfirmContainer) {
            Some(Output::Created { endpoints }) => endpoints,
            _ => &[],
        }
    }

    /// When the freeze began and what was delivered, once it was.
    pub fn delivered(&self) -> Option<(u64, &str)> {
        match self.output(Step::ImageComplete) {
            Some(Output::Delivered {
                frozen_at_us,
                digest,
                ..
            }) => Some((*frozen_at_us, digest)),
            _ => None,
        }
    }

    /// What was refused, if that is why it was given up.
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// Whether it may be taken back: committed, and not known to execute at the destination.
    pub fn may_be_taken_back(&self) -> bool {
        self.phase == SagaState::Committed
            && (self.is_under_way(PIVOT) || self.has_all_that_was_committed())
    }

    /// Whether the source still has the whole service, as it was at the commit, although it ran elsewhere: pages
    /// of it have stayed here, and nothing was deleted. Only an operator takes that back.
    pub fn has_all_that_was_committed(&self) -> bool {
        self.leaves_pages() && self.is_under_way(Step::DeleteSource)
    }

    /// Whether pages stay at the source until the service runs at the destination.
    pub fn leaves_pages(&self) -> bool {
        let (_, technique, _) = self.chosen();
        technique.is_some_and(Technique::leaves_pages)
    }

    /// Approach, technique and what they are predicted to cost: from the facts of both ends once the destination
    /// was asked, before that from the source's.
    pub fn chosen(&self) -> (Option<Approach>, Option<Technique>, Option<&Prediction>) {
        if let Some(Output::Verified {
            chosen: Some(chosen),
            ..
        }) = self.output(Step::VerifyPeer)
        {
            let predicted = Some(&chosen.predicted);
            return (Some(chosen.approach), Some(chosen.technique), predicted);
        }
        match self.output(Step::DetermineApproach) {
            Some(Output::Planned {
                approach,
                technique,
                predicted,
                ..
            }) => (Some(*approach), Some(*technique), predicted.as_ref()),
            _ => (None, None, None),
        }
    }

    /// Version of the peer API that was agreed on with the destination: the first, until it was asked.
    pub fn peer_version(&self) -> u32 {
        match self.output(Step::VerifyPeer) {
            Some(Output::Verified { version, .. }) => *version,
            _ => 1,
        }
    }

    /// What the destination said that runs what was given up here, if it did.
    pub fn conflict(&self) -> Option<&str> {
        self.records
            .values()
            .find_map(|record| match &record.undoing {
                Some(Undoing::Conflict { error }) => Some(error.as_str()),
                _ => None,
            })
    }

    fn cause(&self) -> Option<&Cause> {
        match &self.phase {
            SagaState::Abandoning(cause) => Some(cause),
            _ => None,
        }
    }

    /// What has to be done next.
    pub fn what_next(&self) -> Action {
        match &self.phase {
            SagaState::Forward => {
                self.next_step(Step::DetermineApproach, Step::Restore, Action::Commit)
            }
            SagaState::Committed => {
                let over = Action::Finish(Outcome::Completed);
                self.next_step(Step::Commit, Step::DeleteSource, over)
            }
            SagaState::Abandoning(_) => self.next_compensation(),
            SagaState::Ended(_) => {
                let waiting =
                    |record: &Record| matches!(record.undoing, Some(Undoing::PutOff { .. }));
                match self.records.iter().find(|(_, record)| waiting(record)) {
                    Some((step, _)) => Action::CatchUp(*step),
                    None => Action::Rest,
                }
            }
        }
    }

    fn next_step(&self, first: Step, last: Step, over: Action) -> Action {
        let range = Step::ALL
            .into_iter()
            .filter(|step| (first..=last).contains(step));
        let mut open = range.filter(|step| self.output(*step).is_none());
        open.next().map_or(over, Action::Run)
    }

    fn next_compensation(&self) -> Action {
        let open = |step: &&Step| self.to_undo(**step);
        let Some(step) = self.records.keys().rev().find(open).copied() else {
            return Action::Finish(match self.conflict() {
                Some(_) => Outcome::Stuck,
                None if !self.refusals.is_empty() => Outcome::Refused,
                None => Outcome::Abandoned,
            });
        };
        match &self.records[&step].undoing {
            Some(Undoing::Started {
                tries,
                error: Some(error),
            }) if *tries >= COMPENSATION_TRIES_MAX => Action::Stuck {
                step,
                error: error.clone(),
            },
            _ => Action::Compensate(step),
        }
    }

    /// Whether a step still has to be undone (while abandoning).
    fn to_undo(&self, step: Step) -> bool {
        let Some(record) = self.records.get(&step) else {
            return false;
        };
        row_of(step).compensation.acts()
            && record.status != Status::FailedWithoutEffect
            && !matches!(
                record.undoing,
                Some(Undoing::Done { .. } | Undoing::PutOff { .. } | Undoing::Conflict { .. })
            )
    }

    fn allows(&self, event: &Event) -> bool {
        match event {
            Event::Requested(_) => false,
            Event::StepStarted { step, .. } => {
                let pivot_or_begun = *step == PIVOT || self.records.contains_key(step);
                !pivot_or_begun && self.what_next() == Action::Run(*step)
            }
            Event::StepDone { step, .. } => self.is_under_way(*step),
            Event::StepFailed { step, .. } => {
                self.phase == SagaState::Forward && self.is_under_way(*step)
            }
            Event::Abandoned { .. } => self.phase == SagaState::Forward,
            Event::Committed { .. } => self.what_next() == Action::Commit,
            Event::TakenBack { by, .. } => {
                let ran = self.has_all_that_was_committed();
                self.may_be_taken_back() && (!ran || *by == TakenBackBy::Operator)
            }
            Event::Conflict { step, .. } => {
                row_of(*step).compensation.may_be_put_off()
                    && (self.is_being_undone(*step) || self.what_next() == Action::CatchUp(*step))
            }
            Event::CompensationStarted { step, .. } => {
                self.undoable(*step) && self.records[step].undoing.is_none()
            }
            Event::CompensationDone { step, .. } => {
                self.is_being_undone(*step) || self.what_next() == Action::CatchUp(*step)
            }
            Event::CompensationFailed { step, .. } => self.is_being_undone(*step),
            Event::CompensationPutOff { step, .. } => {
                self.is_being_undone(*step) && row_of(*step).compensation.may_be_put_off()
            }
            Event::Finished { report } => {
                report.migration_id == self.request.id && self.may_finish(report.outcome)
            }
        }
    }

    /// Whether this is how it ends. What was refused was called abandoned in earlier journals.
    fn may_finish(&self, outcome: Outcome) -> bool {
        match self.what_next() {
            Action::Finish(Outcome::Refused) => {
                matches!(outcome, Outcome::Refused | Outcome::Abandoned)
            }
            Action::Finish(due) => due == outcome,
            _ => false,
        }
    }

    /// When a step was begun.
    pub fn started_us(&self, step: Step) -> Option<u64> {
        self.records.get(&step).map(|record| record.started_us)
    }

    /// Whether a step was begun and is neither done nor failed.
    pub fn is_under_way(&self, step: Step) -> bool {
        matches!(self.phase, SagaState::Forward | SagaState::Committed)
            && self
                .records
                .get(&step)
                .is_some_and(|record| record.status == Status::Started)
    }

    /// Whether undoing this step is what comes next.
    fn undoable(&self, wanted: Step) -> bool {
        match self.what_next() {
            Action::Compensate(step) | Action::Stuck { step, .. } => step == wanted,
            _ => false,
        }
    }

    /// Whether the compensation of a step is what comes next, and was begun.
    pub fn is_being_undone(&self, step: Step) -> bool {
        self.undoable(step) && self.records[&step].undoing.is_some()
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Requested(_) => {}
            Event::StepStarted { step, at_us } => self.begin(*step, *at_us),
            Event::StepDone {
                step,
                at_us,
                output,
            } => {
                self.end(*step, *at_us, Status::Done(output.clone()));
            }
            Event::StepFailed {
                step,
                at_us,
                error,
                without_effect,
                refusals,
            } => {
                let status = if *without_effect {
                    Status::FailedWithoutEffect
                } else {
                    Status::Failed
                };
                self.end(*step, *at_us, status);
                let error = error.clone();
                self.phase = SagaState::Abandoning(Cause { error });
                self.refusals.clone_from(refusals);
            }
            Event::Abandoned { reason, .. } => {
                let error = reason.clone();
                self.phase = SagaState::Abandoning(Cause { error });
            }
            Event::Committed { at_us } => {
                self.begin(PIVOT, *at_us);
                self.phase = SagaState::Committed;
            }
            Event::TakenBack { reason, .. } => {
                let error = reason.clone();
                self.phase = SagaState::Abandoning(Cause { error });
            }
            Event::Conflict { step, error, .. } => {
                if let SagaState::Ended(report) = &mut self.phase {
                    report.outcome = Outcome::Stuck;
                    report.error = Some(account::in_conflict(report.error.take(), error));
                }
                let error = error.clone();
                self.undo(*step, Undoing::Conflict { error });
            }
            Event::CompensationStarted { step, .. } => {
                self.undo(
                    *step,
                    Undoing::Started {
                        tries: 0,
                        error: None,
                    },
                );
            }
            Event::CompensationFailed { step, error, .. } => {
                let tries = match self
                    .records
                    .get(step)
                    .and_then(|record| record.undoing.as_ref())
                {
                    Some(Undoing::Started { tries, .. }) => (tries + 1).min(COMPENSATION_TRIES_MAX),
                    _ => 1,
                };
                self.undo(
                    *step,
                    Undoing::Started {
                        tries,
                        error: Some(error.clone()),
                    },
                );
            }
            Event::CompensationPutOff { step, error, .. } => {
                self.undo(
                    *step,
                    Undoing::PutOff {
                        error: error.clone(),
                    },
                );
            }
            Event::CompensationDone {
                step,
                at_us,
                frozen_since_us,
            } => {
                let (at_us, frozen_since_us) = (*at_us, *frozen_since_us);
                self.undo(
                    *step,
                    Undoing::Done {
                        at_us,
                        frozen_since_us,
                    },
                );
            }
            Event::Finished { report } => self.phase = SagaState::Ended(report.clone()),
        }
    }

    fn begin(&mut self, step: Step, started_us: u64) {
        let record = Record {
            started_us,
            ended_us: None,
            status: Status::Started,
            undoing: None,
        };
        self.records.insert(step, record);
    }

    fn end(&mut self, step: Step, at_us: u64, status: Status) {
        if let Some(record) = self.records.get_mut(&step) {
            record.ended_us = Some(at_us);
            record.status = status;
        }
    }

    fn undo(&mut self, step: Step, undoing: Undoing) {
        if let Some(record) = self.records.get_mut(&step) {
            record.undoing = Some(undoing);
        }
    }

    fn describe(&self) -> String {
        let phase = match &self.phase {
            SagaState::Forward => "going forward",
            SagaState::Abandoning(_) => "being abandoned",
            SagaState::Committed => "committed",
            SagaState::Ended(_) => "over",
        };
        match self.current_step() {
            Some(step) => format!("{phase}, last step {} ({})", step.number(), step.name()),
            None => phase.to_owned(),
        }
    }
}

fn illegal(event: &Event, state: impl Into<String>) -> IllegalEvent {
    let mut event = format!("{event:?}");
    let end = event
        .char_indices()
        .nth(120)
        .map_or(event.len(), |(at, _)| at);
    event.truncate(end);
    IllegalEvent {
        event,
        state: state.into(),
    }
}

#[cfg(test)]
mod test;
