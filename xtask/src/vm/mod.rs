//! `cargo xtask vm`: stock Debian 12 and 13 as virtual machines.
//!
//! What is made here (a private qemu, a disk, kernel and initrd for each release, and a key for ssh) is
//! kept below cargo's target directory; [`ums-vm`](../ums_testbed/vm) starts the machines.

mod images;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::setup::{self, Purpose};
use crate::{paths, run};

pub(crate) use images::ensure;

/// Runs the command: only the program itself writes to standard output.
pub(crate) fn main(args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(Purpose::Machines)?;
    let images = ensure()?;
    run::shown(run::cargo().args(["build", "-p", "ums-testbed", "--bin", "ums-vm"]))?;
    let program = paths::target()?.join("debug/ums-vm");
    let mut command = Command::new(&program);
    let error = command.args(args).env("UMS_VM", images).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// The test of dirty tracking as a program: the machines' kernels have what this one may lack.
///
/// # Errors
/// What cargo says.
pub(crate) fn test_of_dirty_tracking() -> Result<PathBuf> {
    eprintln!("vm: building the test of dirty tracking");
    let mut build = run::cargo();
    build.args(["test", "--package", "ums-checkpoint", "--test", "dirty"]);
    let messages = run::text(build.args(["--no-run", "--message-format", "json"]))?;
    let messages = messages.lines().map(serde_json::from_str::<Value>);
    let mut dirty = messages
        .flatten()
        .filter(|it| it["target"]["name"] == "dirty");
    let executable = dirty.find_map(|it| it["executable"].as_str().map(PathBuf::from));
    executable.context("cargo does not say where the test `dirty` is")
}
