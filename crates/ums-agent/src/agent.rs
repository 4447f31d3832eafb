//! What an agent is put together from: the node's part of migrations, and a host of containers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ums_engine::host::Hosts;
use ums_node::facts::Machine;
use ums_node::host::{Host, Route};
use ums_node::launch::{self, Launcher};
use ums_node::migration::Migrations;
use ums_node::node::{self, Node};
use ums_node::packets::{Inside, Packets};
use ums_standalone::bundle::ALL_SERVICES;
use ums_standalone::images::{Bounds, ImageStore};
use ums_standalone::network::Driver;
use ums_standalone::settings;
use ums_standalone::state::Standalone;
use ums_tls::Identity;

use crate::config::{AgentConfig, RestoreMode};

/// The agent.
#[derive(Clone)]
pub struct Agent {
    /// What it does of migrations.
    pub node: Arc<Node>,
    /// Where its containers are.
    pub host: Arc<Standalone>,
    /// Those and the containers of engines; an outer container has none.
    pub engines: Option<Hosts>,
    /// Directory for sockets, gone after a reboot.
    pub run_dir: PathBuf,
}

/// What differs between agents.
pub(crate) trait Making {
    /// What a root filesystem may be.
    fn bounds(&self) -> Bounds {
        Bounds::default()
    }

    /// Arguments of this program that make it the pump of a service's log, whose path follows.
    fn log_pump(&self) -> Vec<String> {
        vec!["log".to_owned()]
    }

    /// The host, as a migration sees it, and the engines of the node, where it has any.
    fn hosts(
        &self,
        config: &AgentConfig,
        standalone: &Arc<Standalone>,
    ) -> (Arc<dyn Host>, Option<Hosts>) {
        let hosts = Hosts::load(engine_settings(config), Arc::clone(standalone));
        (Arc::new(hosts.clone()), Some(hosts))
    }
}

/// An agent of a node.
pub(crate) struct OfNode;

impl Making for OfNode {}

impl Agent {
    /// Puts an agent together, and takes up what an earlier one left. `data_port` is where the data
    /// path listens.
    pub(crate) fn load(
        config: &AgentConfig,
        data_port: u16,
        making: &dyn Making,
    ) -> anyhow::Result<Self> {
        let identity = Identity::load(&config.ca, &config.cert, &config.key)?;
        let images = ImageStore::open(&config.state_dir, making.bounds())?;
        let network = Driver::new(Some(config.bundle_bin()), config.service_network)
            .keeping(config.run_dir.join("endpoints.nft"));
        let network = Arc::new(network);
        let eager_restore = eager_restore(config.restore);
        if let Some(reason) = &eager_restore {
            tracing::info!(reason, "pages are put in place before a service runs");
        }
        let eager = eager_restore.clone();
        let machine = Machine::new(&config.bundle, &config.state_dir, ALL_SERVICES, eager);
        let packets: Arc<dyn Packets> = Arc::new(Inside::new(Some(config.bundle_bin())));
        let route: Arc<dyn Route> = Arc::clone(&network) as Arc<dyn Route>;
        let frontmen = Arc::new(Launcher {
            settings: frontman_settings(config),
            identity: identity.clone(),
            packets: Arc::clone(&packets),
            route: Arc::clone(&route),
        });
        let standing = Arc::clone(&frontmen);
        let host = Standalone::load(host_settings(config, making), images, network, standing)?;
        let host = Arc::new(host);
        let (of_migrations, engines) = making.hosts(config, &host);
        let node = Node {
            settings: node_settings(config, data_port, eager_restore),
            identity,
            host: of_migrations,
            route,
            packets,
            frontmen,
            migrations: Migrations::default(),
            machine,
            measuring: Default::default(),
        };
        node.resume();
        Ok(Self {
            node: Arc::new(node),
            host,
            engines,
            run_dir: config.run_dir.clone(),
        })
    }
}

fn node_settings(
    config: &AgentConfig,
    data_port: u16,
    eager_restore: Option<String>,
) -> node::Settings {
    node::Settings {
        system: config.system.clone(),
        address: config.data_address,
        data_port,
        bandwidth_bytes: config.bandwidth_bytes,
        idle: Duration::from_secs(config.idle_seconds),
        freeze: Duration::from_secs(config.freeze_seconds),
        eager_restore,
    }
}

fn host_settings(config: &AgentConfig, making: &dyn Making) -> settings::Settings {
    settings::Settings {
        log_pump: making.log_pump(),
        run_dir: config.run_dir.clone(),
        state_dir: config.state_dir.clone(),
        system: config.system.clone(),
        network: config.service_network,
        bundle_bin: config.bundle_bin(),
        keep_images: Duration::from_secs(config.keep_images_seconds),
    }
}

fn engine_settings(config: &AgentConfig) -> ums_engine::host::Settings {
    ums_engine::host::Settings {
        run_dir: config.run_dir.clone(),
        state_dir: config.state_dir.clone(),
        bundle_bin: config.bundle_bin(),
        engines: ums_engine::settings::or_usual(&config.engines),
    }
}

fn frontman_settings(config: &AgentConfig) -> launch::Settings {
    let beside = || std::env::current_exe().ok()?.parent().map(Path::to_owned);
    let bin_dir = config.bin_dir.clone().or_else(beside).unwrap_or_default();
    launch::Settings {
        run_dir: config.run_dir.clone(),
        log: config.state_dir.join("frontman.log"),
        program: bin_dir.join("ums-frontman"),
        mode: config.frontman,
        address: config.data_address,
        tunnel_ports: config.tunnel_ports,
        hold_connections: config.hold_connections,
        hold_seconds: config.hold_seconds,
        retire_seconds: config.retire_seconds,
    }
}

/// Why pages are not left to userfaultfd here; tried, since a kernel that has it may still not let
/// us (a container's seccomp profile, lacking privileges).
fn eager_restore(mode: RestoreMode) -> Option<String> {
    match mode {
        RestoreMode::Eager => Some("`restore` is set to `eager`".to_owned()),
        RestoreMode::Auto => ums_checkpoint::uffd::probe()
            .err()
            .map(|error| error.to_string()),
    }
}
