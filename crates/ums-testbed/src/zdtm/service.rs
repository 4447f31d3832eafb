//! One test as a service: started, moved, told to check.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ums_core::report::{MigrationReport, Outcome};

use super::{Suite, Test, Verdict};
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::wait_for;

/// Longest wait for a test to be ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Longest wait for a test's check. CRIU's own runner gives 30 s on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a test that changes all the time is left alone before something is done with it, so that it
/// is met in its middle.
const RUNS_FOR: Duration = Duration::from_millis(300);
/// Exit code of what is refused.
const REFUSED: i32 = 3;
/// What a test writes last when it has found its state.
const PASS: &str = "PASS";

/// A test that runs somewhere.
#[derive(Debug)]
pub(super) struct Running<'a> {
    test: &'a Test,
    /// Name of its service, or of its container: the last part of its control group.
    name: &'a str,
}

impl<'a> Running<'a> {
    /// Starts it as a service on `system` and waits until it is ready.
    pub(super) fn start(
        suite: &Suite,
        test: &'a Test,
        name: &'a str,
        system: &System,
    ) -> Result<Self> {
        let (rootfs, cwd) = (suite.rootfs.display().to_string(), test.directory());
        let command = test.command();
        let mut words = vec!["run", name, "--rootfs", &rootfs, "--cwd", &cwd, "--"];
        words.extend(command.iter().map(String::as_str));
        system.ums_ok(&words)?;
        let running = Self { test, name };
        running.ready(&upper(system, name))?;
        Ok(running)
    }

    /// One that was started otherwise, and keeps what it changes below `upper`.
    pub(super) fn started(test: &'a Test, name: &'a str, upper: &Path) -> Result<Self> {
        let running = Self { test, name };
        running.ready(upper)?;
        Ok(running)
    }

    fn ready(&self, upper: &Path) -> Result<()> {
        let ready = wait_for("a test's readiness", READY_WITHIN, || {
            // A test that can't begin writes why, and ends.
            let ended = upper.join(self.test.file("out")).exists();
            (ended || self.pid(upper).is_ok()).then_some(ended)
        });
        let at = || self.said(upper);
        ensure!(!ready.with_context(at)?, "it ended at once: {}", at());
        if self.test.changes() {
            std::thread::sleep(RUNS_FOR);
        }
        Ok(())
    }

    /// Moves it.
    pub(super) fn migrate(&self, from: &System, to: &System) -> Result<Moved> {
        let words = [
            "migrate",
            self.name,
            "--to",
            to.name(),
            "--json",
            "--accept-loss",
        ];
        let output = from.ums(&words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = serde_json::from_slice::<MigrationReport>(&output.stdout);
        if output.status.code() == Some(REFUSED) {
            let why = report.ok().and_then(|report| report.error).unwrap_or(said);
            return Ok(Moved::Not(Verdict::Refused(why)));
        }
        let report = report.with_context(|| format!("`ums migrate` gave no report: {said}"))?;
        if report.outcome == Outcome::Completed {
            let told = report.losses.iter().map(|loss| loss.detail.as_str());
            return Ok(Moved::Yes(told.collect::<Vec<_>>().join("; ")));
        }
        let why = report.error.unwrap_or(said);
        Ok(Moved::Not(match report.freeze_ms {
            Some(_) => Verdict::Abandoned(why),
            None => Verdict::Refused(why),
        }))
    }

    /// Tells it to check what it has at `system`.
    pub(super) fn check(&self, system: &System) -> Result<()> {
        self.check_below(&upper(system, self.name))
    }

    /// Tells it to check what it has; an error says what it found instead.
    pub(super) fn check_below(&self, upper: &Path) -> Result<()> {
        let inside = self.pid(upper)?;
        let pid = process(self.name, inside)
            .with_context(|| format!("it is gone: {}", self.said(upper)))?;
        match kill(pid, Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno).context("cannot tell it to check"),
        }
        let out = upper.join(self.test.file("out"));
        let checked = wait_for("the end of a test's check", PATIENCE, || {
            (out.exists() || process(self.name, inside).is_none()).then_some(())
        });
        checked.with_context(|| self.said(upper))?;
        let found = std::fs::read_to_string(&out).unwrap_or_default();
        let last = found.lines().last().unwrap_or_default();
        ensure!(
            last.split_whitespace().any(|word| word == PASS),
            "{}",
            self.said(upper)
        );
        Ok(())
    }

