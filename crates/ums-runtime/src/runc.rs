//! The real runc.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::command::CommandLine;

/// Where runc is where PATH does not lead to it.
const USUAL: [&str; 4] = [
    "/usr/sbin/runc",
    "/usr/bin/runc",
    "/usr/local/sbin/runc",
    "/usr/local/bin/runc",
];

/// Becomes runc with what was asked of us; returns why it can't.
pub(crate) fn become_it(line: &CommandLine) -> String {
    match command(line) {
        Ok(mut command) => format!("runc can't be started: {}", command.args(&line.runc).exec()),
        Err(why) => why,
    }
}

/// A runc without arguments.
pub(crate) fn command(line: &CommandLine) -> Result<Command, String> {
    let given = std::env::var_os("UMS_RUNC").map(PathBuf::from);
    let path = line.runc_path.clone().or(given).or_else(find).ok_or(
        "no runc is found: install it (Debian: `apt install runc`), or name it by --ums-runc",
    )?;
    let mut command = Command::new(path);
    command.arg0("runc");
    Ok(command)
}

/// The first runc in PATH, or where it usually is, that is not this program under that name.
fn find() -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(OsStr::new(&path)).map(|dir| dir.join("runc"));
    let mut all = in_path.chain(USUAL.map(PathBuf::from));
    all.find(|path| path.is_file() && std::fs::canonicalize(path).ok() != own)
}

/// Tells why, as runc does: to its log, from where an engine takes it, and to standard error.
pub(crate) fn complain(line: &CommandLine, why: &str) {
    let logged = line
        .log
        .as_deref()
        .map(|log| append(log, line.log_json, why));
    if !matches!(logged, Some(Ok(()))) {
        eprintln!("ums-runtime: {why}");
    }
}

fn append(log: &Path, json: bool, why: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut log = options.append(true).create(true).open(log)?;
    match json {
        true => writeln!(log, "{}", json!({ "level": "error", "msg": why })),
        false => writeln!(log, "level=error msg={why:?}"),
    }
}
