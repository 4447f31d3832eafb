//! Where things lie: the checkout and cargo's target directory.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The root of the checkout.
pub(crate) fn workspace() -> PathBuf {
    // `cargo run` sets the variable at run time too; the value at compile time is stale when
    // several checkouts share one target directory.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), PathBuf::from)
}

/// Cargo's target directory, which also holds the bundle, its downloads and the setup record.
pub(crate) fn target() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR") {
        return std::path::absolute(&dir).context("CARGO_TARGET_DIR is not a usable path");
    }
    // Covers `build.target-dir` in any cargo configuration: this program is TARGET/PROFILE/xtask.
    let exe = env::current_exe().context("cannot find this program's own path")?;
    let target = exe.parent().and_then(|profile| profile.parent());
    Ok(target
        .context("this program does not lie in a cargo target directory")?
        .to_path_buf())
}

/// The checkpoint/restore bundle.
pub(crate) fn bundle() -> Result<PathBuf> {
    Ok(target()?.join("ums-bundle"))
}
