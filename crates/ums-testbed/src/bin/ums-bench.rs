//! The benchmark: UMS beside the paper's way and the wire floor.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use ums_testbed::bench::Way;
use ums_testbed::bench::run::{Options, Outcome, run};
use ums_testbed::tools::Tools;

#[derive(Parser)]
#[command(about = "Move a memory hog over a shaped link: UMS, the paper's way, the wire floor")]
struct Cli {
    /// Sizes of the hog, MiB
    #[arg(long, value_delimiter = ',', default_values_t = [0, 64, 128, 256, 512, 1024])]
    sizes: Vec<u64>,
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Ways to measure, and what clients on open connections see
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Name::Ums, Name::Paper, Name::Floor, Name::Clients, Name::Budget])]
    ways: Vec<Name>,
    /// Rate of the link, Mbit/s
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Directory for `bench.json` and `bench.md`
    #[arg(long, default_value = "bench")]
    out: PathBuf,
    /// Only 0 and 64 MiB, once: to see that it works
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Ums,
    Paper,
    Floor,
    Clients,
    Budget,
}

fn main() -> ExitCode {
    match measure(&Cli::parse()) {
        Ok(outcome) => {
            println!("{}", outcome.markdown);
            for line in &outcome.leftovers {
                eprintln!("left behind: {line}");
            }
            if outcome.leftovers.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("ums-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<Outcome> {
    ums_testbed::testbed::remove_on_signal()?;
    ensure!(
        ums_testbed::tools::is_root(),
        "the benchmark makes namespaces and containers: run it as root"
    );
    let way = |name: &Name| match name {
        Name::Ums => Some(Way::UmsStopAndCopy),
        Name::Paper => Some(Way::PaperWay),
        Name::Floor => Some(Way::WireFloor),
        Name::Clients | Name::Budget => None,
    };
    let options = Options {
        sizes: if cli.quick {
            vec![0, 64]
        } else {
            cli.sizes.clone()
        },
        runs: if cli.quick { 1 } else { cli.runs },
        ways: cli.ways.iter().filter_map(way).collect(),
        clients: cli.ways.contains(&Name::Clients),
        budget: cli.ways.contains(&Name::Budget),
        rate_mbit: cli.rate,
        out: cli.out.clone(),
    };
    run(&Tools::find()?, &options)
}