    /// Its process id in its own PID namespace.
    fn pid(&self, upper: &Path) -> Result<i32> {
        let text = std::fs::read_to_string(upper.join(self.test.file("pid")))?;
        text.trim().parse().context("no process id")
    }

    /// What it has written.
    fn said(&self, upper: &Path) -> String {
        let texts = ["out", "out.inprogress"].map(|suffix| upper.join(self.test.file(suffix)));
        let texts = texts.map(|path| std::fs::read_to_string(path).unwrap_or_default());
        crate::tools::tail(texts.concat().trim())
    }
}

/// How a move ended.
#[derive(Debug)]
pub(super) enum Moved {
    /// It is at the destination, and this was said to be changed.
    Yes(String),
    /// It is where it was.
    Not(Verdict),
}

/// Moves a test along these systems and lets it check itself at the last of them.
pub(super) fn moved(
    testbed: &Testbed,
    suite: &Suite,
    test: &Test,
    name: &str,
    back: bool,
) -> Verdict {
    let (a, b) = (&testbed.a, &testbed.b);
    let all: &[(&System, &System)] = if back { &[(a, b), (b, a)] } else { &[(a, b)] };
    let outcome = Running::start(suite, test, name, a).and_then(|running| {
        let mut told = Vec::new();
        for (from, to) in all {
            match running.migrate(from, to)? {
                Moved::Yes(losses) => told.extend((!losses.is_empty()).then_some(losses)),
                Moved::Not(verdict) => return Ok(verdict),
            }
        }
        let last = all.last().map_or(a, |(_, to)| to);
        let checked = running.check(last);
        Ok(match checked {
            Ok(()) => Verdict::Passed,
            Err(error) if told.is_empty() => failed(&error),
            Err(error) => Verdict::Declared(format!("{}: {error:#}", told.join("; "))),
        })
    });
    for system in [a, b] {
        // It is on one of them; a Frontman is on the other.
        let _ = system.ums(&["rm", name]);
    }
    outcome.unwrap_or_else(|error| failed(&error))
}

/// Starts a test, lets it check itself, and calls `look` in between.
pub(super) fn control(
    suite: &Suite,
    test: &Test,
    name: &str,
    system: &System,
    look: impl FnOnce() -> Result<()>,
) -> Verdict {
    let checked = Running::start(suite, test, name, system)
        .and_then(|running| look().and_then(|()| running.check(system)));
    let _ = system.ums(&["rm", name]);
    checked.map_or_else(|error| failed(&error), |()| Verdict::Passed)
}

/// In one line, as tables want it.
pub(super) fn failed(error: &anyhow::Error) -> Verdict {
    Verdict::Failed(format!("{error:#}"))
}

/// Where the changes to a service's root filesystem are.
fn upper(system: &System, name: &str) -> PathBuf {
    let service = system.state_dir().join("services").join(name);
    service.join("upper")
}

/// The process of a container, named by the last part of its control group, that has this number inside;
/// `None` when there is none that has not ended.
fn process(name: &str, inside: i32) -> Option<Pid> {
    let all = crate::tools::processes();
    let found = all.into_keys().find(|pid| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let here = read("cgroup").is_ok_and(|text| is_in(&text, name));
        here && read("status").is_ok_and(|text| has_number(&text, inside))
    });
    found.map(Pid::from_raw)
}

/// Whether one of the control groups of a process has this name.
fn is_in(cgroups: &str, name: &str) -> bool {
    cgroups
        .lines()
        .any(|line| line.split('/').any(|part| part == name))
}

/// Whether a process that has not ended has this number in its innermost PID namespace.
fn has_number(status: &str, inside: i32) -> bool {
    let value = |name: &str| {
        let mut lines = status.lines().filter_map(|line| line.strip_prefix(name));
        lines.next().map(str::trim)
    };
    let innermost = value("NSpid:").and_then(|pids| pids.split_whitespace().last());
    let ended = value("State:").is_some_and(|state| state.starts_with(['Z', 'X']));
    !ended && innermost.and_then(|pid| pid.parse().ok()) == Some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_container_and_its_number_there() {
        let cgroups = "2:cpu:/ums-testbed-1/ums/a/there-7\n1:name=systemd:/\n";
        assert!(is_in(cgroups, "there-7"));
        assert!(!is_in(cgroups, "there-77"));
        let status = "Name:\tpty00\nState:\tS (sleeping)\nNSpid:\t812\t41\t3\n";
        assert!(has_number(status, 3));
        assert!(!has_number(status, 812));
        assert!(!has_number(&status.replace("S (sl", "Z (sl"), 3));
    }
}
