//! `cargo xtask fuzz`: runs the real fuzzers, one after the other.

use std::ffi::OsString;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail, ensure};

use crate::{paths, run};

/// Memory at which a fuzzer counts as broken, MiB: a target needs a hundredth of it.
const MEMORY_MIB: u32 = 2048;

/// The longest input, bytes: what the tests' own mutations keep to.
const INPUT_BYTES_MAX: u32 = 64 * 1024;

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target
    #[arg(long)]
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs the command: every target gets its time, and the first that breaks ends it.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    tools()?;
    let mut targets = targets()?;
    if let Some(wanted) = &args.target {
        let known = targets.join(", ");
        targets.retain(|target| target == wanted);
        ensure!(
            !targets.is_empty(),
            "no target `{wanted}`; there are {known}"
        );
    }
    for target in &targets {
        eprintln!("fuzz: {target} for {} s", args.seconds);
        fuzz(target, args.seconds)?;
    }
    println!("fuzz: {} targets, nothing found", targets.len());
    Ok(ExitCode::SUCCESS)
}

fn tools() -> Result<()> {
    let mut missing = Vec::new();
    if run::quiet(run::cargo().args(["fuzz", "--version"])).is_err() {
        missing.push("cargo-fuzz (`cargo install cargo-fuzz`)");
    }
    // libFuzzer itself is C++, and comes with the crate libfuzzer-sys.
    if run::quiet(Command::new("c++").arg("--version")).is_err() {
        missing.push("a C++ compiler (`apt-get install g++`)");
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        bail!("missing: {missing}; `cargo nextest run -p ums-fuzz` needs neither, and does less");
    }
    Ok(())
}

/// Each has a corpus of its name.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(paths::workspace().join("fuzz/corpus"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let fuzzers = paths::workspace().join("fuzz");
    // What is found goes here, and only what a person chooses into the corpus.
    let found = fuzzers.join("found").join(target);
    fs::create_dir_all(&found)?;
    let corpus = fuzzers.join("corpus").join(target);
    let mut command = run::cargo();
    command.current_dir(&fuzzers);
    // Counting which branches are taken is a compiler option of the nightly toolchains only.
    command.env("RUSTC_BOOTSTRAP", "1");
    command.args([
        "fuzz",
        "run",
        "--fuzz-dir",
        ".",
        "--sanitizer",
        "none",
        target,
    ]);
    command.args([OsString::from(found), corpus.into(), "--".into()]);
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        "-print_final_stats=1".to_owned(),
    ]);
    run::shown(&mut command)
}
