//! `ums resolve`: a person decides about a migration that was cut off at the commit.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::anyhow;
use serde::Serialize;
use ums_api::client::{
    HistoryQuery, MigrationView, Resolution, ResolveRequest, ResolveView, WatchQuery, paths,
};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::report::Outcome as Migrated;

use super::{Outcome, print, print_either, print_json};
use crate::connection::Connection;
use crate::exit::{Exit, Failure};
use crate::show;

/// The longest wait for a change while the decision is carried out.
const TICK_MS: u64 = 500;

/// How many of a service's newest migrations are looked through for the one that is cut off.
const RECENT: usize = 100;

const ABOUT: &str = "\
Decide about a migration that was cut off at the commit.

Once the source has committed, the service is the destination's, and neither side goes on alone: \
the source keeps its own copy frozen and repeats the commit, the destination holds its copy before \
its first instruction until it hears of it. When the two systems are connected again they settle \
it by themselves. This command is for when they won't be, or when nobody can know whether the \
service has executed.

Without a decision it tells what is known on this side, what the other side may be doing, and what \
can be decided here at which risk; nothing is changed. With one it asks for a second confirmation: \
the migration's id or the service's name, typed at a terminal or given with --accept-risk-for. The \
decision is written to the journal, and the other side acts by it when it learns of it. If both \
sides were decided for, both show the conflict as `stuck`.

It is refused (exit code 3) where nothing has to be decided: the migration goes on or is over, or \
the source answers when the destination asks it. See docs/runbook.md.";

#[derive(Debug, clap::Args)]
#[command(long_about = ABOUT)]
#[command(group(clap::ArgGroup::new("decision").args(["take_back", "run", "discard"])))]
pub(crate) struct Args {
    /// The migration, or the service that migrates
    #[arg(value_name = "MIGRATION|SERVICE")]
    which: String,
    /// At the source: thaw its own copy, and give up the destination's
    ///
    /// Risk: if the destination runs its copy, or comes to, two copies execute.
    #[arg(long)]
    take_back: bool,
    /// At the destination: run the prepared copy, although the source can't be asked
    ///
    /// Risk: if the source has not committed it runs its own copy, and two copies execute.
    #[arg(long)]
    run: bool,
    /// At the destination: end what is here and remove it
    ///
    /// Risk: if the source never comes back, the service is lost; if it has executed here, what it
    /// acknowledged since is.
    #[arg(long)]
    discard: bool,
    /// The second confirmation, for scripts: the migration's id or the service's name
    #[arg(long, value_name = "MIGRATION|SERVICE", requires = "decision")]
    accept_risk_for: Option<String>,
    /// Print one JSON object: what is known, or with a decision the report
    #[arg(long)]
    json: bool,
}

impl Args {
    fn choice(&self) -> Option<Resolution> {
        let flags = [
            (self.take_back, Resolution::TakeBack),
            (self.run, Resolution::Run),
            (self.discard, Resolution::Discard),
        ];
        let mut given = flags.into_iter().filter(|(given, _)| *given);
        given.next().map(|(_, choice)| choice)
    }
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let id = find(&args.which, &coordinator).await?;
    let known: ResolveView = coordinator.get(&paths::resolve(id)).await?;
    let Some(choice) = args.choice() else {
        return print_either(args.json, &known, show::resolution);
    };
    if !known.offers.iter().any(|offer| offer.choice == choice) {
        let error = anyhow!(
            "`{}` can't decide that; `ums resolve {id}` tells what it can",
            known.system
        );
        return Err(Failure::new(Exit::Refused, error));
    }
    let confirm = match args.accept_risk_for {
        Some(confirm) => confirm,
        None => ask(&known, choice)?,
    };
    let request = ResolveRequest { choice, confirm };
    let view = post(id, &request, &coordinator).await?;
    let exit = match view.report.outcome {
        Migrated::Stuck => Exit::Stuck,
        _ => Exit::Done,
    };
    if args.json {
        print_json(&view.report)?;
    } else {
        print(&show::migration(&view))?;
    }
    Ok(exit)
}

/// A migration by its id, or the one of a service that is cut off.
async fn find(which: &str, coordinator: &Connection) -> Result<MigrationId, Failure> {
    if let Ok(id) = which.parse::<MigrationId>() {
        return Ok(id);
    }
    let service: ServiceName = which.parse().map_err(Failure::usage)?;
    let query = HistoryQuery {
        service: Some(service),
        limit: Some(RECENT),
    };
    let views: Vec<MigrationView> = coordinator.get(&paths::history(&query)).await?;
    let cut_off = views.iter().find(|view| view.resolvable);
    cut_off.map(|view| view.report.migration_id).ok_or_else(|| {
        let error = anyhow!(
            "no migration of `{which}` is cut off here; `ums history {which}` shows how they are"
        );
        Failure::new(Exit::Refused, error)
    })
}

/// Tells the risk and asks for the second confirmation, at a terminal.
fn ask(known: &ResolveView, choice: Resolution) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        let error = anyhow!(
            "the decision has to be confirmed: read the risk with `ums resolve {}`, then give \
             --accept-risk-for {} with it",
            known.migration_id,
            known.service
        );
        return Err(Failure::usage(error));
    }
    let mut out = std::io::stderr().lock();
    let risk = show::risk(known, choice);
    write!(out, "{risk}Type `{}` to go on: ", known.service)?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Decides, and waits until the decision is carried out.
async fn post(
    id: MigrationId,
    request: &(impl Serialize + Sync),
    coordinator: &Connection,
) -> Result<MigrationView, Failure> {
    let mut view: MigrationView = coordinator.post(&paths::resolve(id), request).await?;
    while view.report.outcome == Migrated::Running || view.resolvable {
        let query = WatchQuery {
            after: Some(view.progress.generation),
            wait_ms: Some(TICK_MS),
        };
        view = coordinator.watch(&paths::migration(id, &query)).await?;
    }
    Ok(view)
}
