//! `ums`: runs a system's Coordinator, and asks it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ums::main()
}
