//! Specimens: small services, each of which is in one state that a process can be in and checks it
//! itself, over and over, wherever it runs.
//!
//! They are C programs, compiled when they are needed: such states (mappings with flags of their own,
//! stopped children) are made by raw system calls, and unsafe code has no place here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ums_core::facts::LossKind;
use ums_core::preflight::RefusalKind;

use crate::rootfs;
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::{run, wait_for};

mod moves;
mod table;

pub use table::ALL;

/// Longest wait for two rounds of a specimen, which take less than a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all sources include.
const HEADER: &str = include_str!("../specimens/specimen.h");

/// Where a specimen writes, below the upper layer of its root filesystem.
const LOG: &str = "specimen.log";

/// How many damages are told: the first say most.
const TOLD_MAX: usize = 5;

/// One state, and how to bring it about.
#[derive(Debug, Clone, Copy)]
pub struct Specimen {
    /// Name of the service.
    pub name: &'static str,
    /// The program's name.
    pub program: &'static str,
    /// The program's source, in C.
    pub source: &'static str,
    /// What it is called with.
    pub arguments: &'static [&'static str],
    /// Its memory limit, as `ums run --memory` takes it.
    pub memory: Option<&'static str>,
    /// What becomes of it.
    pub expected: Expected,
}

/// What becomes of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It is the same after every move.
    Carried,
    /// `ums plan` and `ums migrate` say that it can't move, for a reason of this kind with these words;
    /// nothing is frozen for it.
    Refused(RefusalKind, &'static [&'static str]),
    /// Nobody can know before the freeze that it can't move: the migration is given up in it with these words.
    Abandoned(&'static [&'static str]),
    /// `ums plan` and the report say that the move changes it, in words that hold these. The specimen
    /// does not check what is changed.
    Declared(LossKind, &'static [&'static str]),
}

/// What a specimen has written so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Rounds that are over.
    pub ticks: usize,
    /// What was damaged first, in its own words.
    pub bad: Vec<String>,
}

impl Found {
    /// From the text of a log; a last line that is not complete yet is left out.
    pub fn read(text: &str) -> Self {
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let bad = complete
            .lines()
            .filter_map(|line| line.strip_prefix("BAD "))
            .take(TOLD_MAX);
        Self {
            ticks: complete
                .lines()
                .filter(|line| line.starts_with("tick "))
                .count(),
            bad: bad.map(str::to_owned).collect(),
        }
    }
}

impl Specimen {
    /// Starts it on `system` and waits until it has checked its state twice.
    pub fn start(&self, testbed: &Testbed, system: &System) -> Result<()> {
        self.start_with(testbed, system, &[])
    }

    /// The same, with further arguments of `ums run`.
    pub fn start_with(&self, testbed: &Testbed, system: &System, further: &[&str]) -> Result<()> {
        let root = self.rootfs(testbed)?;
        let program = format!("/bin/{}", self.program);
        let mut arguments = vec!["run", self.name, "--rootfs", &root];
        arguments.extend(self.memory.iter().flat_map(|limit| ["--memory", limit]));
        arguments.extend(further);
        arguments.extend(["--", &program]);
        arguments.extend(self.arguments);
        system.ums_ok(&arguments)?;
        self.goes_on(system)
    }

    /// Waits until it has checked its state twice more at `system`; an error when that does not come
    /// about, or when it has ever seen damage.
    pub fn goes_on(&self, system: &System) -> Result<()> {
        let found = || Found::read(&self.said(system));
        let before = found().ticks;
        let further = wait_for("two more rounds", PATIENCE, || {
            let found = found();
            (found.ticks >= before + 2 || !found.bad.is_empty()).then_some(())
        });
        let (name, bad) = (self.name, found().bad);
        let at = system.name();
        ensure!(bad.is_empty(), "{name} is damaged at {at}: {bad:#?}");
        further.with_context(|| format!("{name} stands still at {at}: {}", system.said()))
    }

    /// What it has written so far, moved along to `system`.
    pub fn said(&self, system: &System) -> String {
        std::fs::read_to_string(self.log(system)).unwrap_or_default()
    }

    /// Ends it and removes what it was.
    pub fn remove(&self, system: &System) -> Result<()> {
        system.ums_ok(&["rm", self.name]).map(drop)
    }

    fn log(&self, system: &System) -> PathBuf {
        let service = system.state_dir().join("services").join(self.name);
        service.join("upper").join(LOG)
    }

    /// A root filesystem with the program, made once in each testbed.
    fn rootfs(&self, testbed: &Testbed) -> Result<String> {
        // Several specimens of one program may be started at once.
        static MAKING: Mutex<()> = Mutex::new(());
        let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = testbed
            .directory()
            .join(format!("rootfs-specimen-{}", self.program));
        if !directory.exists() {
            let built = testbed.directory().join("specimens");
            rootfs::minimal(&directory, &[&self.build(&built)?])?;
        }
        Ok(directory.display().to_string())
    }

    /// Compiles it in this directory.
    fn build(&self, directory: &Path) -> Result<PathBuf> {
        let program = directory.join(self.program);
        let source = program.with_extension("c");
        std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::write(directory.join("specimen.h"), HEADER))
            .and_then(|()| std::fs::write(&source, self.source))
            .with_context(|| format!("cannot write in {}", directory.display()))?;
        let mut compiler = Command::new("cc");
        compiler.args([
            "-std=gnu11",
            "-O1",
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
        ]);
        run(compiler.args([&program, &source])).context("cannot compile a specimen")?;
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_a_specimen_says() {
        let found = Found::read("tick 0\nBAD page 3\ntick 1\nBAD pa");
        assert_eq!(found.ticks, 2);
        assert_eq!(found.bad, ["page 3"]);
        assert_eq!(Found::read(""), Found::default());
    }

    #[test]
    fn no_two_specimens_have_the_same_name() {
        let names: BTreeSet<&str> = ALL.iter().map(|specimen| specimen.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
