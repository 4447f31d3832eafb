//! `ums host`: container engines of this host are told of `ums-runtime`.

mod docker;
mod podman;

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{Outcome, print};
use crate::config::Config;

/// What the runtime is called where an engine is told of it.
pub(crate) const RUNTIME: &str = "ums";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Register ums-runtime with a container engine, so that services can arrive in containers of it
    Install(Args),
    /// Undo that: containers that were made with it can't be started again until it is registered anew
    Uninstall(Args),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The engine
    engine: Engine,
    /// Its configuration [default: /etc/docker/daemon.json; for Podman /etc/containers/containers.conf.d/ums.conf]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where Docker's daemon has its process id; it is told to read its configuration again
    #[arg(long, value_name = "FILE", default_value = "/run/docker.pid")]
    pid_file: PathBuf,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Engine {
    Docker,
    Podman,
}

/// What an engine is told.
struct Runtime {
    /// The program.
    path: PathBuf,
    /// The directory of offers.
    offers: PathBuf,
}

pub(crate) fn execute(command: &Command, config: &Config) -> Outcome {
    let (args, install) = match command {
        Command::Install(args) => (args, true),
        Command::Uninstall(args) => (args, false),
    };
    let runtime = install.then(|| runtime(config)).transpose()?;
    let said = match args.engine {
        Engine::Docker => docker::set(args, runtime.as_ref())?,
        Engine::Podman => podman::set(args, runtime.as_ref())?,
    };
    print(&format!("{said}\n"))
}

fn runtime(config: &Config) -> Result<Runtime> {
    let path = std::path::absolute(config.bin_dir.join("ums-runtime"))?;
    anyhow::ensure!(
        path.is_file(),
        "`{}` is not there: put ums-runtime beside `ums`, or name its directory with `bin_dir`",
        path.display()
    );
    let offers = std::path::absolute(config.run_dir.join("runtime"))?;
    Ok(Runtime { path, offers })
}

/// What is in a file; `None` where there is none.
fn read(file: &Path) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("`{}` can't be read", file.display())),
    }
}

/// Writes a file whole or not at all, with the mode that it had.
fn replace(file: &Path, text: &str) -> Result<()> {
    let write = || -> io::Result<()> {
        let new = file.with_extension("ums-new");
        let directory = file.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let _ = fs::remove_file(&new);
        let mut options = fs::OpenOptions::new();
        let mut out = options
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)?;
        io::Write::write_all(&mut out, text.as_bytes())?;
        if let Ok(before) = fs::metadata(file) {
            out.set_permissions(before.permissions())?;
        }
        out.sync_all()?;
        fs::rename(new, file)
    };
    write().with_context(|| format!("`{}` can't be written", file.display()))
}
