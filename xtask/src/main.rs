//! The project's own tooling: `cargo xtask <command>`.
//!
//! It compiles first on a bare machine, so it stays small: the standard library, an
//! argument parser and JSON. Everything else it needs it asks of the machine's own tools.

mod apt;
mod bundle;
mod check;
mod fuzz;
mod package;
mod paths;
mod previous;
mod run;
mod self_test;
mod setup;
mod show;
mod test;
mod vm;

use std::ffi::OsString;
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
    /// Install what is missing on this machine for the demo, the tests and the benchmark
    Setup(setup::Args),
    /// Build the checkpoint/restore bundle: CRIU, its libraries and loader, what it runs, and runc
    Bundle(bundle::Args),
    /// Formatting, lints, documentation and dependency policy
    Check,
    /// Set up, build, and run all tests
    Test(test::Args),
    /// Build a Debian package and print its path
    Package,
    /// Run the fuzzers, each for a time
    Fuzz(fuzz::Args),
    /// Set up, build, and show a migration there and back
    Demo {
        /// Arguments of the demo, such as --json
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Set up, build, and measure migrations beside the paper's way and the wire's floor
    Bench {
        /// Arguments of the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Set up, build, and move CRIU's own tests, which the caller has built: see docs/zdtm.md
    Zdtm {
        /// CRIU's `test/zdtm`, and arguments of the program, such as --only
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Two systems on this machine that stay: `up`, `down`, or a place (`a`, `b`, `world`) and a command;
    /// with `--vm` they are Debian 12 and 13
    Lab {
        /// What to do: see `cargo xtask lab -- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Make and run Debian 12 and 13 as virtual machines
    Vm {
        /// What to do with them: see `cargo xtask vm -- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Inside the namespaces of the self-test: drive one dump and restore
    #[command(hide = true)]
    SelfTestDriver {
        /// The bundle under test
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
        Command::Setup(args) => setup::main(&args).map(|()| ExitCode::SUCCESS),
        Command::Check => check::main(),
        Command::Package => package::main().map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Demo { args } => show::main(&show::DEMO, &args),
        Command::Bench { args } => show::main(&show::BENCH, &args),
        Command::Zdtm { args } => show::main(&show::ZDTM, &args),
        Command::Lab { args } => show::lab(&args),
        Command::Vm { args } => vm::main(&args),
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
