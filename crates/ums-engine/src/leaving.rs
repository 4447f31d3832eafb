//! A container that leaves: its keeper, what people tell it meanwhile, and its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard::models::ContainerInspectResponse;
use tokio::time::timeout;
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::client;
use ums_checkpoint::keeper::protocol::Request;
use ums_core::id::ServiceName;
use ums_core::specification::Restart;
use ums_node::frontman;
use ums_node::host::{Keep, Service};
use ums_node::problem;
use ums_node::task::blocking;

use crate::adopt;
use crate::describe::restart_of;
use crate::host::{Inner, refused};
use crate::record::Record;
use crate::remains;
use crate::told::{Told, Watch};

/// Shuts the gate of a container, if it is as it was looked at: it is not started again when it ends, and what its
/// engine is told from now on is heard.
pub(crate) async fn shut(inner: &Arc<Inner>, mut record: Record) -> Result<(), Problem> {
    let client = inner.client(&record.engine).await?;
    let seen = client.inspect(&record.id).await;
    let seen = seen.map_err(|error| refused(&error))?.unwrap_or_default();
    let name = record.specification.name.clone();
    if let Some(why) = is_another(&record, &seen) {
        return Err(disturbed(&why));
    }
    // It may have been told otherwise since.
    record.restart = restart_of(&seen);
    inner.keep(record.clone())?;
    set_restart(inner, &record, &Restart::default()).await?;
    let since = SystemTime::now();
    let seen = client.inspect(&record.id).await;
    let seen = seen.map_err(|error| refused(&error))?.unwrap_or_default();
    if let Some(why) = is_another(&record, &seen) {
        return Err(disturbed(&why));
    }
    let watch = Watch::begin(&client, &record.id, since);
    inner.state().watches.insert(name, watch);
    Ok(())
}

/// Changes what its engine does when a container ends; content when there is nothing to change.
pub(crate) async fn set_restart(
    inner: &Arc<Inner>,
    record: &Record,
    to: &Restart,
) -> Result<(), Problem> {
    if !record.restart.is_on() {
        return Ok(());
    }
    let client = inner.client(&record.engine).await?;
    let set = client.set_restart(&record.id, to).await;
    match set {
        // It is gone, and with it what would be restarted.
        Err(_) if matches!(client.inspect(&record.id).await, Ok(None)) => Ok(()),
        done => done.map_err(|error| refused(&error)),
    }
}

/// Starts the keeper of a container that leaves, unless it has one.
pub(crate) async fn leave(inner: &Arc<Inner>, name: &ServiceName) -> Result<(), Problem> {
    if inner.standalone.service(name).is_ok() {
        return Ok(());
    }
    let mut record = inner.record(name)?;
    if let Some(obstacle) = record.obstacles.first() {
        let title = "the container can't be taken over";
        let detail = format!("{}: see `ums plan`", obstacle.detail);
        return Err(problem::conflict(ProblemKind::Container, title, detail));
    }
    let failed = problem::failed(
        ProblemKind::Network,
        "the container's network can't be prepared",
    );
    let netns = record.netns().ok_or_else(|| ended(name))?;
    let is_new = record.network.is_empty();
    if is_new {
        record.network = inner
            .inside
            .settings(&netns)
            .await
            .map_err(|error| failed(&error))?;
    }
    let (this, of) = (Arc::clone(inner), record);
    blocking(move || {
        let container = this.seen(&of).container;
        match container.keeper().map(drop) {
            Ok(()) => return Ok(()),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(problem::keeper(&error)),
        }
        this.keep(of.clone())?;
        let places = this.places(&of.specification.name);
        adopt::start_keeper(&of, &places, &this.settings.bundle_bin)
            .inspect_err(|_| this.forget(&of.specification.name))
            .map_err(|error: client::Error| problem::keeper(&error))?;
        Ok(())
    })
    .await?;
    match is_new {
        true => inner
            .inside
            .prepare(&netns)
            .await
            .map_err(|error| failed(&error)),
        false => Ok(()),
    }
}

fn ended(name: &ServiceName) -> Problem {
    let detail = format!(
        "the container `{name}` has ended or was started anew since it was looked at: migrate again"
    );
    let title = "the container has ended";
    problem::conflict(ProblemKind::ServiceExited, title, detail)
}

/// How long an engine that tells what happens is waited for before the commit: the service stands still.
const CONFIRM_PATIENCE: Duration = Duration::from_millis(300);

/// Signals that people and engines send to a container that is to end.
const ENDING: [u32; 5] = [1, 2, 3, 9, 15];

/// Whether nobody has told the container anything, as far as that was heard.
pub(crate) async fn is_undisturbed(inner: &Arc<Inner>, service: &Service) -> Result<(), Problem> {
    if service.engine.is_none() {
        return Ok(());
    }
    let record = inner.record(service.name())?;
    match heard(inner, &record)? {
        Told::Nothing => Ok(()),
        // The engine was restarted, or this agent was.
        _ => ask(inner, &record).await,
    }
}

