//! The Migration Interface (UMS §III-A): what a Coordinator asks of its own system, done on the node.
//!
//! - [`server`] is the API, [`agent`] what it works on;
//! - [`services`] starts and removes services, [`source`] and [`destination`] are the two sides of
//!   a migration, [`attendants`] lists what outlives one, [`reconcile`] takes away what outlived its
//!   use;
//! - [`container`] starts keepers, [`bundle`] writes their OCI bundles, [`images`] keeps root
//!   filesystems, [`network`] does addresses and endpoints;
//! - [`frontman`] and [`tunnel`] are what clients meet meanwhile, [`connections`] what of theirs moves;
//! - [`facts`] and [`inspect`] look at the node and at services, without judging.
//!
//! Architecture invariants: knows no saga and no peer's Coordinator; holds nothing that a service
//! needs to go on, so that it may be killed at any time.

pub mod agent;
mod alone;
pub mod bundle;
pub mod config;
pub mod container;
pub mod destination;
pub mod frontman;
pub mod images;
pub mod network;
pub mod reconcile;
pub mod record;
pub mod server;
pub mod services;
pub mod source;
pub mod tunnel;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::Agent;
use crate::config::AgentConfig;

/// Serves the agent until it is told to end. Services go on without it.
pub fn serve(config: AgentConfig) -> anyhow::Result<()> {
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
    runtime.block_on(serve_async(config))
}

async fn serve_async(config: AgentConfig) -> anyhow::Result<()> {
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
    let agent = Arc::new(Agent::load(config, data_port)?);
    services::end_cut_off(&agent).await;
    let listener = listen(&socket)?;
    let this = Arc::clone(&agent);
    tokio::task::spawn_blocking(move || this.acquaint_criu());
    tracing::info!(system = %agent.config.system, data_port, "agent serves");
    let mut end = signal(SignalKind::terminate())?;
    let api = axum::serve(listener, server::router(Arc::clone(&agent)));
    tokio::select! {
        served = api.into_future() => served?,
        served = destination::listen(Arc::clone(&agent), data) => served?,
        () = reconcile::run(Arc::clone(&agent)) => {}
        () = reconcile::keep_rules(Arc::clone(&agent)) => {}
        _ = end.recv() => {}
    }
    let _ = std::fs::remove_file(&socket);
    Ok(())
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
