//! Debian 12 and 13 as virtual machines, for people: see `cargo xtask vm -- --help`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::{Place, Release};

/// Stock Debian systems as virtual machines: `debian12` and `debian13`, joined by a link on which they
/// are 192.0.2.12 and 192.0.2.13. Root needs no password at their consoles.
#[derive(Parser)]
#[command(name = "cargo xtask vm --")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start machines, by default both, and wait until they answer
    Up {
        /// Go on from a state that was saved, instead of booting a new disk
        #[arg(long)]
        state: Option<String>,
        #[arg(value_parser = release)]
        machines: Vec<Release>,
    },
    /// End machines, by default both, without asking them
    Down {
        #[arg(value_parser = release)]
        machines: Vec<Release>,
    },
    /// A shell in a machine
    Shell {
        #[arg(value_parser = release)]
        machine: Release,
    },
    /// Run a command in a machine, as ssh does
    Run {
        #[arg(value_parser = release)]
        machine: Release,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Copy files and directories into a directory of a machine
    Put {
        #[arg(value_parser = release)]
        machine: Release,
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Where to; it is made
        #[arg(long, default_value = "/root")]
        to: String,
    },
    /// Copy a file or directory of a machine here
    Get {
        #[arg(value_parser = release)]
        machine: Release,
        path: String,
        /// Where to
        #[arg(long, default_value = ".")]
        to: PathBuf,
    },
    /// Keep the state of a machine, its memory and disk, for `up --state`
    Save {
        #[arg(value_parser = release)]
        machine: Release,
        /// Its name; the same name of both machines is one state of the two
        state: String,
    },
}

fn release(name: &str) -> Result<Release, String> {
    Release::of(name).ok_or_else(|| "there are debian12 and debian13".to_owned())
}

fn main() -> ExitCode {
    tried(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn tried(command: Command) -> Result<ExitCode> {
    let place = Place::required()?;
    match command {
        Command::Up { state, machines } => up(&place, state.as_deref(), &or_all(machines))?,
        Command::Down { machines } => {
            for release in or_all(machines) {
                let ran = Machine::end(&place, release)?;
                let said = if ran { "ended" } else { "did not run" };
                eprintln!("{} {said}", release.name());
            }
        }
        Command::Shell { machine } => return become_ssh(&place, machine, &[]),
        Command::Run { machine, command } => return become_ssh(&place, machine, &command),
        Command::Put { machine, files, to } => {
            let files: Vec<_> = files.iter().map(PathBuf::as_path).collect();
            Machine::running(&place, machine)?.put(&files, &to)?;
        }
        Command::Get { machine, path, to } => Machine::running(&place, machine)?.get(&path, &to)?,
        Command::Save { machine, state } => Machine::running(&place, machine)?.save(&state)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn or_all(machines: Vec<Release>) -> Vec<Release> {
    if machines.is_empty() {
        Release::ALL.to_vec()
    } else {
        machines
    }
}

/// Both boot at once; one that fails takes the others with it.
fn up(place: &Place, state: Option<&str>, machines: &[Release]) -> Result<()> {
    let start = |release: &Release| Machine::start_untied(place, *release, state);
    let mut machines = machines.iter().map(start).collect::<Result<Vec<_>>>()?;
    for machine in &mut machines {
        machine.comes_up()?;
        eprintln!(
            "{} answers at {}",
            machine.name(),
            machine.release().address()
        );
    }
    machines.into_iter().for_each(Machine::leave);
    Ok(())
}

fn become_ssh(place: &Place, machine: Release, command: &[String]) -> Result<ExitCode> {
    let error = Machine::running(place, machine)?.ssh().args(command).exec();
    Err(error).context("cannot start `ssh`")
}
