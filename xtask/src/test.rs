//! `cargo xtask test`: sets up, builds, and runs all tests.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::{bundle, package, paths, previous, run, show, vm};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also run the tests that take minutes (they look at UMS_TEST_LONG)
    #[arg(long)]
    long: bool,
    /// Run only the tests in virtual machines with Debian 12 and 13, which --long has too
    #[arg(long, conflicts_with = "long")]
    vm: bool,
    /// Directory that the table of a complete fault matrix is written to
    #[arg(long, requires = "long")]
    out: Option<PathBuf>,
    /// Arguments for the test runner, such as a filter
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Runs the command. The runner's own summary is the last thing printed.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    setup::ensure(if args.long {
        Purpose::Long
    } else {
        Purpose::Test
    })?;
    let bundle = bundle::ensure()?;
    let target = paths::target()?;
    let bin = target.join("debug");
    if !args.vm {
        run::shown(run::cargo().args(["build", "--workspace", "--bins"]))?;
    }

    let skip_log = target.join("ums-skipped.log");
    // Absent and empty mean the same: no test was skipped.
    fs::write(&skip_log, "").with_context(|| format!("cannot empty {}", skip_log.display()))?;
    let mut variables = show::environment(&bundle, &bin);
    variables.push(("UMS_SKIP_LOG", skip_log.clone().into()));
    if !args.vm
        && let Some(directory) = previous::ensure()?
    {
        variables.push(("UMS_PREVIOUS_BIN_DIR", directory.into()));
    }
    if args.long {
        variables.push(("UMS_TEST_LONG", "1".into()));
    }
    if args.long || args.vm {
        setup::ensure(Purpose::Machines)?;
        variables.push(("UMS_VM", vm::ensure()?.into()));
        variables.push(("UMS_VM_PACKAGE", package::build()?.into()));
        variables.push(("UMS_VM_DIRTY", vm::test_of_dirty_tracking()?.into()));
    }
    if let Some(directory) = &args.out {
        let path = std::path::absolute(directory)?.join("fault-matrix.md");
        variables.push(("UMS_FAULT_MATRIX", path.into()));
    }
    let runner = Runner::find();
    let mut command = runner.command(args);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    if !run::is_root() {
        let (name, value) = through_sudo(&variables)?;
        command.env(name, value);
    }
    if runner == Runner::Nextest && args.args.is_empty() && !args.vm {
        // nextest leaves out the examples in the documentation.
        run::quiet(run::cargo().args(["test", "--workspace", "--doc", "--quiet"]))?;
    }
    tee(&mut command, runner, &skip_log)
}

/// Which runner there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runner {
    Nextest,
    Cargo,
}

impl Runner {
    fn find() -> Self {
        let nextest = run::quiet(run::cargo().args(["nextest", "--version"]));
        if nextest.is_ok() {
            Self::Nextest
        } else {
            Self::Cargo
        }
    }

    fn command(self, args: &Args) -> Command {
        let mut command = run::cargo();
        match self {
            Self::Nextest => {
                command.args(["nextest", "run"]);
                command.stderr(Stdio::piped());
            }
            Self::Cargo => {
                command.args(["test", "--no-fail-fast"]);
                command.stdout(Stdio::piped());
            }
        }
        if args.vm {
            command.args(["--package", "ums-testbed", "--test", "vm"]);
        } else {
            command.arg("--workspace");
        }
        if std::io::stderr().is_terminal() {
            command.args(["--color", "always"]);
        }
        command.args(&args.args);
        command
    }

    /// Whether a line opens the summary, which stays the last thing printed.
    fn opens_summary(self, line: &str) -> bool {
        match self {
            Self::Nextest => line.contains("────────────"),
            Self::Cargo => line.starts_with("test result: "),
        }
    }

    /// Whether a line shows that the summary before it was not the last.
    fn reopens(self, line: &str) -> bool {
        match self {
            // A ruler that is not followed by the summary belongs to a failed test's output.
            Self::Nextest => !line.contains("Summary"),
            Self::Cargo => line.starts_with("running "),
        }
    }
}

/// Runs the tests through sudo: cargo and nextest both start test programs by this variable.
fn through_sudo(variables: &[(&str, std::ffi::OsString)]) -> Result<(String, String)> {
    let host = run::text(Command::new("rustc").arg("-vV"))?;
    let triple = host
        .lines()
        .find_map(|l| l.strip_prefix("host: "))
        .context("no host triple")?;
    let name = triple.to_uppercase().replace('-', "_");
    let pairs: Vec<String> = variables
        .iter()
        .map(|(n, v)| format!("{n}={}", v.to_string_lossy()))
        .collect();
    Ok((
        format!("CARGO_TARGET_{name}_RUNNER"),
        format!("sudo env {}", pairs.join(" ")),
    ))
}

