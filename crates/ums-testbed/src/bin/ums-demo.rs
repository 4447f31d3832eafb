//! The demonstration.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use ums_testbed::demo::{self, Narrator, Outcome};
use ums_testbed::testbed::{Settings, remove_on_signal};
use ums_testbed::tools::Tools;

#[derive(Parser)]
#[command(about = "Move two services between two systems and back, while their clients go on")]
struct Cli {
    /// Print one JSON object on standard output at the end
    #[arg(long)]
    json: bool,
    /// Rate of the link between the systems, Mbit/s
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Keys that Redis holds
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
}

fn main() -> ExitCode {
    match show(&Cli::parse()) {
        Ok(outcome) if outcome.ok => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ums-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(cli: &Cli) -> Result<Outcome> {
    remove_on_signal()?;
    let tools = Tools::find()?;
    if let Some(lacking) = tools.lacking() {
        anyhow::bail!("the demonstration can't run: {lacking}");
    }
    let plan = Settings {
        rate_mbit: Some(cli.rate),
    };
    let outcome = demo::run(&tools, &plan, cli.keys, &Narrator);
    if cli.json {
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(outcome)
}
