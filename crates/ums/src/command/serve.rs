//! `ums serve`: this system's Coordinator.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use ums_coordinator::{AgentCommand, PeerConfig};
use ums_sync::tls::Identity;

use super::Outcome;
use crate::config::{Config, LogFormat, Peers};
use crate::exit::{Exit, Failure};

/// What is logged unless `UMS_LOG` says otherwise.
const LOG_DEFAULT: &str = "info";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn execute(Args {}: Args, config: Config) -> Outcome {
    start_log(&config)?;
    let settings = coordinator(&config)?;
    let (system, listen) = (settings.system.clone(), settings.listen);
    tracing::info!(%system, %listen, config = %config.file.display(), "starting");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end; migrations go on when this Coordinator is started again");
    };
    ums_coordinator::serve(settings, shutdown)
        .await
        .with_context(|| format!("the Coordinator of {system} failed"))?;
    Ok(Exit::Done)
}

fn start_log(config: &Config) -> Result<(), Failure> {
    let filter = match std::env::var("UMS_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .with_context(|| format!("environment variable UMS_LOG: `{text}` is no filter"))
            .map_err(Failure::usage)?,
        Err(_) => EnvFilter::new(LOG_DEFAULT),
    };
    let terminal = std::io::stderr().is_terminal();
    let default = if terminal {
        LogFormat::Human
    } else {
        LogFormat::Json
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log_format.unwrap_or(default) {
        LogFormat::Human => log.with_ansi(terminal).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// What the Coordinator is told.
fn coordinator(config: &Config) -> Result<ums_coordinator::Config, Failure> {
    let system = config.system().map_err(Failure::usage)?;
    let identity = Identity::load(&config.ca, &config.cert, &config.key).map_err(Failure::usage)?;
    let named = identity.name().map_err(Failure::usage)?;
    if named != system {
        return Err(Failure::usage(anyhow!(
            "the certificate {} is of system `{named}`, and this system is `{system}`: issue one \
             with `ums ca issue {system}`, or set `system`",
            config.cert.display()
        )));
    }
    Ok(ums_coordinator::Config {
        state_dir: config.state_dir.clone(),
        run_dir: config.run_dir.clone(),
        listen: config.listen,
        peers: peers(&config.peers())?,
        agent_socket: config.agent_socket(),
        agent_command: Some(AgentCommand {
            program: config.bin_dir.join("ums-agent"),
            args: agent_arguments(config)?,
            log: Some(config.state_dir.join("agent.log")),
        }),
        limits: ums_coordinator::Limits {
            outgoing_max: config.limits.outgoing_max,
            incoming_max: config.limits.incoming_max,
            lease: config.lease,
            ..ums_coordinator::Limits::default()
        },
        identity,
        system,
    })
}

fn peers(
    peers: &Peers,
) -> Result<std::collections::BTreeMap<ums_core::id::SystemName, PeerConfig>, Failure> {
    let known = peers.all().map_err(Failure::usage)?;
    let convert = |(name, peer): (_, crate::config::Peer)| {
        (
            name,
            PeerConfig {
                address: peer.address,
                allow: peer.allow.into_iter().collect(),
            },
        )
    };
    Ok(known.into_iter().map(convert).collect())
}

/// The command line of the agent. It outlives the Coordinator, so it gets absolute paths.
fn agent_arguments(config: &Config) -> Result<Vec<OsString>, Failure> {
    let system = config.system().map_err(Failure::usage)?;
    let address = config.advertise().map_err(Failure::usage)?;
    let path = |path: &PathBuf| -> Result<OsString, Failure> {
        let absolute = std::path::absolute(path)
            .with_context(|| format!("{} can't be made absolute", path.display()))?;
        Ok(absolute.into())
    };
    let limits = &config.limits;
    let mut arguments: Vec<OsString> = vec!["serve".into()];
    let mut flag = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    flag("--run-dir", path(&config.run_dir)?);
    flag("--state-dir", path(&config.state_dir)?);
    flag("--system", system.as_str().into());
    flag("--data-address", address.to_string().into());
    flag("--data-port", config.data_port.to_string().into());
    flag(
        "--service-network",
        config.service_network.to_string().into(),
    );
    flag("--bundle", path(&config.bundle)?);
    flag("--ca", path(&config.ca)?);
    flag("--cert", path(&config.cert)?);
    flag("--key", path(&config.key)?);
    flag("--bin-dir", path(&config.bin_dir)?);
    flag(
        "--hold-connections",
        limits.hold_connections_max.to_string().into(),
    );
    flag("--hold-seconds", limits.hold_seconds_max.to_string().into());
    flag("--retire-seconds", limits.retire_seconds.to_string().into());
    if let Some(limit) = config.bandwidth_limit {
        flag("--bandwidth-bytes", limit.to_string().into());
    }
    Ok(arguments)
}
