//! The tests that are there, and how each is started.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::rootfs;
use crate::tools::{Tools, run};

/// Directories of the suite: states that stay as they are, and such as change all the time.
const PARTS: [&str; 2] = ["static", "transition"];
/// Where they are in the container.
const INSIDE: &str = "/zdtm";
/// Programs that tests start.
const PROGRAMS: [&str; 5] = ["sh", "true", "cat", "sleep", "ip"];
/// The first process of the container.
const INIT: &str = "ums-zdtm-init";

/// The tests, and an image with all of them.
#[derive(Debug)]
pub struct Suite {
    /// By name.
    pub tests: Vec<Test>,
    /// The root filesystem.
    pub rootfs: PathBuf,
}

/// One of CRIU's tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// `static` or `transition`.
    pub part: &'static str,
    /// The program's name.
    pub program: String,
    /// What it is called with; names of files are relative to its directory.
    pub arguments: Vec<String>,
}

impl Test {
    /// Its name in reports.
    pub fn name(&self) -> String {
        format!("{}/{}", self.part, self.program)
    }

    /// Its directory inside the container.
    pub fn directory(&self) -> String {
        format!("{INSIDE}/{}", self.part)
    }

    /// The container's command.
    pub fn command(&self) -> Vec<String> {
        let mut words = vec![format!("/bin/{INIT}"), format!("./{}", self.program)];
        words.extend(self.arguments.iter().cloned());
        words
    }

    /// A file of its own, relative to the root: `pid` holds its process id, `out` what it found.
    pub fn file(&self, suffix: &str) -> PathBuf {
        let name = format!("{}.{suffix}", self.program);
        PathBuf::from(INSIDE.trim_start_matches('/'))
            .join(self.part)
            .join(name)
    }

    /// Whether it is in the middle of something all the time.
    pub fn changes(&self) -> bool {
        self.part == "transition"
    }

    /// Whether its outcome depends on the moment: connections over the loopback interface and stopped
    /// processes.
    pub fn depends_on_the_moment(&self) -> bool {
        ["socket-tcp", "socket_tcp", "stopped"]
            .iter()
            .any(|prefix| self.program.starts_with(prefix))
    }
}

impl Suite {
    /// Takes the tests that are built in `zdtm` (CRIU's `test/zdtm`) and chosen by `wanted`, and makes a
    /// root filesystem of them below `directory`.
    pub fn find(
        tools: &Tools,
        zdtm: &Path,
        directory: &Path,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let rootfs = directory.join("rootfs-zdtm");
        let programs = [tools.own(INIT)?].into_iter();
        let programs: Vec<PathBuf> = programs
            .chain(
                PROGRAMS
                    .iter()
                    .filter_map(|name| rootfs::program(name).ok()),
            )
            .collect();
        let programs: Vec<&Path> = programs.iter().map(PathBuf::as_path).collect();
        rootfs::minimal(&rootfs, &programs)?;
        let mut tests = Vec::new();
        for part in PARTS {
            let inside = rootfs.join(INSIDE.trim_start_matches('/')).join(part);
            std::fs::create_dir_all(&inside)?;
            let found = find(&zdtm.join(part), part)?;
            for test in found.into_iter().filter(|test| wanted(&test.name())) {
                copy(&zdtm.join(part).join(&test.program), &rootfs, &inside)?;
                tests.push(test);
            }
        }
        let at = zdtm.display();
        ensure!(
            !tests.is_empty(),
            "no test is built in {at} that is wanted: build CRIU's tests with `make -C {at}`"
        );
        Ok(Self { tests, rootfs })
    }
}

/// The tests that are built in a directory of the suite. How each is called only its makefile knows.
fn find(directory: &Path, part: &'static str) -> Result<Vec<Test>> {
    let entries = std::fs::read_dir(directory).with_context(|| {
        format!(
            "cannot read {}: is it CRIU's test/zdtm?",
            directory.display()
        )
    })?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter_map(|name| name.strip_suffix(".c").map(str::to_owned))
        .filter(|name| directory.join(name).is_file())
        .collect();
    names.sort();
    let mut make = Command::new("make");
    // Only told what would be done; a name without a rule does not hinder the others.
    make.args(["--no-print-directory", "--dry-run", "--keep-going", "-C"]);
    make.arg(directory);
    make.args(names.iter().map(|name| format!("{name}.pid")));
    let output = make
        .output()
        .context("cannot start make: is it installed?")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut tests: Vec<Test> = text.lines().filter_map(|line| called(line, part)).collect();
    tests.retain(|test| names.contains(&test.program));
    Ok(tests)
}

/// From a line of a makefile that starts a test.
fn called(line: &str, part: &'static str) -> Option<Test> {
    let mut words = line.split_whitespace();
    let program = words.next()?.strip_prefix("./")?.to_owned();
    let arguments: Vec<String> = words.map(str::to_owned).collect();
    let daemon = arguments.iter().any(|word| word.starts_with("--pidfile="));
    daemon.then_some(Test {
        part,
        program,
        arguments,
    })
}

/// Puts a program without its symbols, which nobody reads there, into a root filesystem.
fn copy(program: &Path, rootfs: &Path, inside: &Path) -> Result<()> {
    let name = program.file_name().context("a program has a name")?;
    let target = inside.join(name);
    let mut strip = Command::new("strip");
    if run(strip.arg("-o").args([&target, program])).is_err() {
        rootfs::copy(program, &target)?;
    }
    rootfs::with_libraries(rootfs, program, Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_test_is_called_is_read_from_what_make_would_do() {
        let line = "./env00 --pidfile=env00.pid --outfile=env00.out --envname=ENV_00_TEST";
        let test = called(line, "static").expect("a test");
        assert_eq!(test.name(), "static/env00");
        assert_eq!(test.arguments.len(), 3);
        assert_eq!(test.file("out"), Path::new("zdtm/static/env00.out"));
        assert_eq!(test.command()[1], "./env00");
        assert_eq!(called("make -C ../lib", "static"), None);
        assert_eq!(called("./rtc --statefile=rtc.state", "static"), None);
    }

    #[test]
    fn what_depends_on_the_moment_is_known() {
        let named = |program: &str| Test {
            part: "static",
            program: program.to_owned(),
            arguments: Vec::new(),
        };
        assert!(named("socket-tcp6-closing").depends_on_the_moment());
        assert!(named("stopped12").depends_on_the_moment());
        assert!(!named("pipe00").depends_on_the_moment());
    }
}
