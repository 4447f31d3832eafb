//! Finding and running the programs under test and the machine's own tools.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longest tail of a failed tool's output that goes into an error.
const TAIL_LINES: usize = 20;

/// How often a condition is looked at: short beside what is measured, long beside its cost.
const POLL: Duration = Duration::from_millis(5);

/// The programs under test.
pub(crate) const PROGRAMS: [&str; 3] = ["ums", "ums-agent", "ums-frontman"];

/// Where the programs under test and the checkpoint/restore bundle lie.
#[derive(Debug, Clone)]
pub struct Tools {
    bin_dir: PathBuf,
    bundle: PathBuf,
}

impl Tools {
    /// From `UMS_BIN_DIR` and `UMS_BUNDLE`; else beside this program, in cargo's target directory.
    pub fn find() -> Result<Self> {
        let own = own_dir()?;
        let bin_dir = std::env::var_os("UMS_BIN_DIR").map_or_else(|| own.clone(), PathBuf::from);
        let fallback = || own.parent().unwrap_or(&own).join("ums-bundle");
        let bundle = std::env::var_os("UMS_BUNDLE").map_or_else(fallback, PathBuf::from);
        Ok(Self {
            bin_dir: std::path::absolute(bin_dir)?,
            bundle: std::path::absolute(bundle)?,
        })
    }

    /// Where the programs of the previous release are, if `cargo xtask test` could build them.
    pub fn previous() -> Option<PathBuf> {
        std::env::var_os("UMS_PREVIOUS_BIN_DIR").map(PathBuf::from)
    }

    /// The same, with the programs under test in another directory.
    pub(crate) fn with_bin_dir(&self, bin_dir: PathBuf) -> Self {
        let bundle = self.bundle.clone();
        Self { bin_dir, bundle }
    }

    /// Directory of `ums`, `ums-agent` and the others.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The checkpoint/restore bundle.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The program `ums`.
    pub fn ums(&self) -> PathBuf {
        self.bin_dir.join("ums")
    }

    /// A workload or helper of the testbed itself; it is built with the testbed, so it lies beside
    /// this program even when the programs under test do not.
    pub fn own(&self, name: &str) -> Result<PathBuf> {
        let path = own_dir()?.join(name);
        ensure!(
            path.exists(),
            "{} is missing: build it with `cargo build -p ums-testbed --bins`",
            path.display()
        );
        Ok(path)
    }

    /// A program of the bundle.
    pub fn bundled(&self, name: &str) -> PathBuf {
        self.bundle.join("bin").join(name)
    }

    /// Where `cargo xtask setup` unpacks packages of this name that are not to be installed.
    pub fn unpacked(&self, name: &str) -> Result<PathBuf> {
        let own = own_dir()?;
        let target = own.parent().unwrap_or(&own);
        Ok(target.join(format!("ums-{name}")))
    }

    /// What the paths of a package begin with: nothing where its program is installed, else the place
    /// where it is unpacked.
    pub fn installed_or_unpacked(&self, name: &str, program: impl AsRef<Path>) -> Result<PathBuf> {
        let places = [PathBuf::from("/"), self.unpacked(name)?];
        let found = places
            .into_iter()
            .find(|root| root.join(&program).is_file());
        found.with_context(|| format!("`{name}` is not there: run `cargo xtask setup`"))
    }

    /// What is missing on this machine to run the programs under test; `None` when nothing is.
    pub fn lacking(&self) -> Option<String> {
        if !is_root() {
            return Some("not root: namespaces and containers need it".to_owned());
        }
        if !self.bundled("criu").exists() {
            let at = self.bundle.display();
            return Some(format!(
                "no checkpoint/restore bundle at {at}: run `cargo xtask bundle`"
            ));
        }
        let missing: Vec<&str> = PROGRAMS
            .into_iter()
            .filter(|name| !self.bin_dir.join(name).exists())
            .collect();
        if missing.is_empty() {
            return None;
        }
        let at = self.bin_dir.display();
        Some(format!(
            "{} not in {at}: build the workspace or set UMS_BIN_DIR",
            missing.join(", ")
        ))
    }
}

/// The directory this program lies in, and of test executables the one above `deps`.
fn own_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this program's own path")?;
    let dir = exe.parent().context("this program lies in no directory")?;
    let in_deps = dir.file_name().is_some_and(|name| name == "deps");
    Ok(if in_deps {
        dir.parent().unwrap_or(dir).to_path_buf()
    } else {
        dir.to_path_buf()
    })
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// Whether tests that take minutes are wanted; says so when this one is left out.
pub fn is_long(test: &str) -> bool {
    let wanted = std::env::var_os("UMS_TEST_LONG").is_some();
    if !wanted {
        skipped(test, "it takes minutes: `cargo xtask test --long` runs it");
    }
    wanted
}

/// Says that a test or part was left out, and why; on standard error and in the file that
/// `UMS_SKIP_LOG` names, because the test harness has no such outcome.
pub fn skipped(name: &str, reason: &str) {
    let line = format!("SKIPPED {name}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("UMS_SKIP_LOG") {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        if let Err(error) = log.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("cannot write to UMS_SKIP_LOG: {error}");
        }
    }
}

/// Runs a tool without input; its output appears only in the error when it fails.
pub fn run(command: &mut Command) -> Result<Output> {
    let name = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{name}`: is it installed and in PATH?"))?;
    if !output.status.success() {
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        bail!(
            "`{name}` failed ({}):\n{}",
            output.status,
            tail(&String::from_utf8_lossy(&text))
        );
    }
    Ok(output)
}

/// Runs a tool and returns what it printed.
pub fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(command)?.stdout)
        .trim()
        .to_owned())
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Waits until `condition` gives something, at most `patience` long.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        ensure!(
            start.elapsed() < patience,
            "{what} did not come about within {patience:?}"
        );
        std::thread::sleep(POLL);
    }
}

/// Parent of every process of the machine, as seen from this process's PID namespace.
pub fn processes() -> BTreeMap<i32, i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| Some((pid, parent_of(pid)?)))
        .collect()
}

/// The children of a process.
pub fn children_of(pid: i32) -> Vec<i32> {
    processes()
        .into_iter()
        .filter(|(_, parent)| *parent == pid)
        .map(|(child, _)| child)
        .collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything: what follows its last bracket is well formed.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// The command line, for messages.
fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_of_this_process_is_known() {
        let own = i32::try_from(std::process::id()).expect("a PID");
        assert_eq!(
            processes().get(&own),
            Some(&nix::unistd::getppid().as_raw())
        );
    }

    #[test]
    fn a_failed_tool_shows_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo gone wrong >&2; exit 3"]));
        let error = error.expect_err("exit code 3").to_string();
        assert!(
            error.contains("gone wrong") && error.contains('3'),
            "{error}"
        );
    }

    #[test]
    fn a_wait_ends() {
        let never = wait_for("the impossible", Duration::from_millis(20), || None::<()>);
        assert!(
            never
                .expect_err("it can't")
                .to_string()
                .contains("the impossible")
        );
    }
}
