//! The hog moved by `ums migrate`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Sample, Way};
use crate::hog::{self, Request};
use crate::rootfs;
use crate::testbed::Testbed;
use crate::tools::wait_for;

/// Port at which both systems publish the hog.
const PORT: u16 = 7000;

/// Longest wait for the hog's answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both Coordinators run and know each other; the hog's root filesystem is made.
#[derive(Debug)]
pub struct Ums {
    rootfs: std::path::PathBuf,
}

impl Ums {
    /// Starts both Coordinators.
    pub fn start(testbed: &mut Testbed) -> Result<Self> {
        testbed.start_coordinators()?;
        let rootfs = testbed.directory().join("hog-rootfs");
        rootfs::minimal(&rootfs, &[&testbed.tools().own("ums-hog")?])?;
        Ok(Self { rootfs })
    }
}

/// Moves a hog of `mib` MiB from `a` to `b` once.
pub fn measure(testbed: &Testbed, ums: &Ums, mib: u64, run: u32) -> Result<Sample> {
    let service = format!("hog-{mib}-{run}");
    let published = format!("{PORT}:7000");
    let (size, rootfs) = (mib.to_string(), ums.rootfs.display().to_string());
    testbed.a.ums_ok(&[
        "run", &service, "--rootfs", &rootfs, "--publish", &published, "--", "/bin/ums-hog", "--mib", &size,
    ])?;
    let ask = |at: &crate::system::System, request| {
        testbed.world.in_network(|| hog::ask(SocketAddr::from((at.ip(), PORT)), request))
    };
    wait_for("the hog's answer", PATIENCE, || ask(&testbed.a, Request::Reset).ok())?;
    let began = Instant::now();
    let report = testbed.migrate(&testbed.a, &testbed.b, &service, &["--technique", "stop-and-copy"])?;
    let total = began.elapsed();
    let status = wait_for("the moved hog's answer", PATIENCE, || ask(&testbed.b, Request::Verify).ok())?;
    ensure!(status.intact == Some(true), "the hog's memory did not arrive as it was");
    testbed.b.ums_ok(&["remove", &service])?;
    let part = |step: &ums_core::report::StepTiming| {
        let ended = step.ended_ms.unwrap_or(step.started_ms);
        (step.name.clone(), (ended - step.started_ms) as f64 / 1e3)
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
