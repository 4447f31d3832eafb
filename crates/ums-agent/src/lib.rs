//! The Migration Interface (UMS §III-A): what a Coordinator asks of its own system, done on the node.
//!
//! What it does is in [`ums_node`], and the containers are [`ums_standalone`]'s. Here is what makes a
//! program of them: [`server`] is the API, [`config`] the flags, [`agent`] puts the parts together;
//! [`outer`] is the same in a container of any engine's.
//!
//! Architecture invariants: knows no saga and no peer's Coordinator; holds nothing that a service
//! needs to go on, so that it may be killed at any time.

pub mod agent;
mod alone;
pub mod config;
pub mod outer;
pub mod server;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use ums_engine::host::Hosts;
use ums_engine::remains;
use ums_node::destination;
use ums_standalone::{reconcile, services};

use crate::agent::{Agent, Making, OfNode};
use crate::config::AgentConfig;
use crate::outer::Outer;

/// Serves the agent until it is told to end. Services go on without it.
pub fn serve(config: AgentConfig) -> anyhow::Result<()> {
    run(serve_async(config, None))
}

/// The same in an outer container, whose service it tends.
fn serve_outer(config: AgentConfig, settings: outer::Settings) -> anyhow::Result<()> {
    let outer = Outer::of(&config, settings);
    run(serve_async(config, Some(outer)))
}

fn run(serving: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("UMS_LOG")
                .unwrap_or_else(|_| "info".into()),
        )
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serving)
}

async fn serve_async(config: AgentConfig, outer: Option<Outer>) -> anyhow::Result<()> {
    private_dir(&config.run_dir)?;
    private_dir(&config.state_dir)?;
    // Before anything is looked at or cleared away: it may be another agent's, which still loads.
    let _alone = alone::take(&config)?;
    let data = TcpListener::bind((config.data_address, config.data_port)).await;
    let data = data.with_context(|| {
        format!(
            "the data path can't listen on {}:{}",
            config.data_address, config.data_port
        )
    })?;
    let data_port = data.local_addr()?.port();
    let socket = config.socket();
    let making: &dyn Making = match &outer {
        Some(outer) => outer,
        None => &OfNode,
    };
    let agent = Agent::load(&config, data_port, making)?;
    services::end_cut_off(&agent.host).await;
    services::thaw_cut_off(&agent.host).await;
    let listener = listen(&socket)?;
    let node = Arc::clone(&agent.node);
    tokio::task::spawn_blocking(move || node.machine.probe_kernel());
    tracing::info!(system = %config.system, data_port, "agent serves");
    let mut end = signal(SignalKind::terminate())?;
    let api = axum::serve(listener, server::router(agent.clone()));
    tokio::select! {
        served = api.into_future() => served?,
        served = destination::listen(Arc::clone(&agent.node), data) => served?,
        tended = tend(outer.as_ref(), &agent) => tended?,
        () = reconcile::run(Arc::clone(&agent.host)) => {}
        () = reconcile::keep_rules(Arc::clone(&agent.host)) => {}
        () = keep_remains(agent.engines.clone()) => {}
        _ = end.recv() => {}
    }
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// Looks after what engines keep for clients; goes on for ever where there is none.
async fn keep_remains(engines: Option<Hosts>) {
    match engines {
        Some(engines) => remains::run(engines).await,
        None => std::future::pending().await,
    }
}

/// Tends the service of an outer container; goes on for ever where there is none.
async fn tend(outer: Option<&Outer>, agent: &Agent) -> anyhow::Result<()> {
    match outer {
        Some(outer) => outer.tend(agent).await,
        None => std::future::pending().await,
    }
}

/// A directory for root alone: sockets and secrets of services are in it.
fn private_dir(path: &Path) -> anyhow::Result<()> {
    let made = std::fs::create_dir_all(path);
    made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("{} can't be made private", path.display()))
}

/// Takes the socket over from an agent that is gone: the run directory is ours alone.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(socket);
    UnixListener::bind(socket).with_context(|| format!("{} can't be made", socket.display()))
}
