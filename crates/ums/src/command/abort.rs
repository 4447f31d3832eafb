//! `ums abort`.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use ums_api::client::{AbortRequest, HistoryQuery, MigrationView, WatchQuery, paths};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::report::Outcome as Migrated;

use super::{Outcome, print};
use crate::connection::Connection;
use crate::exit::{Exit, Failure};

/// Pause between two looks whether it is given up.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The migration, or the service that migrates
    #[arg(value_name = "MIGRATION|SERVICE")]
    which: String,
    /// Why, for the report
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// How long to wait until it is given up, seconds; 0 only asks
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let id = find(&args.which, &coordinator).await?;
    let request = AbortRequest {
        reason: args.reason,
    };
    let asked: MigrationView = coordinator.post(&paths::abort(id), &request).await?;
    let view = ended(id, asked, Duration::from_secs(args.wait), &coordinator).await?;
    match (args.wait, view.report.outcome) {
        (0, Migrated::Running) => print(&format!(
            "asked {} to give up; `ums status {id}` shows what becomes of it\n",
            view.report.source
        )),
        _ => said(&view),
    }
}

/// The migration once it is over, or as it is after this time.
async fn ended(
    id: MigrationId,
    mut view: MigrationView,
    within: Duration,
    coordinator: &Connection,
) -> Result<MigrationView, Failure> {
    let end = Instant::now() + within;
    while view.report.outcome == Migrated::Running && Instant::now() < end {
        tokio::time::sleep(LOOK).await;
        let path = paths::migration(id, &WatchQuery::default());
        view = coordinator.get(&path).await?;
    }
    Ok(view)
}

/// What was seen, and nothing else.
fn said(view: &MigrationView) -> Outcome {
    let report = &view.report;
    let (id, service, source) = (report.migration_id, &report.service, &report.source);
    match report.outcome {
        Migrated::Abandoned | Migrated::Refused => {
            print(&format!("given up: {service} goes on at {source}\n"))
        }
        Migrated::Completed => Err(Failure::new(
            Exit::Refused,
            anyhow!("it was too late: {service} runs at {}", report.destination),
        )),
        Migrated::Stuck => Err(Failure::new(
            Exit::Stuck,
            anyhow!(
                "it can't be given up: {}; `ums status {id}` says more",
                report.error.as_deref().unwrap_or("a person is needed")
            ),
        )),
        Migrated::Running => Err(Failure::new(
            Exit::Failed,
            anyhow!(
                "asked {source} to give up, and it has not yet ({}): {service} may still be frozen. \
                 It is tried on; `ums status {id}` shows how far it is",
                view.progress.phase
            ),
        )),
    }
}

async fn find(which: &str, coordinator: &Connection) -> Result<MigrationId, Failure> {
    if let Ok(id) = which.parse::<MigrationId>() {
        return Ok(id);
    }
    let service: ServiceName = which.parse().map_err(Failure::usage)?;
    let query = HistoryQuery {
        service: Some(service),
        limit: Some(1),
    };
    let newest: Vec<MigrationView> = coordinator.get(&paths::history(&query)).await?;
    match newest.first() {
        Some(view) if view.report.outcome == Migrated::Running => Ok(view.report.migration_id),
        _ => Err(Failure::new(
            Exit::Refused,
            anyhow!("`{which}` is not being migrated; `ums history` shows what was"),
        )),
    }
}
