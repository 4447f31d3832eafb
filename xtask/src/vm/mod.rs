//! `cargo xtask vm`: stock Debian 12 and 13 as virtual machines.
//!
//! What is made here (a private qemu, a disk, kernel and initrd for each release, and a key for ssh) is
//! kept below cargo's target directory; [`ums-vm`](../ums_testbed/vm) starts the machines.

mod images;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

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
