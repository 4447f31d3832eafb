//! A container that leaves: its keeper, what people tell it meanwhile, and its end.

use std::sync::Arc;
use std::time::Duration;

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
use crate::host::{Inner, refused};
use crate::record::Record;
use crate::remains;

/// Changes what its engine does when a container ends; content when there is nothing to change. Blocks.
pub(crate) fn set_restart(
    inner: &Arc<Inner>,
    record: &Record,
    to: &Restart,
) -> Result<(), Problem> {
    if !record.restart.is_on() {
        return Ok(());
    }
    tokio::runtime::Handle::current().block_on(async {
        let client = inner.client(&record.engine).await?;
        let set = client.set_restart(&record.id, to).await;
        match set {
            // It is gone, and with it what would be restarted.
            Err(_) if matches!(client.inspect(&record.id).await, Ok(None)) => Ok(()),
            done => done.map_err(|error| refused(&error)),
        }
    })
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

/// Signals that people and engines send to a container that is to end.
const ENDING: [u32; 5] = [1, 2, 3, 9, 15];

pub(crate) async fn is_undisturbed(inner: &Arc<Inner>, service: &Service) -> Result<(), Problem> {
    if service.engine.is_none() {
        return Ok(());
    }
    let record = inner.record(service.name())?;
    let disturbed = |what: String| {
        let detail = format!("{what} while it was being moved: it stays here");
        let title = "the container's engine was told something";
        Err(Problem::failed(ProblemKind::Container, title, detail))
    };
    // It is frozen: whatever was sent to it waits.
    if let Some(signal) = ending(record.init.0).first() {
        return disturbed(format!("signal {signal} was sent to it"));
    }
    let inspected = inner
        .client(&record.engine)
        .await?
        .inspect(&record.id)
        .await;
    let state = inspected
        .map_err(|error| refused(&error))?
        .and_then(|it| it.state);
    let state = state.unwrap_or_default();
    let same = state.pid == Some(record.init.0.into());
    match state.running == Some(true) && same && state.paused != Some(true) {
        true => Ok(()),
        false => disturbed("it was stopped, paused or started again".to_owned()),
    }
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
    inner.state().listed.remove(service.name());
    Ok(())
}
