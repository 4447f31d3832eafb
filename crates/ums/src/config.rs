//! The configuration: one TOML file, environment variables, and flags; a flag is stronger than a
//! variable, a variable stronger than the file, and the file stronger than a default.
//!
//! A bad value is refused with its place, and nothing that is not known is passed over.

mod layer;
mod peers;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ums_core::frontman::{FrontmanMode, PortRange};
use ums_core::id::SystemName;

use crate::value::{EngineName, Network};

pub(crate) use layer::{Layer, LogFormat, Restore, Sources};
pub(crate) use peers::{PEERS_MAX, Peer, Peers, PeersError, is_peer, permission};

/// Where the file is looked for unless said otherwise. It need not exist.
pub(crate) const FILE_DEFAULT: &str = "/etc/ums/ums.toml";

/// Where an installed bundle lies.
const BUNDLE_INSTALLED: &str = "/usr/lib/ums/bundle";

/// The peer API's default port.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7443);

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file can't be read.
    #[error("the configuration file {path} can't be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A value in a file, or its syntax, is bad.
    #[error("{path}:{line}:{column}: {message}")]
    File {
        path: PathBuf,
        line: usize,
        column: usize,
        message: String,
    },
    /// A variable is bad.
    #[error("environment variable {name}: {reason}")]
    Variable { name: &'static str, reason: String },
    /// A value can't be defaulted here.
    #[error("{what}: set `{key}` in the configuration file, --{flag}, or {variable}")]
    Missing {
        what: String,
        key: &'static str,
        flag: &'static str,
        variable: &'static str,
    },
    /// Too many peers.
    #[error("{0} holds more than {PEERS_MAX} peers, the most there may be")]
    TooManyPeers(PathBuf),
}

/// Bounds of what may go on at once, and of what a Frontman holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Migrations at once from here.
    pub(crate) outgoing_max: usize,
    /// Migrations at once to here.
    pub(crate) incoming_max: usize,
    /// Connections that a Frontman holds for one service.
    pub(crate) hold_connections_max: u64,
    /// Seconds that it holds a connection.
    pub(crate) hold_seconds_max: u64,
    /// Seconds after which one that leads clients elsewhere retires.
    pub(crate) retire_seconds: u64,
    /// Seconds for which an image that no service uses is kept.
    pub(crate) keep_images_seconds: u64,
    /// Seconds that a peer may say nothing on the data path.
    pub(crate) idle_seconds: u64,
    /// Seconds that a service may stand still for what does not depend on its size.
    pub(crate) freeze_seconds: u64,
}

/// The settings in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file that was read, or would have been.
    pub(crate) file: PathBuf,
    system: Option<SystemName>,
    advertise: Option<IpAddr>,
    /// Where what must survive a restart is kept.
    pub(crate) state_dir: PathBuf,
    /// Where sockets are.
    pub(crate) run_dir: PathBuf,
    /// Address of the peer API.
    pub(crate) listen: SocketAddr,
    /// Port of the data path; 0 takes any that is free.
    pub(crate) data_port: u16,
    /// How a Frontman leads clients.
    pub(crate) frontman: FrontmanMode,
    /// UDP ports for tunnels; any that are free when absent.
    pub(crate) tunnel_ports: Option<PortRange>,
    /// The network that services live in.
    pub(crate) service_network: Network,
    /// The CA that peers are trusted by.
    pub(crate) ca: PathBuf,
    /// This system's certificate.
    pub(crate) cert: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// The checkpoint/restore bundle.
    pub(crate) bundle: PathBuf,
    /// Where `ums-agent` and `ums-frontman` are.
    pub(crate) bin_dir: PathBuf,
    /// Most that migrations may use of the link, bytes per second.
    pub(crate) bandwidth_limit: Option<u64>,
    /// How long the destination keeps what it holds for a silent source.
    pub(crate) lease: Duration,
    /// When pages are put in place here.
    pub(crate) restore: Restore,
    /// Form of the log.
    pub(crate) log_format: Option<LogFormat>,
    /// Bounds.
    pub(crate) limits: Limits,
    /// Container engines and their sockets; the usual ones when it is empty.
    pub(crate) engines: BTreeMap<EngineName, PathBuf>,
    /// Peers that the file names.
    peers: BTreeMap<SystemName, Peer>,
}

impl Config {
    /// Reads and merges all layers.
    pub(crate) fn load(sources: Sources<'_>) -> Result<Self, ConfigError> {
        let (file, merged) = layer::merge(sources)?;
        Ok(Self::with_defaults(file, merged))
    }

