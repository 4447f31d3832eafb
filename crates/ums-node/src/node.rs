//! What the parts of a migration on this node share. It holds nothing that a service needs to go on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use ums_core::id::SystemName;
use ums_tls::Identity;

use crate::facts::Machine;
use crate::host::{Host, Route};
use crate::launch::Launcher;
use crate::migration::{Incoming, Migration, Migrations, Outgoing};
use crate::packets::Packets;

/// How a node takes part in migrations.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this system, as in its certificate.
    pub system: SystemName,
    /// Where published ports answer.
    pub address: IpAddr,
    /// Where the data path listens.
    pub data_port: u16,
    /// Bound of the data path's rate, bytes a second; unbounded when absent.
    pub bandwidth_bytes: Option<u64>,
    /// How long a peer may say nothing on the data path.
    pub idle: Duration,
    /// How long a service may stand still in a checkpoint for what does not depend on its size.
    pub freeze: Duration,
    /// Why all pages are put in place before a service runs; `None` where userfaultfd installs them.
    pub eager_restore: Option<String>,
}

/// A node, for both sides of a migration.
pub struct Node {
    /// How it takes part.
    pub settings: Settings,
    /// Certificates of this system.
    pub identity: Identity,
    /// Who makes the containers.
    pub host: Arc<dyn Host>,
    /// Who has which place in the network.
    pub route: Arc<dyn Route>,
    /// Packets in the services' namespaces.
    pub packets: Arc<dyn Packets>,
    /// Who stands in for services.
    pub frontmen: Arc<Launcher>,
    /// The migrations that it takes part in.
    pub migrations: Migrations,
    /// What it runs on.
    pub machine: Machine,
    /// Held while a service is measured: a migration that begins meanwhile waits for that.
    pub measuring: Mutex<()>,
}

impl Node {
    /// Takes up the migrations that an earlier agent was in the midst of: its host remembers which.
    pub fn resume(&self) {
        for service in self.host.services() {
            let name = service.name().clone();
            if let Some(arriving) = &service.arriving {
                let incoming = Incoming::new(name, arriving.source.clone());
                let incoming = Migration::Incoming(Arc::new(incoming));
                self.migrations.remember(arriving.migration, incoming);
            } else if let Some(id) = service.gate {
                let outgoing = Migration::Outgoing(Arc::new(Outgoing::new(name)));
                self.migrations.remember(id, outgoing);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod test;
