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

mod event;
mod table;

use std::collections::BTreeMap;

pub use event::{Chosen, Event, Output, Request, TakenBackBy};
pub use table::{Actor, Compensation, PIVOT, Row, TABLE, row_of};

use crate::budget::{self, Span};
use crate::facts::Loss;
use crate::plan::Prediction;
use crate::preflight::Refusal;
use crate::report::{Bytes, MigrationReport, Outcome, StepTiming};
use crate::step::Step;
use crate::technique::{Approach, Technique};

/// How often a compensation is tried before the migration counts as stuck. It is tried on after
/// that, but a person should look.
pub const COMPENSATION_TRIES_MAX: u32 = 8;

/// A migration, folded from its journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Saga {
    request: Request,
    phase: Phase,
    records: BTreeMap<Step, Record>,
    /// Kept beside the phase, which forgets it at the end.
    refusals: Vec<Refusal>,
}

/// Which way it goes.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
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
            phase: Phase::Forward,
            records: BTreeMap::new(),
            refusals: Vec::new(),
        }
    }

    /// What was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Which way it goes.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether the commit was written.
    pub fn is_committed(&self) -> bool {
        match &self.phase {
            Phase::Committed => true,
            Phase::Ended(report) => report.outcome == Outcome::Completed,
            Phase::Forward | Phase::Abandoning(_) => false,
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
        self.phase == Phase::Committed
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
            Phase::Abandoning(cause) => Some(cause),
            _ => None,
        }
    }

    /// What has to be done next.
    pub fn what_next(&self) -> Action {
        match &self.phase {
            Phase::Forward => {
                self.next_step(Step::DetermineApproach, Step::Restore, Action::Commit)
            }
            Phase::Committed => {
                let over = Action::Finish(Outcome::Completed);
                self.next_step(Step::Commit, Step::DeleteSource, over)
            }
            Phase::Abandoning(_) => self.next_compensation(),
            Phase::Ended(_) => {
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
                self.phase == Phase::Forward && self.is_under_way(*step)
            }
            Event::Abandoned { .. } => self.phase == Phase::Forward,
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
        matches!(self.phase, Phase::Forward | Phase::Committed)
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
                self.phase = Phase::Abandoning(Cause { error });
                self.refusals.clone_from(refusals);
            }
            Event::Abandoned { reason, .. } => {
                let error = reason.clone();
                self.phase = Phase::Abandoning(Cause { error });
            }
            Event::Committed { at_us } => {
                self.begin(PIVOT, *at_us);
                self.phase = Phase::Committed;
            }
            Event::TakenBack { reason, .. } => {
                let error = reason.clone();
                self.phase = Phase::Abandoning(Cause { error });
            }
            Event::Conflict { step, error, .. } => {
                if let Phase::Ended(report) = &mut self.phase {
                    report.outcome = Outcome::Stuck;
                    report.error = Some(in_conflict(report.error.take(), error));
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
            Event::Finished { report } => self.phase = Phase::Ended(report.clone()),
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

    /// The account so far, at `now_us`. `moved` is what a copy that is not finished has moved.
    pub fn report(&self, now_us: u64, moved: Option<Bytes>) -> MigrationReport {
        if let Phase::Ended(report) = &self.phase {
            return (**report).clone();
        }
        let next = self.what_next();
        let outcome = match &next {
            Action::Finish(outcome) => *outcome,
            Action::Stuck { .. } => Outcome::Stuck,
            _ => Outcome::Running,
        };
        let (approach, technique, predicted) = self.chosen();
        let (at_source, losses) = match self.output(Step::DetermineApproach) {
            Some(Output::Planned {
                endpoint, losses, ..
            }) => (*endpoint, losses.clone()),
            _ => (None, Vec::new()),
        };
        let predicted = predicted.cloned();
        let losses = self.losses(losses);
        let (bytes, rounds) = match self.output(Step::ImageComplete) {
            Some(Output::Delivered { bytes, rounds, .. }) => (*bytes, *rounds),
            _ => (moved.unwrap_or_default(), 0),
        };
        let (downtime_us, freeze_us) = self.interruption();
        let endpoint = if self.is_committed() {
            self.endpoints().first().copied()
        } else {
            at_source
        };
        MigrationReport {
            migration_id: self.request.id,
            service: self.request.service.clone(),
            source: self.request.source.clone(),
            destination: self.request.destination.clone(),
            approach,
            technique,
            outcome,
            total_ms: now_us / 1000,
            downtime_ms: downtime_us.map(milliseconds),
            freeze_ms: freeze_us.map(milliseconds),
            downtime_parts: self.downtime_parts(),
            at_risk_ms: match self.output(Step::DeleteSource) {
                Some(Output::Closed { at_risk_us, .. }) => at_risk_us.map(milliseconds),
                _ => None,
            },
            steps: self.timings(),
            bytes,
            rounds,
            endpoint: endpoint.map(|address| address.to_string()),
            error: self.error(&next),
            losses,
            predicted,
        }
    }

    /// Where the downtime went, once the destination has told its part.
    fn downtime_parts(&self) -> Vec<Span> {
        let delivered = match self.output(Step::ImageComplete) {
            Some(Output::Delivered { spans, .. }) => spans.as_slice(),
            _ => &[],
        };
        match (self.output(Step::Commit), self.output(Step::DeleteSource)) {
            (
                Some(Output::Running {
                    downtime_us: Some(downtime_us),
                    spans: here,
                    ..
                }),
                Some(Output::Closed { spans: there, .. }),
            ) => {
                let all = delivered.iter().chain(here).chain(there);
                budget::parts(all.copied(), *downtime_us)
            }
            _ => Vec::new(),
        }
    }

    /// What the destination has found in addition to what was seen before: each is told once.
    fn losses(&self, mut seen: Vec<Loss>) -> Vec<Loss> {
        if let Some(Output::Verified { losses, .. }) = self.output(Step::VerifyPeer) {
            seen.extend(losses.iter().cloned());
        }
        if let Some(Output::Closed { losses, .. }) = self.output(Step::DeleteSource) {
            let known = seen.len();
            let new = losses.iter().filter(|loss| !seen[..known].contains(loss));
            let new: Vec<Loss> = new.cloned().collect();
            seen.extend(new);
        }
        seen
    }

    fn error(&self, next: &Action) -> Option<String> {
        let cause = self.cause()?.error.clone();
        let undoing = |record: &Record| match &record.undoing {
            Some(Undoing::PutOff { error }) => Some(error.clone()),
            _ => None,
        };
        let mut text = cause;
        if let Some(error) = self.records.values().find_map(undoing) {
            text.push_str("; the destination still has to be told, and will be: ");
            text.push_str(&error);
        }
        if let Some(error) = self.conflict() {
            text = in_conflict(Some(text), error);
        }
        if let Action::Stuck { step, error } = next {
            text.push_str(&format!(
                "; step {} could not be undone: {error}",
                step.number()
            ));
        }
        Some(text)
    }

    /// Downtime and freeze, microseconds.
    fn interruption(&self) -> (Option<u64>, Option<u64>) {
        if let Some(Output::Running {
            downtime_us,
            freeze_us,
            ..
        }) = self.output(Step::Commit)
        {
            return (*downtime_us, *freeze_us);
        }
        let undone = self
            .records
            .get(&Step::Checkpoint)
            .and_then(|record| record.undoing.as_ref());
        match undone {
            Some(Undoing::Done {
                at_us,
                frozen_since_us: Some(since),
            }) => (None, Some(at_us.saturating_sub(*since))),
            _ => (None, None),
        }
    }

    fn timings(&self) -> Vec<StepTiming> {
        let timing = |(step, record): (&Step, &Record)| StepTiming {
            step: step.number(),
            name: step.name().to_owned(),
            started_ms: record.started_us / 1000,
            ended_ms: record.ended_us.map(|at| at / 1000),
        };
        self.records.iter().map(timing).collect()
    }

    fn describe(&self) -> String {
        let phase = match &self.phase {
            Phase::Forward => "going forward",
            Phase::Abandoning(_) => "being abandoned",
            Phase::Committed => "committed",
            Phase::Ended(_) => "over",
        };
        match self.current_step() {
            Some(step) => format!("{phase}, last step {} ({})", step.number(), step.name()),
            None => phase.to_owned(),
        }
    }
}

fn in_conflict(text: Option<String>, error: &str) -> String {
    let before = text.map(|text| text + "; ").unwrap_or_default();
    format!("{before}CONFLICT, two copies may execute: {error}")
}

fn milliseconds(us: u64) -> f64 {
    us as f64 / 1000.0
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
