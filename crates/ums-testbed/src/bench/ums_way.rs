//! The hog moved by `ums migrate`.

use std::time::Instant;

use anyhow::{Result, ensure};
use ums_core::report::{Outcome, StepTiming};

use super::{Sample, Way};
use crate::hog::Request;
use crate::testbed::Testbed;
use crate::workload::{ask_hog, start_hog};

/// Moves a hog of `mib` MiB from `a` to `b` once. Both Coordinators must run.
pub fn measure(testbed: &Testbed, mib: u64, run: u32) -> Result<Sample> {
    let service = format!("hog-{mib}-{run}");
    start_hog(testbed, &testbed.a, &service, mib)?;
    ask_hog(testbed, &testbed.a, Request::Reset)?;
    let began = Instant::now();
    let report = testbed.migrate(
        &testbed.a,
        &testbed.b,
        &service,
        &["--technique", "stop-and-copy"],
    )?;
    let total = began.elapsed();
    ensure!(
        report.outcome == Outcome::Completed,
        "the migration of {service} did not complete: {}",
        report.error.as_deref().unwrap_or("no error is given")
    );
    let status = ask_hog(testbed, &testbed.b, Request::Verify)?;
    ensure!(
        status.intact == Some(true),
        "the hog's memory did not arrive as it was"
    );
    // Its Frontman there still leads clients to b; the next hog needs the port.
    testbed.a.ums_ok(&["rm", &service])?;
    testbed.b.ums_ok(&["rm", &service])?;
    let part = |step: &StepTiming| {
        let ended = step.ended_ms.unwrap_or(step.started_ms);
        (
            step.name.clone(),
            ended.saturating_sub(step.started_ms) as f64 / 1e3,
        )
    };
    Ok(Sample {
        way: Way::UmsStopAndCopy,
        mib,
        run,
        total_s: total.as_secs_f64(),
        gap_s: Some(status.largest_gap_ms / 1e3),
        downtime_s: report.downtime_ms.map(|ms| ms / 1e3),
        bytes: report.bytes.wire,
        parts: report.steps.iter().map(part).collect(),
    })
}
