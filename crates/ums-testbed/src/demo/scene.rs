//! What is shown, in order.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use ums_core::report::MigrationReport;

use super::{Narrator, Outcome, check};
use crate::client::keys;
use crate::system::System;
use crate::testbed::Testbed;
use crate::workload;

/// Starts the services and their clients, moves both there and back, and stops the clients.
pub(super) fn play(
    testbed: &mut Testbed,
    keys: u64,
    narrator: &Narrator,
    outcome: &mut Outcome,
) -> Result<()> {
    testbed.start_coordinators()?;
    let testbed = &*testbed;
    for system in [&testbed.a, &testbed.b] {
        narrator.say(&format!(
            "system {} at {}: its Coordinator answers",
            system.name(),
            system.ip()
        ));
    }
    narrator.title("Services and clients on system a");
    workload::start_redis(testbed, &testbed.a)?;
    workload::start_http(testbed, &testbed.a)?;
    let redis = workload::addresses(testbed, workload::REDIS_PORT);
    testbed.world.in_network(|| keys::set(&redis, keys))?;
    narrator.say(&format!(
        "redis holds {keys} keys; a client increments a counter"
    ));
    let counter = workload::count(testbed)?;
    let http = workload::request(testbed)?;
    narrator.say("http answers; a client makes requests on kept-alive connections");

    let moved = move_both(testbed, keys, narrator, outcome);

    // The clients are asked even after a failure: what they saw tells most about it.
    let (counted, requests) = (counter.stop(), http.stop());
    moved?;
    let (counted, requests) = (counted?, requests?);
    outcome
        .checks
        .extend([check::counter(&counted), check::requests(&requests)]);
    let clients = [&counted.summary, &requests].map(check::connections);
    outcome.checks.extend(clients);
    outcome.clients.extend([counted.summary, requests]);
    narrator.title("What the clients saw");
    narrator.clients(&outcome.clients);
    Ok(())
}

fn move_both(
    testbed: &Testbed,
    keys: u64,
    narrator: &Narrator,
    outcome: &mut Outcome,
) -> Result<()> {
    let redis = workload::addresses(testbed, workload::REDIS_PORT);
    for (from, to) in [(&testbed.a, &testbed.b), (&testbed.b, &testbed.a)] {
        for service in ["redis", "http"] {
            narrator.title(&format!("{service}: {} → {}", from.name(), to.name()));
            let report = migrate_live(from, to, service, narrator)?;
            narrator.report(&report);
            outcome.checks.push(check::migration(&report));
            outcome.migrations.push(report);
            if service == "redis" {
                // Only this system is asked: the other must have no say any more.
                let here: Vec<_> = redis
                    .iter()
                    .filter(|a| a.ip() == to.ip())
                    .copied()
                    .collect();
                let wrong = testbed.world.in_network(|| keys::wrong(&here, keys))?;
                outcome
                    .checks
                    .push(check::keys(&format!("system {}", to.name()), keys, wrong));
            }
        }
    }
    Ok(())
}

/// Moves a service and shows each line of `ums migrate` as it comes.
fn migrate_live(
    from: &System,
    to: &System,
    service: &str,
    narrator: &Narrator,
) -> Result<MigrationReport> {
    let mut command = from.ums_command(&["migrate", service, "--to", to.name()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start `ums migrate`")?;
    let stderr = child
        .stderr
        .take()
        .context("`ums migrate` has no standard error")?;
    for line in BufReader::new(stderr).lines() {
        narrator.say(&line?);
    }
    let output = child.wait_with_output()?;
    let status = output.status;
    if !status.success() {
        // Its own account says why; otherwise the timeline is ours.
        narrator.say(String::from_utf8_lossy(&output.stdout).trim());
    }
    let history = from.ums_ok(&["history", service, "--limit", "1", "--json"])?;
    let reports: Vec<MigrationReport> =
        serde_json::from_str(&history).context("`ums history` gave something else than reports")?;
    let report = reports.into_iter().next();
    let report = report.with_context(|| format!("`ums migrate` left no report ({status})"))?;
    ensure!(
        status.success(),
        "{service} did not move from {} to {} ({status}): {}",
        from.name(),
        to.name(),
        report.error.as_deref().unwrap_or("no error is given")
    );
    Ok(report)
}
