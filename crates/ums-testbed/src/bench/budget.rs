//! Where the downtime goes while a service without memory moves there and back.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use ums_core::budget::Span;
use ums_core::report::Outcome;

use crate::hog::Request;
use crate::system::System;
use crate::testbed::Testbed;
use crate::workload::{ask_hog, start_hog};

/// One move in its parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BudgetSample {
    /// Which run, from 1.
    pub run: u32,
    /// The system that the service moved to.
    pub to: String,
    /// Its downtime as reported, milliseconds.
    pub downtime_ms: f64,
    /// The parts of it.
    pub parts: Vec<Span>,
}

/// Moves a hog without memory from `a` to `b` and back. Both Coordinators must run.
pub fn measure(testbed: &Testbed, run: u32) -> Result<Vec<BudgetSample>> {
    let (a, b) = (&testbed.a, &testbed.b);
    start_hog(testbed, a, "budget", 0)?;
    let there = moved(testbed, run, (a, b))?;
    let back = moved(testbed, run, (b, a))?;
    a.ums_ok(&["rm", "budget"])?;
    // A Frontman there may still lead clients to a.
    let _ = b.ums(&["rm", "budget"])?;
    Ok(vec![there, back])
}

fn moved(testbed: &Testbed, run: u32, (from, to): (&System, &System)) -> Result<BudgetSample> {
    let report = testbed.migrate(from, to, "budget", &[])?;
    ensure!(
        report.outcome == Outcome::Completed,
        "the hog did not move: {}",
        report.error.as_deref().unwrap_or("no error is given")
    );
    ask_hog(testbed, to, Request::Status)?;
    Ok(BudgetSample {
        run,
        to: to.name().to_owned(),
        downtime_ms: report.downtime_ms.context("a move without a downtime")?,
        parts: report.downtime_parts,
    })
}
