//! `cargo xtask demo`, `bench`, `lab` and `zdtm`: set up, build, then become the program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::{bundle, package, paths, run, vm};

/// A program of the testbed that is shown to people.
pub(crate) struct Show {
    program: &'static str,
    purpose: Purpose,
}

/// The demo.
pub(crate) const DEMO: Show = Show {
    program: "ums-demo",
    purpose: Purpose::Demo,
};

/// The benchmark.
pub(crate) const BENCH: Show = Show {
    program: "ums-bench",
    purpose: Purpose::Bench,
};

/// Two systems that stay.
pub(crate) const LAB: Show = Show {
    program: "ums-lab",
    purpose: Purpose::Test,
};

/// CRIU's own tests.
pub(crate) const ZDTM: Show = Show {
    program: "ums-zdtm",
    purpose: Purpose::Test,
};

/// Runs the command; only the program itself writes to standard output.
pub(crate) fn main(show: &Show, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(show.purpose)?;
    let bundle = bundle::ensure()?;
    run::shown(run::cargo().args(["build", "--release", "--workspace", "--bins"]))?;
    let bin = paths::target()?.join("release");
    let program = bin.join(show.program);
    let mut command = as_root(&program, &environment(&bundle, &bin));
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// Makes a lab, or enters the one that is there, for which nothing has to be built.
pub(crate) fn lab(args: &[OsString]) -> Result<ExitCode> {
    if args.first().is_some_and(|first| first == "--vm") {
        return lab_of_machines(args);
    }
    let bin = paths::target()?.join("release");
    let program = bin.join(LAB.program);
    let makes_one = args.first().is_none_or(|what| what == "up");
    if makes_one || !program.exists() {
        return main(&LAB, args);
    }
    let mut command = as_root(&program, &environment(&paths::bundle()?, &bin));
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// The same of two virtual machines, with UMS from its package.
fn lab_of_machines(args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(Purpose::Machines)?;
    let mut variables = environment(&bundle::ensure()?, &paths::target()?.join("release"));
    variables.push(("UMS_VM", vm::ensure()?.into()));
    variables.push(("UMS_VM_PACKAGE", package::build()?.into()));
    let mut build = run::cargo();
    run::shown(build.args([
        "build",
        "--release",
        "-p",
        "ums-testbed",
        "--bin",
        "ums-lab",
    ]))?;
    let program = paths::target()?.join("release").join(LAB.program);
    let error = as_root(&program, &variables).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// What the testbed is told by its environment.
pub(crate) fn environment(bundle: &Path, bin: &Path) -> Vec<(&'static str, OsString)> {
    let lab = bundle.with_file_name("ums-lab");
    vec![
        ("UMS_BUNDLE", bundle.into()),
        ("UMS_BIN_DIR", bin.into()),
        ("UMS_LAB", lab.into()),
    ]
}

/// The program as root, with variables that sudo would otherwise drop.
fn as_root(program: &Path, variables: &[(&str, OsString)]) -> Command {
    if run::is_root() {
        let mut command = Command::new(program);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        return command;
    }
    let mut command = run::root("env");
    for (name, value) in variables {
        let mut pair = OsString::from(name);
        pair.push("=");
        pair.push(value);
        command.arg(pair);
    }
    command.arg(program);
    command
}
