//! The hog moved by `ums migrate`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ums_core::report::Outcome;

use super::gap::Clients;
use super::{Absent, Cell, Sample, Technique};
use crate::hog::Request;
use crate::testbed::Testbed;
use crate::workload::{HOG_PORT, ask_hog, start_hog_with};

/// The service's name.
const NAME: &str = "hog";

/// How long a client may wait on a connection that is carried along.
const PATIENCE: Duration = Duration::from_secs(300);

/// Moves a hog from `a` to `b` once; `Err` within when this way is not there. Both Coordinators must
/// run.
pub fn measure(
    testbed: &Testbed,
    technique: Technique,
    cell: Cell,
    run: u32,
) -> Result<Result<Sample, Absent>> {
    start_hog_with(testbed, &testbed.a, NAME, &super::hog_arguments(cell))?;
    ask_hog(testbed, &testbed.a, Request::Reset)?;
    let clients = Clients::start(&[(&testbed.world, address(testbed))], PATIENCE)?;
    let sent = testbed.a.peer_bytes()?;
    testbed.a.forget_agents_peak()?;
    let began = Instant::now();
    let options = ["--technique", technique.name()];
    let report = testbed.migrate(&testbed.a, &testbed.b, NAME, &options)?;
    let total = began.elapsed();
    let wire_bytes = testbed.a.peer_bytes()?.saturating_sub(sent);
    let agent_mib = testbed.a.agents_peak_mib()?;
    if report.outcome != Outcome::Completed {
        drop(clients.stop());
        testbed.a.ums_ok(&["rm", NAME])?;
        let reason = report
            .error
            .unwrap_or_else(|| "no error is given".to_owned());
        return Ok(Err(Absent {
            technique,
            cell,
            reason,
        }));
    }
    let seen = clients.stop()?;
    let status = ask_hog(testbed, &testbed.b, Request::Verify)?;
    ensure!(
        status.intact == Some(true),
        "the hog's memory did not arrive as it was"
    );
    // Its Frontman there still leads clients to b; the next hog needs the port.
    testbed.a.ums_ok(&["rm", NAME])?;
    testbed.b.ums_ok(&["rm", NAME])?;
    Ok(Ok(Sample {
        technique,
        cell,
        run,
        total_ms: total.as_secs_f64() * 1e3,
        downtime_ms: Some(status.largest_gap_ms),
        client_gap_ms: seen.map(|seen| seen.gap_ms),
        before_p99_ms: seen.map(|seen| seen.before_p99_ms),
        after_p99_ms: seen.map(|seen| seen.after_p99_ms),
        wire_bytes,
        agent_mib: Some(agent_mib),
    }))
}

fn address(testbed: &Testbed) -> SocketAddr {
    SocketAddr::from((testbed.a.ip(), HOG_PORT))
}
