//! `ums doctor`.

use super::{Outcome, print_either};
use crate::config::Config;
use crate::doctor;
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(args: Args, config: Config) -> Outcome {
    let findings = doctor::examine(&config).await;
    print_either(args.json, &findings, doctor::show)?;
    Ok(if findings.fit {
        Exit::Done
    } else {
        Exit::Unfit
    })
}
