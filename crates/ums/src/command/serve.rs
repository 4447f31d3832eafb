//! `ums serve`: this system's Coordinator.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use ums_coordinator::{AgentCommand, Coordinator, PeerConfig, Settings};
use ums_core::id::SystemName;
use ums_tls::Identity;

use super::Outcome;
use crate::config::{Config, ConfigError, LogFormat, Peer};
use crate::exit::{Exit, Failure};

/// What is logged unless `UMS_LOG` says otherwise.
const LOG_DEFAULT: &str = "info";

/// Period of looking whether settings have changed that a running Coordinator takes up.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type KnownPeers = BTreeMap<SystemName, Peer>;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// `reload` reads all layers of the configuration anew.
pub(crate) async fn execute(
    Args {}: Args,
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError>,
) -> Outcome {
    start_log(&config)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let known = config.peers().all().map_err(Failure::usage)?;
    tokio::select! {
        _ = terminate.recv() => return Ok(Exit::Done),
        _ = interrupt.recv() => return Ok(Exit::Done),
        () = network(&config) => {}
    }
    let settings = coordinator(&config, &known)?;
    let (system, listen) = (settings.system.clone(), settings.listen);
    let file = config.file.display();
    tracing::info!(%system, %listen, config = %file, peers = known.len(), "starting");
    let first = Settings::of(&settings);
    let coordinator = Coordinator::start(settings)
        .await
        .with_context(|| format!("the Coordinator of {system} failed"))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = keep_up(&coordinator, &config, first, reload) => {}
    }
    tracing::info!("asked to end");
    coordinator.stop().await;
    Ok(Exit::Done)
}

/// Waits for this system's address: at boot a Coordinator may be started before the network.
async fn network(config: &Config) {
    let mut said = String::new();
    while let Some(lacking) = config.lacks_network() {
        if lacking != said {
            tracing::warn!("{lacking}: waiting for it; `advertise` and `listen` name another one");
            said = lacking;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Looks for changed settings, for ever, and has the Coordinator take them up.
async fn keep_up(
    coordinator: &Coordinator,
    started: &Config,
    mut in_force: Settings,
    reload: impl Fn() -> Result<Config, ConfigError>,
) {
    let mut said = String::new();
    let mut say = |text: String| {
        if text != said && !text.is_empty() {
            tracing::warn!("{text}");
        }
        said = text;
    };
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let read = reload().and_then(|config| Ok((config.peers().all()?, config)));
        let (known, config) = match read {
            Ok(read) => read,
            Err(error) => {
                let error = anyhow::Error::from(error);
                say(format!("{error:#}: what was in force before stays so"));
                continue;
            }
        };
        let now = settings(&config, &known);
        if now != in_force {
            let (peers, limits) = (now.peers.len(), (now.outgoing_max, now.incoming_max));
            tracing::info!(peers, ?limits, "changed settings are taken up");
            coordinator.take_up(now.clone());
            in_force = now;
        }
        say(match config.differs_beyond_what_is_taken_up(started) {
            true => format!(
                "{} has changed in more than peers and the numbers of migrations: the rest is taken \
                 up when the Coordinator, and the agent for its part, are started again",
                config.file.display()
            ),
            false => String::new(),
        });
    }
}

/// Those that may change.
fn settings(config: &Config, known: &KnownPeers) -> Settings {
    Settings {
        peers: known.iter().map(peer).collect(),
        outgoing_max: config.limits.outgoing_max,
        incoming_max: config.limits.incoming_max,
    }
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
fn coordinator(config: &Config, known: &KnownPeers) -> Result<ums_coordinator::Config, Failure> {
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
        peers: known.iter().map(peer).collect(),
        agent_socket: config.agent_socket(),
        peer_versions: ums_api::peer::VERSIONS.to_vec(),
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

fn peer((name, peer): (&SystemName, &Peer)) -> (SystemName, PeerConfig) {
    let allow = peer.allow.iter().copied().collect();
    (
        name.clone(),
        PeerConfig {
            address: peer.address,
            allow,
        },
    )
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
    flag("--frontman", config.frontman.to_string().into());
    if let Some(ports) = config.tunnel_ports {
        flag("--tunnel-ports", ports.to_string().into());
    }
    flag(
        "--keep-images-seconds",
        limits.keep_images_seconds.to_string().into(),
    );
    flag("--idle-seconds", limits.idle_seconds.to_string().into());
    flag("--freeze-seconds", limits.freeze_seconds.to_string().into());
    flag("--restore", config.restore.as_str().into());
    for (name, socket) in &config.engines {
        let mut setting = OsString::from(format!("{}=", name.as_str()));
        setting.push(socket);
        flag("--engine", setting);
    }
    if let Some(limit) = config.bandwidth_limit {
        flag("--bandwidth-bytes", limit.to_string().into());
    }
    Ok(arguments)
}
