//! What is done with a specimen, by what is expected of it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ums_core::facts::{Loss, LossKind};
use ums_core::plan::Plan;
use ums_core::preflight::{Refusal, RefusalKind};
use ums_core::report::Outcome;

use super::{Expected, Specimen};
use crate::system::System;
use crate::testbed::Testbed;

/// Exit code of what is refused.
const REFUSED: i32 = 3;
/// Last step of a migration that touches nothing.
const LAST_HARMLESS_STEP: u64 = 3;
/// Consent to what a move changes.
const ACCEPT_LOSS: &str = "--accept-loss";

impl Specimen {
    /// Starts it on the first system, does what shows what is expected of it, and removes it.
    pub fn is_as_expected(&self, testbed: &Testbed) -> Result<()> {
        self.start(testbed, &testbed.a)?;
        match self.expected {
            Expected::Carried => self.is_carried(testbed, &[])?,
            Expected::Refused(kind, words) => self.is_refused(testbed, kind, words)?,
            Expected::Abandoned(words) => self.is_abandoned(testbed, words)?,
            Expected::Declared(kind, words) => self.is_declared(testbed, kind, words)?,
        }
        self.remove(&testbed.a)
    }

    /// There, back at once (its pages may not all be in), and once more with rounds in between.
    fn is_carried(&self, testbed: &Testbed, options: &[&str]) -> Result<()> {
        let (a, b) = (&testbed.a, &testbed.b);
        self.migrate(testbed, (a, b), options)?;
        self.migrate(testbed, (b, a), options)?;
        self.goes_on(a)?;
        self.migrate(testbed, (a, b), options)?;
        self.goes_on(b)?;
        self.migrate(testbed, (b, a), options)?;
        self.goes_on(a)
    }

    /// The plan says so, a migration ends before it has touched anything, and the specimen goes on.
    fn is_refused(&self, testbed: &Testbed, kind: RefusalKind, words: &[&str]) -> Result<()> {
        let a = &testbed.a;
        let plan = self.plan(a, &testbed.b)?;
        ensure!(
            plan.refusals
                .iter()
                .any(|refusal| is_it(refusal, kind, words)),
            "no refusal for {kind:?} with {words:?} in the plan: {:?}",
            plan.refusals
        );
        self.migrate_in_vain(a, &testbed.b, words)?;
        self.goes_on(a)
    }

    /// A migration is given up in these words, as often as it is tried, and the specimen goes on.
    fn is_abandoned(&self, testbed: &Testbed, words: &[&str]) -> Result<()> {
        let (a, b) = (&testbed.a, &testbed.b);
        for _ in 0..2 {
            let report = testbed.migrate(a, b, self.name, &[ACCEPT_LOSS])?;
            let (outcome, error) = (report.outcome, report.error.unwrap_or_default());
            ensure!(outcome == Outcome::Abandoned, "it ended as {outcome:?}");
            for word in words {
                ensure!(error.contains(word), "`{word}` is not in: {error}");
            }
            self.goes_on(a)?;
        }
        Ok(())
    }

    /// The plan says so, a plain migration is refused where somebody has to consent, and the report of
    /// one that is consented to says so again.
    fn is_declared(&self, testbed: &Testbed, kind: LossKind, words: &[&str]) -> Result<()> {
        let (a, b) = (&testbed.a, &testbed.b);
        let told = |losses: &[Loss]| {
            let mut of_kind = losses.iter().filter(|loss| loss.kind == kind);
            of_kind.any(|loss| words.iter().all(|word| loss.detail.contains(word)))
        };
        let plan = self.plan(a, b)?;
        ensure!(
            told(&plan.losses),
            "no {kind:?} with {words:?} in the plan: {:?}",
            plan.losses
        );
        if kind.needs_consent() {
            self.migrate_in_vain(a, b, &[kind.meaning()])?;
            self.goes_on(a)?;
        }
        let options: &[&str] = match kind.needs_consent() {
            true => &[ACCEPT_LOSS],
            false => &[],
        };
        let losses = self.migrate(testbed, (a, b), options)?;
        ensure!(
            told(&losses),
            "no {kind:?} with {words:?} in the report: {losses:?}"
        );
        self.goes_on(b)?;
        // It may have been lost by now, or be there still.
        self.migrate(testbed, (b, a), options)?;
        self.is_carried(testbed, options)
    }

    fn plan(&self, from: &System, to: &System) -> Result<Plan> {
        let output = from.ums(&["plan", self.name, "--to", to.name(), "--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("`ums plan` gave no plan: {said}")
        })
    }

    /// Moves it from one system to the other; what the report says that this has changed.
    fn migrate(
        &self,
        testbed: &Testbed,
        (from, to): (&System, &System),
        options: &[&str],
    ) -> Result<Vec<Loss>> {
        let report = testbed.migrate(from, to, self.name, options)?;
        let (name, outcome, error) = (self.name, report.outcome, report.error);
        ensure!(
            outcome == Outcome::Completed,
            "the move of {name} to {} ended as {outcome:?}: {error:?}",
            to.name()
        );
        Ok(report.losses)
    }

    /// Tries to move it, which must be refused in these words before the freeze.
    fn migrate_in_vain(&self, from: &System, to: &System, words: &[&str]) -> Result<()> {
        let output = from.ums(&["migrate", self.name, "--to", to.name(), "--json"])?;
        let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let said = format!("{object} {}", String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.code() == Some(REFUSED),
            "`ums migrate` ended with {}: {said}",
            output.status
        );
        for word in words {
            ensure!(said.contains(word), "`{word}` is not in: {said}");
        }
        let steps = object["steps"].as_array().into_iter().flatten();
        let reached = steps.filter_map(|step| step["step"].as_u64()).max();
        ensure!(reached <= Some(LAST_HARMLESS_STEP), "it went on: {said}");
        ensure!(object["freeze_ms"].is_null(), "it was frozen: {said}");
        Ok(())
    }
}

/// Whether a refusal is of this kind and has these words.
fn is_it(refusal: &Refusal, kind: RefusalKind, words: &[&str]) -> bool {
    refusal.kind == kind && words.iter().all(|word| refusal.cause.contains(word))
}
