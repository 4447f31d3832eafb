//! `ums`: runs a system's Coordinator, and asks it.

mod cli;
mod command;
mod config;
mod connection;
mod doctor;
mod exit;
mod progress;
mod show;
mod value;

#[doc(hidden)]
pub mod fuzzing;

use std::io::Write;
use std::process::ExitCode;

use crate::exit::Exit;

/// Runs the program: reads its arguments, does what they ask, and gives the exit code.
pub fn main() -> ExitCode {
    let exit = match command::execute(cli::parse()) {
        Ok(exit) => exit,
        Err(failure) => {
            if failure.error.is_some() {
                // Nobody is left to tell when this fails; the exit code tells.
                let _ = writeln!(std::io::stderr(), "ums: {failure}");
            }
            failure.exit
        }
    };
    ExitCode::from(Exit::code(exit))
}
