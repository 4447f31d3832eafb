//! A lab of two systems, for people: see `cargo xtask lab -- --help`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ums_testbed::lab::{Lab, MachineLab, PLACES, holder};
use ums_testbed::testbed::remove_on_signal;
use ums_testbed::tools::{Tools, wait_for};

/// Longest wait for the end of a lab, which ends all of its processes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two systems, `a` (10.77.0.1) and `b` (10.77.0.2), and the `world` of their clients, on this machine.
///
/// `up` makes them and holds them until it is interrupted or another `down` ends it. Meanwhile
/// `a COMMAND…`, `b COMMAND…` and `world COMMAND…` run a command in one of them, or a shell.
/// With `--vm` the systems are Debian 12 (192.0.2.12) and 13 (192.0.2.13) in virtual machines, without a world.
#[derive(Parser)]
#[command(name = "cargo xtask lab --")]
struct Cli {
    /// Virtual machines instead of namespaces; comes first
    #[arg(long)]
    vm: bool,
    /// `up`, `down`, or a place: `a`, `b` or `world`
    #[arg(default_value = "up", value_parser = ["up", "down", "a", "b", "world"])]
    what: String,
    /// What to run there
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match tried(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tried(cli: &Cli) -> Result<()> {
    let directory = std::env::var_os("UMS_LAB").map(PathBuf::from);
    let directory = directory.context("UMS_LAB is not set: use `cargo xtask lab`")?;
    match cli.what.as_str() {
        "up" if cli.vm => up_in_machines(&directory),
        "up" => up(&directory),
        "down" => down(&directory),
        place => run(&directory, place, &cli.command),
    }
}

fn up(directory: &Path) -> Result<()> {
    remove_on_signal()?;
    let _lab = Lab::start(&Tools::find()?, directory)?;
    held(&PLACES)
}

fn up_in_machines(directory: &Path) -> Result<()> {
    // They end with this thread.
    let _lab = MachineLab::start(directory)?;
    held(&PLACES[..2])
}

/// Waits for the end.
fn held(places: &[&str]) -> ! {
    let places: Vec<String> = places
        .iter()
        .map(|place| format!("`cargo xtask lab {place}`"))
        .collect();
    eprintln!(
        "the lab is up: {} run a command, or a shell; `down`, or Ctrl-C here, ends it",
        places.join(", ")
    );
    // A signal ends this process.
    loop {
        std::thread::park();
    }
}

fn down(directory: &Path) -> Result<()> {
    let Some(pid) = holder(directory) else {
        eprintln!("no lab is up");
        return Ok(());
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot end it")?;
    let gone = || holder(directory).is_none().then_some(());
    wait_for("the end of the lab", PATIENCE, gone)
}

fn run(directory: &Path, place: &str, command: &[String]) -> Result<()> {
    ensure!(
        holder(directory).is_some(),
        "no lab is up: `cargo xtask lab up` makes one"
    );
    let error = std::process::Command::new(directory.join(place))
        .args(command)
        .exec();
    Err(error).with_context(|| format!("cannot enter `{place}`"))
}
