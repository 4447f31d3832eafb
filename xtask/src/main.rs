//! The project's own tooling: `cargo xtask <command>`.
//!
//! It compiles first on a bare machine, so it stays small: the standard library, an
//! argument parser and JSON. Everything else it needs it asks of the machine's own tools.

mod apt;
mod bundle;
mod paths;
mod run;
mod self_test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, build, check and test UMS")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the checkpoint/restore bundle: CRIU, its libraries and loader, what it runs, and runc
    Bundle(bundle::Args),
    /// Inside the namespaces of the self-test: drive one dump and restore
    #[command(hide = true)]
    SelfTestDriver {
        /// The bundle under test, or the word `host`
        bundle: PathBuf,
        /// Folder for images and logs
        dir: PathBuf,
    },
    /// The process that the self-test dumps and restores
    #[command(hide = true)]
    SelfTestPeer {
        /// Loopback port to listen on
        port: u16,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Bundle(args) => bundle::main(&args).map(|()| ExitCode::SUCCESS),
        Command::SelfTestDriver { bundle, dir } => {
            self_test::driver(&bundle, &dir).map(|()| ExitCode::SUCCESS)
        }
        Command::SelfTestPeer { port } => self_test::peer(port).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
