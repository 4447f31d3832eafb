//! `ums migrate`: asks for a migration and watches it to its end.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use ums_api::client::{AbortRequest, MigrationView, WatchQuery, paths};
use ums_api::http::ClientError;
use ums_core::id::MigrationId;
use ums_core::report::Outcome as Migrated;

use super::plan::Wanted;
use super::{Outcome, print, print_json};
use crate::connection::Connection;
use crate::exit::{Exit, Failure};
use crate::progress::Screen;
use crate::show;

/// The longest wait for a change: the elapsed time on the screen moves at least as often.
const TICK_MS: u64 = 500;

/// How long a Coordinator that has gone away is waited for: a restarted one goes on with the
/// migration, so its absence is no reason to give up at once.
const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// Between two attempts to reach an absent Coordinator.
const ABSENCE_PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    /// Print the report as one JSON object, and no progress
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    // Before anything is asked: an interrupt that comes early must not leave a migration behind
    // that nobody wants.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let asked = coordinator
        .post(paths::MIGRATIONS, &args.wanted.request())
        .await;
    let first: MigrationView = match asked {
        // What was refused before there was a migration has an object too: the problem.
        Err(ClientError::Problem(problem)) if args.json => {
            print_json(&problem)?;
            return Err(Failure::said(Exit::of_problem(&problem)));
        }
        other => other?,
    };
    let mut screen = Screen::new(!args.json);
    let last = watch(first, &coordinator, &mut screen, &mut interrupts).await?;
    screen.clear();
    let exit = Exit::of_outcome(last.report.outcome, !last.refusals.is_empty());
    if args.json {
        print_json(&last.report)?;
    } else {
        print(&show::migration(&last))?;
    }
    Ok(exit)
}

/// Follows a migration until it is over, or until the person who watches has had enough.
async fn watch(
    mut view: MigrationView,
    coordinator: &Connection,
    screen: &mut Screen,
    interrupts: &mut Signal,
) -> Result<MigrationView, Failure> {
    let id = view.report.migration_id;
    let mut interrupted = false;
    while view.report.outcome == Migrated::Running {
        screen.show(&view);
        let query = WatchQuery {
            after: Some(view.progress.generation),
            wait_ms: Some(TICK_MS),
        };
        tokio::select! {
            next = patiently(id, &query, coordinator, screen) => view = next?,
            _ = interrupts.recv() => {
                if interrupted {
                    screen.say(&format!("{id} goes on; `ums status {id}` shows how far it is"));
                    return Ok(view);
                }
                interrupted = true;
                abort(id, coordinator, screen).await;
            }
        }
    }
    Ok(view)
}

/// Asks for the abort, once, and says what came of it.
async fn abort(id: MigrationId, coordinator: &Connection, screen: &mut Screen) {
    screen.say("asking to abort; interrupt again to stop watching");
    let request = AbortRequest {
        reason: Some("interrupted by the person who asked".to_owned()),
    };
    let asked: Result<MigrationView, ClientError> =
        coordinator.post(&paths::abort(id), &request).await;
    match asked {
        Ok(_) => screen.say("the abort is accepted; the service goes on at the source"),
        Err(error) => screen.say(&format!("the abort is not accepted: {error}")),
    }
}

/// One change of a migration, across a restart of the Coordinator.
async fn patiently(
    id: MigrationId,
    query: &WatchQuery,
    coordinator: &Connection,
    screen: &mut Screen,
) -> Result<MigrationView, Failure> {
    let mut absent_since = None;
    loop {
        match coordinator.watch(&paths::migration(id, query)).await {
            Err(error) if error.is_connection() => {
                let since = *absent_since.get_or_insert_with(|| {
                    screen.say("the Coordinator does not answer; waiting for it");
                    Instant::now()
                });
                if since.elapsed() > ABSENCE_MAX {
                    return Err(error.into());
                }
                tokio::time::sleep(ABSENCE_PAUSE).await;
            }
            answer => return Ok(answer?),
        }
    }
}
