//! `ums list`.

use ums_api::client::{ServiceView, paths};

use super::{Outcome, print_either};
use crate::connection::Connection;
use crate::show;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print a JSON list
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let services: Vec<ServiceView> = coordinator.get(paths::SERVICES).await?;
    print_either(args.json, &services, |services| show::services(services))
}
