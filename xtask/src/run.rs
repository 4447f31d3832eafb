//! Running the machine's tools, with errors that show what the tool said.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Longest tail of a failed tool's output that goes into an error.
const TAIL_LINES: usize = 20;

/// Runs a tool quietly; its output appears only in the error when it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<Output> {
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

/// Runs a tool quietly and returns what it printed.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&quiet(command)?.stdout)
        .trim()
        .to_owned())
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Cargo, the same one that runs this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(crate::paths::workspace())
        .stdin(Stdio::null());
    command
}

/// Runs a tool with its output shown; all of it goes to standard error, because standard
/// output belongs to the result of the whole command.
pub(crate) fn shown(command: &mut Command) -> Result<()> {
    let name = describe(command);
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let status = command
        .status()
        .with_context(|| format!("cannot start `{name}`"))?;
    anyhow::ensure!(status.success(), "`{name}` failed ({status})");
    Ok(())
}

/// A command that runs as root: directly when we are root, through sudo otherwise.
pub(crate) fn root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// The command line, for messages.
pub(crate) fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned()),
    );
    words.join(" ")
}
