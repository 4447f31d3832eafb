//! What a migration's report tells, from its journal alone: the same during it, afterwards, and after a restart.

use super::{Action, Output, Record, Saga, SagaState, Undoing};
use crate::budget::{self, Span};
use crate::facts::Loss;
use crate::report::{Bytes, MigrationReport, Outcome, StepTiming};
use crate::step::Step;

impl Saga {
    /// The account so far, at `now_us`. `moved` is what a copy that is not finished has moved.
    pub fn report(&self, now_us: u64, moved: Option<Bytes>) -> MigrationReport {
        if let SagaState::Ended(report) = &self.phase {
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
}

/// What was said before, and that the destination runs what was given up here.
pub(super) fn in_conflict(text: Option<String>, error: &str) -> String {
    let before = text.map(|text| text + "; ").unwrap_or_default();
    format!("{before}CONFLICT, two copies may execute: {error}")
}

fn milliseconds(us: u64) -> f64 {
    us as f64 / 1000.0
}
