//! What an agent is told when it is started.

use std::net::IpAddr;
use std::path::PathBuf;

use ums_core::frontman::{FrontmanMode, PortRange};
use ums_core::id::SystemName;
use ums_standalone::settings::Network;

/// When a service's pages are put in place at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum RestoreMode {
    /// While it runs, by userfaultfd; where that can't be had, before it runs.
    #[default]
    Auto,
    /// All of them before it runs.
    Eager,
}

/// Flags of `ums-agent serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentConfig {
    /// Directory for sockets, gone after a reboot.
    #[arg(long, default_value = "/run/ums")]
    pub run_dir: PathBuf,
    /// Directory for services and images.
    #[arg(long, default_value = "/var/lib/ums")]
    pub state_dir: PathBuf,
    /// Name of this system, as in its certificate.
    #[arg(long)]
    pub system: SystemName,
    /// Address that the data path listens on, and that published ports answer on.
    #[arg(long)]
    pub data_address: IpAddr,
    /// Port of the data path; 0 lets the kernel choose.
    #[arg(long, default_value_t = 0)]
    pub data_port: u16,
    /// Network of the services; the same on every system that services move between.
    #[arg(long, default_value = "10.88.0.0/16")]
    pub service_network: Network,
    /// The C/R bundle.
    #[arg(long, env = "UMS_BUNDLE")]
    pub bundle: PathBuf,
    /// Certificate authority that peers' certificates come from.
    #[arg(long)]
    pub ca: PathBuf,
    /// Certificate of this system.
    #[arg(long)]
    pub cert: PathBuf,
    /// Key of this system.
    #[arg(long)]
    pub key: PathBuf,
    /// Directory of `ums-frontman`; beside this program when absent.
    #[arg(long)]
    pub bin_dir: Option<PathBuf>,
    /// Bound of the data path's rate, bytes a second; unbounded when absent.
    #[arg(long)]
    pub bandwidth_bytes: Option<u64>,
    /// How a Frontman stands in for a service.
    #[arg(long, default_value_t)]
    pub frontman: FrontmanMode,
    /// UDP ports for the ends of tunnels, FIRST-LAST; any free ones when absent.
    #[arg(long)]
    pub tunnel_ports: Option<PortRange>,
    /// Connections that a Frontman holds.
    #[arg(long, default_value_t = 1024)]
    pub hold_connections: u32,
    /// Seconds that a Frontman holds a connection.
    #[arg(long, default_value_t = 60)]
    pub hold_seconds: u64,
    /// Seconds after which a Frontman that leads to another system retires.
    #[arg(long, default_value_t = 86_400)]
    pub retire_seconds: u64,
    /// Seconds after which an image that no service uses is removed.
    #[arg(long, default_value_t = 604_800)]
    pub keep_images_seconds: u64,
    /// Seconds that a peer may say nothing on the data path.
    #[arg(long, default_value_t = 30)]
    pub idle_seconds: u64,
    /// Seconds that a service may stand still in a checkpoint for what does not depend on its size:
    /// until all of it is frozen, and whenever nothing goes on. Then the checkpoint is given up.
    #[arg(long, default_value_t = 5)]
    pub freeze_seconds: u64,
    /// A container engine of this host whose containers can be moved, NAME=SOCKET; Docker's and Podman's
    /// usual sockets when absent.
    #[arg(long = "engine")]
    pub engines: Vec<ums_engine::settings::Setting>,
    /// When pages are put in place here.
    #[arg(long, value_enum, default_value_t = RestoreMode::Auto)]
    pub restore: RestoreMode,
}

impl AgentConfig {
    /// The agent's API.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// The C/R bundle's programs.
    pub fn bundle_bin(&self) -> PathBuf {
        self.bundle.join("bin")
    }
}
