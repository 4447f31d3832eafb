//! What an agent is told when it is started.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ums_core::frontman::{FrontmanMode, PortRange};
use ums_core::id::{ServiceName, SystemName};

/// A network as `address/prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// An address in it.
    pub address: Ipv4Addr,
    /// Length of the prefix, 8 to 30.
    pub prefix_len: u8,
}

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').ok_or("write it as ADDRESS/PREFIX")?;
        let address = address
            .parse()
            .map_err(|_| "its address is not an IPv4 address")?;
        match prefix.parse() {
            Ok(prefix_len @ 8..=30) => Ok(Self {
                address,
                prefix_len,
            }),
            _ => Err("its prefix is not a number from 8 to 30".to_owned()),
        }
    }
}

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

    /// How long a peer may say nothing on the data path.
    pub fn idle(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.idle_seconds)
    }

    /// All that belongs to one service.
    pub fn places(&self, service: &ServiceName) -> ServicePlaces {
        let state = self.state_dir.join("services").join(service.as_str());
        let run = self.run_dir.join("services").join(service.as_str());
        ServicePlaces { state, run }
    }

    /// Image store.
    pub fn images(&self) -> PathBuf {
        self.state_dir.join("images")
    }
}

/// Where the parts of one service are.
#[derive(Debug, Clone)]
pub struct ServicePlaces {
    state: PathBuf,
    run: PathBuf,
}

impl ServicePlaces {
    /// What outlives a reboot.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What does not.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The record of the service ([`crate::record`]).
    pub fn record(&self) -> PathBuf {
        self.state.join("service.json")
    }

    /// What the service changed in its root filesystem.
    pub fn upper(&self) -> PathBuf {
        self.state.join("upper")
    }

    /// Overlayfs's own directory.
    pub fn work(&self) -> PathBuf {
        self.state.join("work")
    }

    /// One directory for each volume.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    /// Standard output and standard error of the service.
    pub fn log(&self) -> PathBuf {
        self.state.join("log")
    }

    /// Mount point of the root filesystem in the keeper's mount namespace.
    pub fn merged(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    /// Mount point of `/dev/shm` in the keeper's mount namespace.
    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }

    /// The OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.run.join("bundle")
    }

    /// The keeper's socket.
    pub fn keeper(&self) -> PathBuf {
        self.run.join("keeper.sock")
    }

    /// Makes every directory. The state directory must not exist yet.
    pub fn create(&self, volumes: impl IntoIterator<Item = String>) -> std::io::Result<()> {
        if let Some(parent) = self.state.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::create_dir(&self.state)?;
        for dir in [self.upper(), self.work(), self.volumes()] {
            std::fs::create_dir(dir)?;
        }
        for volume in volumes {
            std::fs::create_dir(self.volumes().join(volume))?;
        }
        for dir in [self.merged(), self.shm(), self.bundle()] {
            std::fs::create_dir_all(dir)?;
        }
        Ok(())
    }

    /// Removes every directory; absence is success.
    pub fn remove(&self) -> std::io::Result<()> {
        for dir in [&self.run, &self.state] {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