/// The same, and its engine is asked in any case.
pub(crate) async fn confirm(inner: &Arc<Inner>, service: &Service) -> Result<(), Problem> {
    if service.engine.is_none() {
        return Ok(());
    }
    let record = inner.record(service.name())?;
    if heard(inner, &record)? == Told::Unknown {
        return ask(inner, &record).await;
    }
    match timeout(CONFIRM_PATIENCE, ask(inner, &record)).await {
        Ok(answer) => answer,
        // By now it would have been heard.
        Err(_) => heard(inner, &record).map(drop),
    }
}

fn heard(inner: &Inner, record: &Record) -> Result<Told, Problem> {
    // It is frozen: whatever was sent to it waits.
    if let Some(signal) = ending(record.init.0).first() {
        return Err(disturbed(&format!("signal {signal} was sent to it")));
    }
    if record.netns().is_none() {
        return Err(disturbed("it was ended"));
    }
    let state = inner.state();
    let told = state.watches.get(&record.specification.name);
    match told.map_or(Told::Unknown, Watch::told) {
        Told::This(action) => {
            let what = format!("its engine was told something (event `{action}`)");
            Err(disturbed(&what))
        }
        told => Ok(told),
    }
}

async fn ask(inner: &Inner, record: &Record) -> Result<(), Problem> {
    let client = inner.client(&record.engine).await?;
    let seen = client.inspect(&record.id).await;
    let seen = seen.map_err(|error| refused(&error))?.unwrap_or_default();
    match is_another(record, &seen) {
        Some(why) => Err(disturbed(&why)),
        // It was switched off when the gate was shut.
        None if restart_of(&seen).is_on() => Err(disturbed("it was given a restart policy")),
        None => Ok(()),
    }
}

fn disturbed(what: &str) -> Problem {
    let detail = format!("{what} while it was being moved: it stays here as it is now");
    let title = "somebody else has done something with the container";
    Problem::failed(ProblemKind::Container, title, detail)
}

/// How a container is another one than was looked at, or does something else; `None` where it isn't.
fn is_another(record: &Record, seen: &ContainerInspectResponse) -> Option<String> {
    let state = seen.state.clone().unwrap_or_default();
    let same = state.pid == Some(record.init.0.into());
    let why = match (state.running, state.paused) {
        (Some(true), _) if !same => "it was started anew",
        (Some(true), Some(true)) => "it was paused",
        (Some(true), _) => return None,
        _ => "it was ended",
    };
    Some(why.to_owned())
}

/// Those of them that wait for a process which is frozen.
pub(crate) fn ending(pid: i32) -> Vec<u32> {
    let mut waiting = pending(pid);
    waiting.retain(|signal| ENDING.contains(signal));
    waiting
}

/// Signals that wait for a process (`ShdPnd`, proc_pid_status(5)).
fn pending(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let mask = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
    let mask = mask.unwrap_or(0);
    (1..=64)
        .filter(|signal| mask & (1 << (signal - 1)) != 0)
        .collect()
}

/// Kills a container that has moved, without letting it execute another instruction, and has its engine remove it,
/// unless it stays for its clients. Repeating it is harmless.
pub(crate) async fn destroy(
    inner: &Arc<Inner>,
    service: &Service,
    keep: Keep,
) -> Result<(), Problem> {
    let record = inner.record(service.name())?;
    if keep == Keep::Network && remains::stay(inner, &record, service).await? {
        inner.forget(service.name());
        inner.forget_coming(service.name());
        inner.state().listed.remove(service.name());
        return Ok(());
    }
    let container = service.container.clone();
    blocking(move || match container.keeper() {
        Ok(keeper) => {
            let killed = keeper.call(&Request::Kill, &[]);
            killed.map_err(|error| problem::keeper(&error)).map(drop)
        }
        Err(error) if error.is_gone() => container.kill_only(),
        Err(error) => Err(problem::keeper(&error)),
    })
    .await?;
    let client = inner.client(&record.engine).await?;
    client
        .remove(&record.id)
        .await
        .map_err(|error| refused(&error))?;
    let container = service.container.clone();
    blocking(move || {
        // Gone is as good.
        let _ = container.ask(&Request::Leave);
        Ok(())
    })
    .await?;
    // Its network has gone with it: who stood in for it there has nobody to lead any more.
    let frontmen = &inner.standalone.frontmen;
    frontman::retire(frontmen, service.name(), None, Duration::ZERO).await?;
    inner.forget(service.name());
    inner.forget_coming(service.name());
    inner.state().listed.remove(service.name());
    Ok(())
}
