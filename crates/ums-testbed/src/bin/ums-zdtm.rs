//! CRIU's own tests through UMS.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use ums_testbed::testbed::remove_on_signal;
use ums_testbed::tools::Tools;
use ums_testbed::zdtm::{Options, Report, Way, run};

#[derive(Parser)]
#[command(about = "Move CRIU's own tests: control, plain CRIU, there, and there and back")]
struct Cli {
    /// CRIU's `test/zdtm`, built (`make -C criu/test/zdtm`)
    dir: PathBuf,
    /// Only tests whose names hold one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Ways to go, of plain, a-b and a-b-a
    #[arg(long, value_delimiter = ',', value_parser = way, default_value = "plain,a-b,a-b-a")]
    ways: Vec<Way>,
    /// Tests at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=4))]
    at_a_time: u8,
    /// How often tests of loopback connections and stopped processes are moved
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,
    /// Directory for `zdtm.json` and `zdtm.md`
    #[arg(long, default_value = "zdtm")]
    out: PathBuf,
}

fn way(name: &str) -> Result<Way, String> {
    let mut all = Way::ALL.into_iter();
    let found = all.find(|way| way.name() == name);
    found.ok_or_else(|| "there are plain, a-b and a-b-a".to_owned())
}

fn main() -> ExitCode {
    match tried(&Cli::parse()) {
        Ok(report) => {
            print!("{}", report.markdown());
            for line in &report.leftovers {
                eprintln!("left behind: {line}");
            }
            if report.holds() && report.leftovers.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("ums-zdtm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tried(cli: &Cli) -> Result<Report> {
    remove_on_signal()?;
    let tools = Tools::find()?;
    if let Some(lacking) = tools.lacking() {
        anyhow::bail!("the tests can't run: {lacking}");
    }
    let options = Options {
        zdtm: cli.dir.clone(),
        only: cli.only.clone(),
        ways: cli.ways.clone(),
        at_a_time: usize::from(cli.at_a_time),
        repeat: usize::from(cli.repeat),
        out: cli.out.clone(),
    };
    run(&tools, &options)
}
