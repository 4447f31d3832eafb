//! `ums abort`.

use anyhow::anyhow;
use ums_api::client::{AbortRequest, HistoryQuery, MigrationView, paths};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::report::Outcome as Migrated;

use super::{Outcome, print};
use crate::connection::Connection;
use crate::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The migration, or the service that migrates
    #[arg(value_name = "MIGRATION|SERVICE")]
    which: String,
    /// Why, for the report
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let id = find(&args.which, &coordinator).await?;
    let request = AbortRequest {
        reason: args.reason,
    };
    let view: MigrationView = coordinator.post(&paths::abort(id), &request).await?;
    print(&format!(
        "asked {} to give up; {} goes on at {} (`ums status {id}`)\n",
        view.report.source, view.report.service, view.report.source
    ))
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
