//! The first process of a container with one of CRIU's tests: it starts the test, which makes itself a
//! daemon, and takes what ends, as the first process of a system does.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::wait::wait;

/// Starts the program that the arguments of this one name, and ends when no process is left.
pub fn main() -> Result<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let program = words.next().context("no program is named")?;
    let mut command = Command::new(&program);
    let status = command
        .args(words)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "{} ended: {status}", program.display());
    loop {
        match wait() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(ExitCode::SUCCESS),
            Err(errno) => return Err(errno).context("cannot wait for processes"),
        }
    }
}
