//! `ums history`.

use ums_api::client::{HISTORY_MAX, HistoryQuery, MigrationView, paths};
use ums_core::id::ServiceName;

use super::{Outcome, print_either};
use crate::connection::Connection;
use crate::show;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the migrations of this service
    service: Option<ServiceName>,
    /// At most so many, newest first
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: usize,
    /// Print a JSON list of reports
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let query = HistoryQuery {
        service: args.service,
        limit: Some(args.limit.min(HISTORY_MAX)),
    };
    let views: Vec<MigrationView> = coordinator.get(&paths::history(&query)).await?;
    if args.json {
        let reports: Vec<_> = views.iter().map(|view| &view.report).collect();
        return super::print_json(&reports);
    }
    print_either(false, &views, |views| show::history(views))
}
