//! `cargo xtask check`: everything that can be judged without running the program.

mod advisories;
mod circles;
mod licence;
mod policy;

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;

use crate::run;

/// One part of the check.
struct Part {
    name: &'static str,
    run: fn() -> Result<()>,
}

const PARTS: [Part; 6] = [
    Part {
        name: "fmt",
        run: fmt,
    },
    Part {
        name: "policy",
        run: policy::check,
    },
    Part {
        name: "advisories",
        run: advisories::check,
    },
    Part {
        name: "circles",
        run: circles::check,
    },
    Part {
        name: "clippy",
        run: clippy,
    },
    Part {
        name: "doc",
        run: doc,
    },
];

/// Runs every part, even after one failed, and sums up at the end.
pub(crate) fn main() -> Result<ExitCode> {
    let mut lines = Vec::new();
    let mut failed = 0;
    for part in &PARTS {
        eprintln!("check: {}", part.name);
        let start = Instant::now();
        let outcome = (part.run)();
        if let Err(error) = &outcome {
            eprintln!("error: {error:#}");
            failed += 1;
        }
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        lines.push(format!(
            "{:<12}{word:<8}{:>6.1} s",
            part.name,
            start.elapsed().as_secs_f64()
        ));
    }
    println!("{}", lines.join("\n"));
    println!(
        "check: {} of {} parts passed",
        PARTS.len() - failed,
        PARTS.len()
    );
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn fmt() -> Result<()> {
    run::shown(run::cargo().args(["fmt", "--all", "--check"]))?;
    run::shown(run::cargo().args(["fmt", "--manifest-path", policy::FUZZERS, "--check"]))?;
    // Not a member of the workspace: the bundle's build compiles it by itself.
    let launcher = "xtask/launcher/main.rs";
    run::shown(
        Command::new("rustfmt")
            .args(["--edition=2024", "--check", launcher])
            .current_dir(crate::paths::workspace()),
    )
}

fn clippy() -> Result<()> {
    let options = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    run::shown(run::cargo().args(options))
}

fn doc() -> Result<()> {
    let mut command = run::cargo();
    command.env("RUSTDOCFLAGS", "-D warnings");
    run::shown(command.args(["doc", "--workspace", "--no-deps", "--quiet"]))
}
