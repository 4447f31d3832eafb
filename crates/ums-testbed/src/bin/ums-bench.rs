//! The benchmark: UMS beside the paper's way, what experts would do, and the wire floor.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use ums_testbed::bench::plan::{self, Task};
use ums_testbed::bench::run::{Options, Outcome, run};
use ums_testbed::bench::{OURS, Technique};
use ums_testbed::tools::Tools;

/// How long the whole may take.
const WHOLE: Duration = Duration::from_secs(2 * 60 * 60);
/// How long `--quick` may take.
const QUICK: Duration = Duration::from_secs(10 * 60);

#[derive(Parser)]
#[command(about = "Move services over a shaped link: UMS, the paper's way, others, the wire floor")]
struct Cli {
    /// Only idle hogs of these sizes, MiB
    #[arg(long, value_delimiter = ',')]
    sizes: Option<Vec<u64>>,
    /// How often each is measured, at most
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Only these ways
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Option<Vec<Name>>,
    /// Directory for `results.json`, `bench.md` and the rest
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// A few, within 10 minutes
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// UMS, by all its techniques
    Ums,
    /// What `ums migrate` does by itself
    Default,
    Paper,
    RuncLazy,
    Podman,
    /// CRIU's own dump and restore, on one node
    Criu,
    Floor,
    /// What clients on open connections see, and where the downtime goes
    Closely,
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
    let options = Options {
        tasks: tasks(cli),
        runs: cli.runs,
        within: if cli.quick { QUICK } else { WHOLE },
        closely: cli
            .ways
            .as_ref()
            .is_none_or(|ways| ways.contains(&Name::Closely)),
        out: cli.out.clone(),
    };
    run(&Tools::find()?, &options)
}

fn tasks(cli: &Cli) -> Vec<Task> {
    let tasks = match (&cli.sizes, cli.quick) {
        (Some(sizes), _) => plan::sizes(sizes),
        (None, true) => plan::quick(),
        (None, false) => plan::whole(),
    };
    let Some(ways) = &cli.ways else {
        return tasks;
    };
    let wanted: Vec<Technique> = ways.iter().flat_map(|way| techniques(*way)).collect();
    let mut tasks = tasks;
    for task in &mut tasks {
        task.techniques.retain(|one| wanted.contains(one));
    }
    tasks
}

fn techniques(way: Name) -> Vec<Technique> {
    match way {
        Name::Ums => OURS.to_vec(),
        Name::Default => vec![ums_testbed::bench::DEFAULT],
        Name::Paper => vec![Technique::Paper],
        Name::RuncLazy => vec![Technique::RuncLazy],
        Name::Podman => vec![Technique::Podman],
        Name::Criu => vec![Technique::Criu],
        Name::Floor => vec![Technique::WireFloor],
        Name::Closely => Vec::new(),
    }
}
