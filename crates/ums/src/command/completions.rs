//! `ums completions` and `ums man`: what is made from the definition of the command line.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Outcome, print};
use crate::cli::Cli;
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Directory for the pages, one for each command
    directory: PathBuf,
}

pub(crate) fn execute(args: &Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ums", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(crate) fn pages(args: &ManArgs) -> Outcome {
    page(&crate::cli::command(), &args.directory)?;
    Ok(Exit::Done)
}

/// The page of a command, and of those below it: `ums-peer-add.1`.
fn page(command: &clap::Command, directory: &Path) -> anyhow::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let path = directory.join(format!("{name}.1"));
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let below = command.get_subcommands();
    let mut below = below.filter(|command| !command.is_hide_set() && command.get_name() != "help");
    below.try_for_each(|command| page(command, directory))
}
