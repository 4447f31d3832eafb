//! The programs of the previous release, built from the commit that `previous-release` names: a test
//! updates them under running services.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{paths, run};

/// The programs that a system runs.
const PROGRAMS: [&str; 3] = ["ums", "ums-agent", "ums-frontman"];

/// Where they are, built if they aren't yet; `None`, after saying why, where the commit can't be had.
pub(crate) fn ensure() -> Result<Option<PathBuf>> {
    let named = paths::workspace().join("previous-release");
    let commit = fs::read_to_string(&named)
        .with_context(|| format!("cannot read {}", named.display()))?
        .trim()
        .to_owned();
    let home = paths::target()?.join("ums-previous").join(&commit);
    let bin = home.join("bin");
    if bin.exists() {
        return Ok(Some(bin));
    }
    // What an earlier attempt left.
    let _ = fs::remove_dir_all(&home);
    let source = home.join("source");
    fs::create_dir_all(&source).with_context(|| format!("cannot create {}", source.display()))?;
    if let Err(error) = unpack(&commit, &source) {
        let _ = fs::remove_dir_all(&home);
        eprintln!(
            "the previous release ({commit}) is not in this clone, a shallow one or none of git's; \
             what needs it is left out: {error:#}"
        );
        return Ok(None);
    }
    build(&source, &home.join("target"), &bin)?;
    Ok(Some(bin))
}

/// The files of a commit, as they were.
fn unpack(commit: &str, into: &Path) -> Result<()> {
    let archive = into.with_extension("tar");
    let workspace = paths::workspace();
    let mut git = Command::new("git");
    // Root tests a checkout that may be another user's.
    git.args(["-c", "safe.directory=*", "-C"]).arg(&workspace);
    git.args(["archive", "--format=tar", "--output"])
        .arg(&archive);
    run::quiet(git.arg(commit))?;
    let mut tar = Command::new("tar");
    run::quiet(tar.arg("-xf").arg(&archive).arg("-C").arg(into))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

/// Builds the programs and keeps nothing else.
fn build(source: &Path, target: &Path, bin: &Path) -> Result<()> {
    let mut cargo = run::cargo();
    cargo.current_dir(source).env_remove("CARGO_TARGET_DIR");
    cargo
        .args(["build", "--locked", "--bins", "--target-dir"])
        .arg(target);
    // Nobody debugs them.
    cargo.args(["--config", "profile.dev.debug=false"]);
    cargo.args(PROGRAMS.iter().flat_map(|program| ["-p", program]));
    run::shown(&mut cargo)?;
    let staged = bin.with_extension("new");
    fs::create_dir_all(&staged)?;
    for program in PROGRAMS {
        let built = target.join("debug").join(program);
        fs::copy(&built, staged.join(program))
            .with_context(|| format!("cannot copy {}", built.display()))?;
    }
    fs::rename(&staged, bin)?;
    fs::remove_dir_all(target)?;
    fs::remove_dir_all(source)?;
    Ok(())
}
