//! `ums rm`.

use ums_api::client::paths;
use ums_core::id::ServiceName;

use super::{Outcome, print};
use crate::connection::Connection;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service
    service: ServiceName,
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let _: serde_json::Value = coordinator.delete(&paths::service(&args.service)).await?;
    print(&format!(
        "{} is deleted, with its files and volumes\n",
        args.service
    ))
}
