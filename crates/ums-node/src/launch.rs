//! What every Frontman of this system is started with.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ums_core::frontman::{FrontmanMode, PortRange};
use ums_tls::Identity;

use crate::host::Route;
use crate::packets::Packets;

/// How Frontmen stand in for services.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Below it Frontmen have their sockets and state files.
    pub run_dir: PathBuf,
    /// Where they write what goes wrong.
    pub log: PathBuf,
    /// `ums-frontman`.
    pub program: PathBuf,
    /// On what they work.
    pub mode: FrontmanMode,
    /// Where the far ends of tunnels listen.
    pub address: IpAddr,
    /// Their ports; any free ones when absent.
    pub tunnel_ports: Option<PortRange>,
    /// Connections that one holds.
    pub hold_connections: u32,
    /// Seconds that it holds a connection.
    pub hold_seconds: u64,
    /// Seconds after which one that leads to another system retires.
    pub retire_seconds: u64,
}

/// Starts Frontmen, and leads packets and endpoints to them.
pub struct Launcher {
    /// How they stand in.
    pub settings: Settings,
    /// Certificates of this system, for tunnels.
    pub identity: Identity,
    /// Packets in the services' namespaces.
    pub packets: Arc<dyn Packets>,
    /// The services' endpoints.
    pub route: Arc<dyn Route>,
}
