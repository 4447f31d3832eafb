//! `cargo xtask bundle`: the relocatable checkpoint/restore bundle.

mod build;
mod host;
mod manifest;
mod recipe;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{paths, self_test};
use manifest::Manifest;

/// Arguments of `cargo xtask bundle`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Only check the files of the bundle against its manifest
    #[arg(long)]
    verify: bool,
    /// Only run the self-test: dump and restore a process with sockets (needs root)
    #[arg(long)]
    self_test: bool,
    /// Build anew, with the newest packages of the suites
    #[arg(long)]
    rebuild: bool,
    /// Also download the source packages that match the bundle, to pass on with it
    #[arg(long)]
    sources: bool,
    /// Use the CRIU and runc installed on this host, if they pass the self-test
    #[arg(long)]
    use_host_criu: bool,
}

/// Runs the command.
pub(crate) fn main(args: &Args) -> Result<()> {
    let bundle = paths::bundle()?;
    if args.verify {
        Manifest::read(&bundle)?.verify(&bundle)?;
        eprintln!("bundle: every file is as the manifest says");
        return Ok(());
    }
    if args.self_test {
        self_test::run(&bundle)?;
        eprintln!("bundle: passed the self-test");
        return Ok(());
    }
    if args.use_host_criu {
        return use_host();
    }
    make(args.rebuild)?;
    if args.sources {
        let into = paths::target()?.join("ums-bundle-sources");
        build::sources(&Manifest::read(&bundle)?, &cache()?, &into)?;
        eprintln!("bundle: sources are in {}", into.display());
    }
    println!("{}", bundle.display());
    Ok(())
}

/// Makes sure that there is a whole, tested bundle; returns its folder.
pub(crate) fn ensure() -> Result<PathBuf> {
    make(false)?;
    paths::bundle()
}

fn cache() -> Result<PathBuf> {
    Ok(paths::target()?.join("ums-bundle-cache"))
}

fn make(rebuild: bool) -> Result<()> {
    let bundle = paths::bundle()?;
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // Two builds at once would empty each other's work folder.
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("cannot lock the bundle's cache")?;
    if !rebuild {
        match current(&bundle) {
            Ok(manifest) => {
                eprintln!(
                    "bundle: up to date (CRIU {}, runc {})",
                    manifest.criu, manifest.runc
                );
                return Ok(());
            }
            Err(error) if bundle.exists() => eprintln!("bundle: building anew: {error:#}"),
            Err(_) => eprintln!("bundle: building {}", bundle.display()),
        }
    }
    let staged = cache.join("staged");
    build::reset(&staged)?;
    let manifest = build::build(&staged, &cache)?;
    self_test::run(&staged).context("the new bundle fails its self-test and is not used")?;
    put_in_place(&staged, &bundle)?;
    eprintln!(
        "bundle: CRIU {}, runc {}; passed the self-test",
        manifest.criu, manifest.runc
    );
    Ok(())
}

/// The bundle's manifest, if the bundle can be used as it is.
fn current(bundle: &Path) -> Result<Manifest> {
    let manifest = Manifest::read(bundle)?;
    anyhow::ensure!(
        manifest.recipe == recipe::RECIPE,
        "its recipe is an older one"
    );
    manifest.verify(bundle)?;
    Ok(manifest)
}

/// Puts a bundle of links to the host's own programs in place, if they pass the self-test.
fn use_host() -> Result<()> {
    let (bundle, cache) = (paths::bundle()?, cache()?);
    fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("cannot lock the bundle's cache")?;
    let staged = cache.join("staged");
    build::reset(&staged)?;
    let manifest = host::build(&staged)?;
    self_test::run(&staged)
        .context("the host's CRIU can't be used: build the bundle without --use-host-criu")?;
    put_in_place(&staged, &bundle)?;
    eprintln!(
        "bundle: links to the host's CRIU {}, runc {}",
        manifest.criu, manifest.runc
    );
    println!("{}", bundle.display());
    Ok(())
}

fn put_in_place(staged: &Path, bundle: &Path) -> Result<()> {
    if bundle.exists() {
        fs::remove_dir_all(bundle)?;
    }
    fs::rename(staged, bundle)
        .with_context(|| format!("cannot put the bundle at {}", bundle.display()))
}
