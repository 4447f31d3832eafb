//! `ums-agent`: the Migration Interface of one node, and the small processes it starts.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ums_checkpoint::keeper;

/// The exit code of a container that could not be started.
const NOT_STARTED: u8 = 125;

#[derive(Debug, Parser)]
#[command(version, about = "The Migration Interface of UMS on one node")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the Coordinator of this system.
    Serve(Box<ums_agent::config::AgentConfig>),
    /// Be the first process of an outer container, made from a wrapped image (started by an engine).
    Outer {
        /// What the container was started with, in place of the image's command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Serve the Coordinator in an outer container (started by `outer`).
    #[command(hide = true)]
    OuterAgent {
        /// Its settings, as JSON.
        settings: String,
    },
    /// Hold one container (started by `serve`).
    #[command(hide = true)]
    Keeper {
        /// Its configuration, as JSON.
        config: String,
    },
    /// Say why userfaultfd can't be used here, or nothing (started by `ums doctor`).
    #[command(hide = true)]
    Probe,
    /// Append what a service says to its log (started by a keeper).
    #[command(hide = true)]
    Log {
        /// Where its standard output goes instead.
        #[arg(long, requires = "err")]
        out: Option<std::path::PathBuf>,
        /// Where its standard error goes instead.
        #[arg(long, requires = "out")]
        err: Option<std::path::PathBuf>,
        /// The log.
        path: std::path::PathBuf,
    },
    /// Bring pages that have stayed at the source of a migration (started by `serve`).
    #[command(hide = true)]
    Pager,
    /// Hold a keeper's userfaultfd descriptors (started by a keeper).
    #[command(hide = true)]
    Guard {
        /// The container's control groups.
        cgroup: String,
    },
}

/// Says on standard output why userfaultfd can't be used, or nothing.
fn probe() {
    if let Err(error) = ums_checkpoint::uffd::probe() {
        println!("{error}");
    }
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Serve(config) => ums_agent::serve(*config),
        Command::Keeper { config } => run_keeper(&config),
        Command::Probe => {
            probe();
            Ok(())
        }
        Command::Outer { arguments } => return outer(&arguments),
        Command::OuterAgent { settings } => ums_agent::outer::agent(&settings),
        Command::Log { path, out, err } => {
            let places = [out, err].map(|place| place.unwrap_or_else(|| path.clone()));
            keeper::log::run(places.each_ref().map(|it| it.as_path())).map_err(Into::into)
        }
        Command::Pager => ums_node::pager::run(),
        Command::Guard { cgroup } => keeper::guard::run(&cgroup).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ums-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Exit codes are the service's; of a container that could not be started they are the engines' own.
fn outer(arguments: &[String]) -> ExitCode {
    match ums_agent::outer::run(arguments) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("ums-agent: {error:#}");
            NOT_STARTED.into()
        }
    }
}

fn run_keeper(config: &str) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(keeper::run(serde_json::from_str(config)?)?)
}
