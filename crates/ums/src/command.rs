//! The commands, a module each.

pub(crate) mod abort;
pub(crate) mod ca;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod history;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod list;
pub(crate) mod migrate;
pub(crate) mod peer;
pub(crate) mod plan;
pub(crate) mod resolve;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod status;

use std::io::Write;

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::{Cli, Command};
use crate::config::{Config, ConfigError, Sources};
use crate::connection::Connection;
use crate::exit::{Exit, Failure};

/// What a command ends with.
pub(crate) type Outcome = Result<Exit, Failure>;

/// Does what the command line says.
pub(crate) fn execute(cli: Cli) -> Outcome {
    // What needs no settings must work with bad ones.
    match cli.command {
        Command::Ca(command) => return ca::execute(command),
        Command::ExitCodes => return print(&Exit::table()),
        Command::Completions(args) => return completions::execute(&args),
        Command::Man(args) => return completions::pages(&args),
        _ => {}
    }
    let (flags, file) = (cli.settings, cli.config);
    let load = move || {
        Config::load(Sources {
            flags: flags.clone(),
            file: file.clone(),
            variable: &|name| std::env::var_os(name),
        })
    };
    let config = load().map_err(Failure::usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the threads of this program can't be started")?;
    runtime.block_on(dispatch(cli.command, config, load))
}

async fn dispatch(
    command: Command,
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError>,
) -> Outcome {
    let coordinator = Connection::new(config.socket());
    match command {
        Command::Serve(args) => serve::execute(args, config, reload).await,
        Command::Run(args) => run::execute(args, coordinator).await,
        Command::Migrate(args) => migrate::execute(args, coordinator).await,
        Command::Plan(args) => plan::execute(args, coordinator).await,
        Command::List(args) => list::execute(args, coordinator).await,
        Command::Status(args) => status::execute(args, coordinator).await,
        Command::History(args) => history::execute(args, coordinator).await,
        Command::Abort(args) => abort::execute(args, coordinator).await,
        Command::Resolve(args) => resolve::execute(args, coordinator).await,
        Command::Rm(args) => rm::execute(args, coordinator).await,
        Command::Doctor(args) => doctor::execute(args, config).await,
        Command::Peer(command) => peer::execute(command, config, coordinator).await,
        Command::Host(command) => host::execute(&command, &config),
        // It reads and writes as long as it takes, and nobody waits for anything else.
        Command::Image(command) => tokio::task::block_in_place(|| image::execute(command, &config)),
        Command::Ca(command) => ca::execute(command),
        Command::ExitCodes => print(&Exit::table()),
        Command::Completions(args) => completions::execute(&args),
        Command::Man(args) => completions::pages(&args),
    }
}

/// Writes text to standard output. A reader that has gone away (`ums list | head`) is no failure.
fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Done),
    }
}

/// Writes one JSON object, or list, to standard output.
fn print_json(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value).context("the answer can't be shown as JSON")?;
    print(&format!("{text}\n"))
}

/// Writes either form.
fn print_either<T: Serialize>(json: bool, value: &T, human: impl FnOnce(&T) -> String) -> Outcome {
    if json {
        print_json(value)
    } else {
        print(&human(value))
    }
}