fn tee(command: &mut Command, runner: Runner, skip_log: &Path) -> Result<ExitCode> {
    let mut child = command.spawn().context("cannot start the test runner")?;
    let piped: Box<dyn Read> = match (child.stderr.take(), child.stdout.take()) {
        (Some(stream), _) => Box::new(stream),
        (None, Some(stream)) => Box::new(stream),
        (None, None) => anyhow::bail!("the test runner's output is not captured"),
    };
    // A flag: nextest writes the summary to standard error, cargo to standard output.
    let mut out: Box<dyn Write> = match runner {
        Runner::Nextest => Box::new(std::io::stderr()),
        Runner::Cargo => Box::new(std::io::stdout()),
    };
    let mut filter = Filter {
        runner,
        held: Vec::new(),
        skip_log: skip_log.to_path_buf(),
    };
    for line in BufReader::new(piped).split(b'\n') {
        filter.line(&String::from_utf8_lossy(&line?), &mut out)?;
    }
    filter.finish(&mut out)?;
    let status = child.wait()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Passes the runner's lines on, and puts the skipped tests just before its summary.
struct Filter {
    runner: Runner,
    /// The summary as far as it has come, while it may be the last.
    held: Vec<String>,
    skip_log: PathBuf,
}

impl Filter {
    fn line(&mut self, line: &str, out: &mut dyn Write) -> Result<()> {
        let first_after = self.held.len() == 1;
        let reopens = match self.runner {
            Runner::Nextest => first_after && self.runner.reopens(line),
            Runner::Cargo => self.runner.reopens(line),
        };
        if reopens || self.runner.opens_summary(line) {
            self.flush(out)?;
        }
        if self.runner.opens_summary(line) || !self.held.is_empty() {
            self.held.push(line.to_owned());
        } else {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut dyn Write) -> Result<()> {
        for line in self.held.drain(..) {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut dyn Write) -> Result<()> {
        let skipped = fs::read_to_string(&self.skip_log).unwrap_or_default();
        let mut names: Vec<&str> = skipped.lines().collect();
        names.sort_unstable();
        names.dedup();
        if !names.is_empty() {
            writeln!(
                out,
                "{} tests could not run here and were SKIPPED:",
                names.len()
            )?;
        }
        for name in names {
            writeln!(out, "    {name}")?;
        }
        self.flush(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(runner: Runner, lines: &[&str], tag: &str) -> String {
        let name = format!("ums-skip-{tag}-{}", std::process::id());
        let skip_log = std::env::temp_dir().join(name);
        fs::write(&skip_log, "SKIPPED b: no root\nSKIPPED a: no CRIU\n").expect("a file");
        let mut filter = Filter {
            runner,
            held: Vec::new(),
            skip_log: skip_log.clone(),
        };
        let mut out = Vec::new();
        for line in lines {
            filter.line(line, &mut out).expect("writing to memory");
        }
        filter.finish(&mut out).expect("writing to memory");
        fs::remove_file(skip_log).expect("the file of this test");
        String::from_utf8(out).expect("text")
    }

    const SKIPPED: &str = "2 tests could not run here and were SKIPPED:\n    \
                           SKIPPED a: no CRIU\n    SKIPPED b: no root\n";

    #[test]
    fn nextest_summary_comes_last() {
        let lines = [
            "PASS x",
            "────────────",
            "output",
            "────────────",
            " Summary [ 1s]",
            " FAIL y",
        ];
        let expected = format!(
            "PASS x\n────────────\noutput\n{SKIPPED}────────────\n Summary [ 1s]\n FAIL y\n"
        );
        assert_eq!(filtered(Runner::Nextest, &lines, "nextest"), expected);
    }

    #[test]
    fn only_the_last_cargo_summary_is_held_back() {
        let lines = [
            "test result: ok. 1",
            "",
            "running 2 tests",
            "test result: ok. 2",
            "",
        ];
        let expected =
            format!("test result: ok. 1\n\nrunning 2 tests\n{SKIPPED}test result: ok. 2\n\n");
        assert_eq!(filtered(Runner::Cargo, &lines, "cargo"), expected);
    }
}