    fn with_defaults(file: PathBuf, layer: Layer) -> Self {
        let state_dir = layer
            .state_dir
            .unwrap_or_else(|| PathBuf::from("/var/lib/ums"));
        let pki = state_dir.join("pki");
        let bin_dir = layer.bin_dir.unwrap_or_else(own_directory);
        let limits = layer.limits;
        Self {
            file,
            system: layer.system,
            advertise: layer.advertise,
            run_dir: layer.run_dir.unwrap_or_else(|| PathBuf::from("/run/ums")),
            listen: layer.listen.unwrap_or(LISTEN_DEFAULT),
            data_port: layer.data_port.unwrap_or(0),
            frontman: layer.frontman.unwrap_or_default(),
            tunnel_ports: layer.tunnel_ports,
            service_network: layer.service_network.unwrap_or(Network {
                address: Ipv4Addr::new(10, 88, 0, 0),
                prefix_len: 16,
            }),
            ca: layer.ca.unwrap_or_else(|| pki.join("ca.pem")),
            cert: layer.cert.unwrap_or_else(|| pki.join("cert.pem")),
            key: layer.key.unwrap_or_else(|| pki.join("key.pem")),
            bundle: layer.bundle.unwrap_or_else(|| find_bundle(&bin_dir)),
            bandwidth_limit: layer.bandwidth_limit.map(|rate| rate.bytes_per_second),
            lease: layer.lease.map_or(Duration::from_secs(60), |lease| lease.0),
            restore: layer.restore.unwrap_or_default(),
            log_format: layer.log_format,
            limits: Limits {
                // Several at once share the link, so more of them make every downtime longer.
                outgoing_max: limits.outgoing.map_or(4, |number| number.0 as usize),
                incoming_max: limits.incoming.map_or(8, |number| number.0 as usize),
                // What a busy service sees in the second or so of a freeze.
                hold_connections_max: limits.hold_connections.map_or(1024, |number| number.0),
                hold_seconds_max: limits.hold_seconds.map_or(60, |number| number.0),
                retire_seconds: limits.retire_seconds.map_or(24 * 3600, |number| number.0),
                // A service that comes back within a week needs no image sent.
                keep_images_seconds: limits
                    .keep_images_seconds
                    .map_or(7 * 24 * 3600, |number| number.0),
                // Six times as long as a healthy peer is ever silent.
                idle_seconds: limits.idle_seconds.map_or(30, |number| number.0),
                freeze_seconds: limits.freeze_seconds.map_or(5, |number| number.0),
            },
            engines: layer
                .engines
                .into_iter()
                .map(|(name, socket)| (name, socket.0))
                .collect(),
            peers: layer.peers,
            bin_dir,
            state_dir,
        }
    }

    /// Whether anything is different that a running Coordinator does not take up.
    pub(crate) fn differs_beyond_what_is_taken_up(&self, other: &Self) -> bool {
        let taken_up = Self {
            peers: other.peers.clone(),
            limits: Limits {
                outgoing_max: other.limits.outgoing_max,
                incoming_max: other.limits.incoming_max,
                ..self.limits.clone()
            },
            ..self.clone()
        };
        taken_up != *other
    }

    /// The system that this Coordinator speaks for: the one set, or the first label of the host
    /// name.
    pub(crate) fn system(&self) -> Result<SystemName, ConfigError> {
        if let Some(system) = &self.system {
            return Ok(system.clone());
        }
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = host.to_string_lossy().to_lowercase();
        host.split('.')
            .next()
            .unwrap_or_default()
            .parse()
            .map_err(|_| ConfigError::Missing {
                what: format!("the host name `{host}` can't name this system"),
                key: "system",
                flag: "system",
                variable: "UMS_SYSTEM",
            })
    }

    /// The address that peers reach this system at: the one set, the one listened on, or the one
    /// that the default route leaves from.
    pub(crate) fn advertise(&self) -> Result<IpAddr, ConfigError> {
        let listened = Some(self.listen.ip()).filter(|address| !address.is_unspecified());
        self.advertise
            .or(listened)
            .or_else(default_route_address)
            .ok_or_else(|| ConfigError::Missing {
                what: "this host has no default route to tell its address from".to_owned(),
                key: "advertise",
                flag: "advertise",
                variable: "UMS_ADVERTISE",
            })
    }

    /// What this system has to wait for before it can be reached: an address that no interface has yet, or
    /// that can't be told yet. `None` once it is there.
    pub(crate) fn lacks_network(&self) -> Option<String> {
        let own = match self.advertise() {
            Ok(own) => own,
            Err(error) => return Some(error.to_string()),
        };
        let mut needed = [own, self.listen.ip()].into_iter();
        let lacking = needed.find(|address| !is_here(*address))?;
        Some(format!(
            "no interface of this host has the address {lacking}"
        ))
    }

    /// The socket of the client API.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join(ums_api::client::SOCKET_NAME)
    }

    /// The socket of the agent.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// The peers: those of the file, and those that `ums peer add` wrote.
    pub(crate) fn peers(&self) -> Peers {
        Peers::new(self.peers.clone(), self.state_dir.join("peers.d"))
    }
}

/// Whether this host has the address, or it stands for all addresses. Any other failure than that it has
/// not is for who really binds there.
fn is_here(address: IpAddr) -> bool {
    let bound = UdpSocket::bind((address, 0));
    !bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
}

fn own_directory() -> PathBuf {
    let own = std::env::current_exe().ok();
    own.as_deref()
        .and_then(Path::parent)
        .map_or_else(|| PathBuf::from("/usr/bin"), PathBuf::from)
}

/// Beside the programs, beside their directory (where a build leaves it), or installed.
fn find_bundle(bin_dir: &Path) -> PathBuf {
    let near = [bin_dir.join("ums-bundle"), bin_dir.join("../ums-bundle")];
    let found = near
        .into_iter()
        .find(|bundle| bundle.join("manifest.json").is_file());
    found.unwrap_or_else(|| PathBuf::from(BUNDLE_INSTALLED))
}

/// The kernel chooses it when a datagram socket is connected; nothing is sent by that.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // TEST-NET-1 (RFC 5737): an address that nobody has.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod test;
