//! What the agent of an outer container does by itself: starts the service, watches it, and tells the first
//! process what becomes of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use ums_api::agent::RunRequest;
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::{Phase, Request};
use ums_core::wrap;
use ums_node::host::{Keep, Service};
use ums_node::task::blocking;
use ums_node::{attendants, problem};
use ums_standalone::settings::ServicePlaces;
use ums_standalone::{removal, services};

use super::ground::{FILES, IMAGE};
use super::settings::{Settings, user};
use super::slot::Slot;
use super::told::{Told, tell};
use crate::agent::Agent;

/// How often is looked what the service does.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long the container stays after its service and Frontman have gone: its Coordinator may ask once more.
const LINGER: Duration = Duration::from_secs(5);
/// The exit code of a service whose end nobody saw: as if killed.
const LOST: u8 = 137;
/// The exit code of a container whose service can't be started, as engines have it.
const NOT_STARTED: u8 = 125;
/// Where what a service had changed waits while it is started again.
const KEPT: &str = "kept";

/// Starts the service unless it is here or may be elsewhere, and tells of it until there is nothing to tell.
pub(super) async fn tend(agent: &Agent, settings: &Settings, slot: &Slot) -> anyhow::Result<()> {
    if let Err(error) = begin(agent, settings, slot).await {
        tracing::error!(error = format!("{error:#}"), "the service can't be started");
        return finish(NOT_STARTED).await;
    }
    let mut told = None;
    let mut had_it = false;
    let mut alone_since = None;
    loop {
        let seen = look(agent, settings).await;
        let tells = match seen {
            Seen::Here { init, moving } => {
                had_it = true;
                Some(Told::Runs { init, moving })
            }
            Seen::Ended(code) => return finish(code).await,
            Seen::Busy => None,
            Seen::Nothing => Some(Told::Nothing),
        };
        if let Some(tells) = tells.filter(|tells| told != Some(*tells)) {
            tell(tells)?;
            told = Some(tells);
        }
        let leads = seen == Seen::Nothing && has_frontman(agent, settings).await;
        had_it |= leads;
        let is_over = seen == Seen::Nothing && had_it && !leads;
        match alone_since.filter(|_| is_over) {
            None => alone_since = is_over.then(Instant::now),
            Some(since) if Instant::elapsed(&since) > LINGER => return finish(0).await,
            Some(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Tells the end, and waits for it.
async fn finish(code: u8) -> anyhow::Result<()> {
    tell(Told::End { code })?;
    std::future::pending().await
}

/// What is here of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Its processes.
    Here { init: i32, moving: bool },
    /// It has ended, with this code.
    Ended(u8),
    /// Something that is not to be told: it arrives, or nobody can say now.
    Busy,
    /// Nothing.
    Nothing,
}

async fn look(agent: &Agent, settings: &Settings) -> Seen {
    let Ok(service) = agent.node.host.service(&settings.service) else {
        return Seen::Nothing;
    };
    let moving = service.gate.is_some();
    let arrives = service.arriving.is_some();
    let container = service.container.clone();
    let status = blocking(move || Ok(container.status())).await;
    let (phase, init) = match status {
        Ok(Ok(status)) => (status.phase, status.init_pid),
        Ok(Err(error)) if error.is_gone() && !moving && !arrives => return Seen::Ended(LOST),
        _ => return Seen::Busy,
    };
    match (phase, init) {
        _ if arrives => Seen::Busy,
        (Phase::Dead { code }, _) if !moving => {
            // Whoever has the pipes of its output gets to their end when the keeper has gone.
            let container = service.container.clone();
            let _ = blocking(move || Ok(container.ask(&Request::Quit).is_ok())).await;
            Seen::Ended(u8::try_from(code).unwrap_or(LOST))
        }
        (Phase::Created | Phase::Dead { .. }, _) | (_, None) => Seen::Busy,
        (_, Some(init)) => Seen::Here { init, moving },
    }
}

async fn has_frontman(agent: &Agent, settings: &Settings) -> bool {
    let (run_dir, name) = (agent.run_dir.clone(), settings.service.clone());
    let looked = blocking(move || {
        let all = attendants::list(&run_dir);
        Ok(all
            .iter()
            .any(|it| it.kind == "frontman" && it.service == name))
    });
    looked.await.unwrap_or(true)
}

async fn begin(agent: &Agent, settings: &Settings, slot: &Slot) -> anyhow::Result<()> {
    let here = agent.node.host.service(&settings.service).ok();
    if let Some(service) = &here {
        let keeper = service.container.status_if_any_async().await;
        let is_lost = matches!(keeper, Ok(None));
        if !is_lost || service.gate.is_some() || service.arriving.is_some() {
            return Ok(());
        }
    }
    if slot.has_left() {
        tracing::warn!(
            files = slot.files(),
            "the service has left this container, or is leaving it: it is awaited here and not started; to start \
             it anew although it may run elsewhere, remove these files"
        );
        return Ok(());
    }
    if settings.awaits && here.is_none() {
        return Ok(());
    }
    start(agent, settings, here).await
}

/// Starts it from its image, with what it had changed if it was here before: an engine keeps that over a
/// restart of its container.
async fn start(agent: &Agent, settings: &Settings, before: Option<Service>) -> anyhow::Result<()> {
    let said = |problem: Problem| anyhow!("{}: {}", problem.title, problem.detail);
    let host = Arc::clone(&agent.host);
    let kept = host.settings.state_dir.join(KEPT);
    if let Some(service) = before {
        let places = host.settings.places(&settings.service);
        keep(&places, &kept).context("what it had changed can't be kept")?;
        let destroyed = removal::destroy(&host, &service, Keep::Nothing).await;
        destroyed.map_err(said)?;
    }
    let read =
        |name: &str| std::fs::read_to_string(Path::new(IMAGE).join(name)).unwrap_or_default();
    let (uid, gid) = user(&settings.user, &read("etc/passwd"), &read("etc/group"))?;
    let request = RunRequest {
        name: settings.service.clone(),
        rootfs: IMAGE.to_owned(),
        image: None,
        entrypoint: None,
        user: None,
        nano_cpus: None,
        labels: std::collections::BTreeMap::new(),
        command: settings.command.clone(),
        env: settings.env.clone(),
        cwd: settings.cwd.clone(),
        uid,
        gid,
        memory_limit_bytes: None,
        volumes: Vec::new(),
        address: None,
        ports: settings.ports.clone(),
    };
    let furnish = move |places: &ServicePlaces| {
        give_back(places, &kept)
            .and_then(|()| give_files(places))
            .map_err(|error| {
                problem::failed(ProblemKind::Directories, "its files can't be put in place")(&error)
            })
    };
    services::run_furnished(&host, request, furnish)
        .await
        .map_err(said)?;
    Ok(())
}

/// Puts what the service had changed aside. What is kept already is of an attempt that did not get further.
fn keep(places: &ServicePlaces, kept: &Path) -> std::io::Result<()> {
    if !kept.exists() && places.upper().exists() {
        std::fs::rename(places.upper(), kept)?;
    }
    Ok(())
}

fn give_back(places: &ServicePlaces, kept: &Path) -> std::io::Result<()> {
    if kept.exists() {
        std::fs::remove_dir(places.upper())?;
        std::fs::rename(kept, places.upper())?;
    }
    Ok(())
}

/// Gives the service the files that the engine has mounted over those of its image.
fn give_files(places: &ServicePlaces) -> std::io::Result<()> {
    for name in FILES {
        let path = Path::new("/").join(name);
        if !path.exists() {
            continue;
        }
        let (copy, image) = (places.upper().join(name), Path::new(IMAGE).join(name));
        if let (Some(directory), Some(from)) = (copy.parent(), image.parent())
            && !directory.exists()
        {
            std::fs::create_dir(directory)?;
            std::fs::set_permissions(directory, std::fs::metadata(from)?.permissions())?;
        }
        std::fs::copy(&path, &copy)?;
    }
    Ok(())
}

/// Name at the top of the image that is not the service's.
pub(super) fn not_the_services() -> &'static str {
    wrap::DIRECTORY.trim_start_matches('/')
}
