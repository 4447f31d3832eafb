//! `ums list`.

use ums_api::client::{HistoryQuery, MigrationView, ServiceView, paths};
use ums_core::facts::NodeFacts;

use super::{Outcome, print_either};
use crate::connection::Connection;
use crate::show;

/// How many of the newest migrations are looked through for those that need a person.
const RECENT: usize = 100;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print a JSON list
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let services: Vec<ServiceView> = coordinator.get(paths::SERVICES).await?;
    let query = HistoryQuery {
        service: None,
        limit: Some(RECENT),
    };
    let recent: Vec<MigrationView> = coordinator.get(&paths::history(&query)).await?;
    // Beside the list: who has it is not to be told that there is none.
    let node: Option<NodeFacts> = coordinator.get(paths::FACTS).await.ok();
    print_either(args.json, &services, |services| {
        show::services(services) + &show::troubles(&recent) + &show::warnings(node.as_ref())
    })
}
