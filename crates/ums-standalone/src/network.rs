//! The standalone driver's networking: a bridge, a network namespace for each service with an
//! address that moves along, and endpoints that lead to the service or to its Frontman.
//!
//! ```text
//!  client ── system:8080 ──┬─ dnat ──▶ 10.88.0.5:80   eth0 in the service's own namespace
//!                          │             │ veth
//!                          │           ums0, the bridge, 10.88.0.1
//!                          └─ dnat ──▶ 10.88.0.1:41234   the Frontman, once it has taken the endpoint
//! ```
//!
//! Endpoints are the elements of one nftables map, so publishing, taking and giving back each
//! replace elements in one transaction: a packet sees the old state or the new one. Address
//! translation is asked only for the first packet of a connection, so established connections stay
//! where they are. Each element carries the name of its service, and the kernel is where
//! this state is kept: an agent that was killed finds all of it again. A copy is kept for when somebody
//! flushes the kernel's rules (see `kept`).
//!
//! *Idempotence*: every operation may be repeated, and completes one that was interrupted.

mod address;
mod housed;
mod kept;
mod links;
mod route;
mod rtnetlink;
mod rules;
mod translation;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;
use ums_core::id::ServiceName;
use ums_core::specification::PublishedPort;
use ums_node::facts::has_sockets;
use ums_node::host::Service;
use ums_node::packets::{Inside, PacketError, Tools, has_v6, set};

use crate::settings::Network;

pub use address::{base, contains, free_address, gateway, mac, ports_in_use};
pub use kept::Removals;
pub use rules::{Conflict, Endpoint, Table};

/// The bridge on which all services of the system are.
pub const BRIDGE: &str = "ums0";

/// Where a service is in the network of its system.
///
/// The two are the same where its own address was free. Where another service had it, the service has
/// another address on the bridge, and its own inside, where it and its connections know no other: `eth0`
/// translates between them (see `translation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// On the system's bridge: where endpoints lead.
    pub on_bridge: Ipv4Addr,
    /// In the service's namespace: its own, which moves with it.
    pub inside: Ipv4Addr,
}

impl From<&Service> for Address {
    fn from(service: &Service) -> Self {
        Self {
            on_bridge: service.address,
            inside: service.specification.address,
        }
    }
}

impl From<Ipv4Addr> for Address {
    /// Its own address on the bridge.
    fn from(own: Ipv4Addr) -> Self {
        Self {
            on_bridge: own,
            inside: own,
        }
    }
}

/// Networking that can't be done.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// By the tools, or by the kernel.
    #[error(transparent)]
    Packets(#[from] PacketError),
    /// The kernel does not tell of links, or does not change them.
    #[error("the links of services can't be looked at or changed: is this root?")]
    Links(#[source] io::Error),
    /// A service that has no connection to join with.
    #[error("`{0}` has lost its place in the network: migrate it again, or remove it (`ums rm`)")]
    NotWired(ServiceName),
    /// An endpoint belongs to somebody else.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// An address that services can't have.
    #[error(
        "{address} is not usable: a service's address lies in {network}/{prefix_len} and is not the first or the last of it; choose another"
    )]
    Address {
        /// The address.
        address: Ipv4Addr,
        /// The service network.
        network: Ipv4Addr,
        /// Its prefix length.
        prefix_len: u8,
    },
}

/// Does the networking of one system, in the network namespace of the calling process.
#[derive(Debug)]
pub struct Driver {
    tools: Tools,
    inside: Inside,
    network: Network,
    /// What is read from the kernel must still hold when the change is made.
    changing: Mutex<()>,
    /// Where the rules are kept, for when somebody removes them.
    kept: Option<PathBuf>,
}

impl Driver {
    /// `bin_dir` is where `ip` and `nft` are looked for before PATH.
    pub fn new(bin_dir: Option<PathBuf>, network: Network) -> Self {
        Self {
            tools: Tools::new(bin_dir.clone()),
            inside: Inside::new(bin_dir),
            network,
            changing: Mutex::new(()),
            kept: None,
        }
    }

    /// The same, keeping its rules in a file too, so that they can be [put back](Self::put_back). The file
    /// is to be where nothing survives a boot, as the rules don't.
    pub fn keeping(self, file: PathBuf) -> Self {
        let kept = Some(file);
        Self { kept, ..self }
    }

    /// Address of the bridge: where services find the world, and where Frontmen listen.
    pub fn gateway(&self) -> Ipv4Addr {
        gateway(self.network)
    }

    /// Makes the bridge and the rules that don't belong to one service.
    ///
    /// Forwarding is switched on for the whole system and stays on, because by the time the last
    /// service goes others may rely on it.
    pub async fn ensure_bridge(&self) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        self.bridge().await?;
        let table = self.held().await?;
        self.apply(rules::Change::default()).await?;
        self.keep(&table);
        Ok(())
    }

    async fn bridge(&self) -> Result<(), NetworkError> {
        if !self.has_link(BRIDGE).await? {
            let mac = mac(self.gateway());
            // A fixed hardware address: else it changes with the ports, and services lose it.
            let kind = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0";
            self.ip(
                &format!("link add name {BRIDGE} address {mac} {kind}"),
                None,
            )
            .await?;
        }
        let (address, prefix_len) = (self.gateway(), self.network.prefix_len);
        let mut commands = format!(
            "link set dev {BRIDGE} addrgenmode none\n\
             addr replace {address}/{prefix_len} dev {BRIDGE}\n\
             link set dev {BRIDGE} up\n"
        );
        if has_v6() {
            let (address, prefix_len) = self.v6(address);
            commands.push_str(&format!(
                "addr replace {address}/{prefix_len} dev {BRIDGE} nodad\n"
            ));
            forward_v6()?;
        }
        self.batch(&["-batch", "-"], &commands, None).await?;
        let redirects = format!("net/ipv4/conf/{BRIDGE}/send_redirects");
        for (setting, value) in [("net/ipv4/ip_forward", "1"), (redirects.as_str(), "0")] {
            set(setting, value)?;
        }
        Ok(())
    }

    /// Whether a service can have the address.
    pub fn check(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        let (network, prefix_len) = (self.network.address, self.network.prefix_len);
        match address::usable(self.network, address) {
            true => Ok(()),
            false => Err(NetworkError::Address {
                address,
                network,
                prefix_len,
            }),
        }
    }

    /// Leads the service's endpoints to it. This is also how a service that has come back takes
    /// them from its Frontman, and its address is an address like any other again.
    pub async fn publish(
        &self,
        service: &ServiceName,
        address: Ipv4Addr,
        ports: &[PublishedPort],
    ) -> Result<(), NetworkError> {
        self.change(|table| table.publish(service, address, ports))
            .await
    }

    /// Removes all endpoints of the service, whoever has them, and what
    /// [`drop_connections`](Self::drop_connections) left.
    pub async fn unpublish(&self, service: &ServiceName) -> Result<(), NetworkError> {
        self.change(|table| Ok(table.unpublish(service))).await
    }

    /// Leads new connections to the Frontman: for each port of the system, where it listens. Ports
    /// that the service has not published here are published this way.
    pub async fn take(
        &self,
        service: &ServiceName,
        listeners: &BTreeMap<u16, SocketAddrV4>,
    ) -> Result<(), NetworkError> {
        self.change(|table| table.take(service, listeners)).await
    }

    /// Leads new connections to the service again, as they were before [`take`](Self::take).
    pub async fn give_back(&self, service: &ServiceName) -> Result<(), NetworkError> {
        self.change(|table| Ok(table.give_back(service))).await
    }

    /// Tells everybody with an open connection to the service that it is over, once the service is
    /// committed to another place: without it those who wait for an answer would wait for ever,
    /// since nobody is left to say so.
    ///
    /// While `netns` is there, each of its connections is reset, those it has opened itself too.
    /// From then on whatever is sent to the address is answered by a reset, until the service is
    /// published again or unpublished. Never before the commit: the service could go on no more.
    pub async fn drop_connections(
        &self,
        service: &ServiceName,
        address: Ipv4Addr,
        netns: Option<&Path>,
    ) -> Result<(), NetworkError> {
        self.change(|table| Ok(table.moved_away(service, address)))
            .await?;
        if let Some(netns) = netns {
            self.inside.reset(netns).await?;
        }
        Ok(())
    }

    /// All endpoints, as the kernel has them.
    pub async fn table(&self) -> Result<Table, NetworkError> {
        Ok(self.kernel_table().await?.unwrap_or_default())
    }

    /// Removes the table and the bridge if nobody needs them any more: no service, no endpoint, no
    /// Frontman that still has connections on the bridge's address. Says whether they are gone.
    pub async fn release(&self) -> Result<bool, NetworkError> {
        let _changing = self.changing.lock().await;
        let attached = links::ends(&self.links().await?).next().is_some();
        let gateway = self.gateway();
        if attached || !self.held().await?.is_empty() || has_sockets(gateway) {
            return Ok(false);
        }
        self.remove_all().await?;
        Ok(true)
    }

    /// Removes everything that this module has made on this system, services' ends included.
    pub async fn cleanup_all(&self) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        for name in links::ends(&self.links().await?) {
            self.delete_link(name).await?;
        }
        self.remove_all().await
    }

    async fn remove_all(&self) -> Result<(), NetworkError> {
        self.keep_nothing();
        self.nft(rules::REMOVE, None).await?;
        if has_v6() {
            self.nft(rules::REMOVE_V6, None).await?;
        }
        self.delete_link(BRIDGE).await
    }

    async fn change(
        &self,
        change: impl FnOnce(&Table) -> Result<rules::Change, Conflict>,
    ) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        let table = self.held().await?;
        let change = change(&table)?;
        let then = table.after(&change);
        self.apply(change).await?;
        self.keep(&then);
        Ok(())
    }

    async fn apply(&self, change: rules::Change) -> Result<(), NetworkError> {
        let mut text = rules::base(self.network) + &change.text();
        if has_v6() {
            text.push_str(&rules::base_v6(self.network));
            text.push_str(&change.text_v6());
        }
        self.nft(&text, None).await
    }

    async fn nft(&self, text: &str, netns: Option<&Path>) -> Result<(), NetworkError> {
        self.tools.run("nft", &["-f", "-"], text, netns).await?;
        Ok(())
    }

    async fn ip(&self, words: &str, netns: Option<&Path>) -> Result<String, NetworkError> {
        let words: Vec<&str> = words.split(' ').collect();
        Ok(self.tools.run("ip", &words, "", netns).await?)
    }
}

/// Lets the system forward IPv6. A host that forwards stops listening to router advertisements
/// unless it is told to go on (kernel `networking/ip-sysctl.rst`, `accept_ra`), and could lose its
/// own way out by that.
fn forward_v6() -> Result<(), NetworkError> {
    let setting = "net/ipv6/conf/all/forwarding";
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    if read(&Path::new("/proc/sys").join(setting)).trim() == "1" {
        return Ok(());
    }
    let interfaces = std::fs::read_dir("/proc/sys/net/ipv6/conf");
    for interface in interfaces.into_iter().flatten().flatten() {
        if read(&interface.path().join("accept_ra")).trim() == "1" {
            let name = interface.file_name();
            set(
                &format!("net/ipv6/conf/{}/accept_ra", name.to_string_lossy()),
                "2",
            )?;
        }
    }
    Ok(set(setting, "1")?)
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(NetworkError::Links(io::Error::other(error))))
}

fn is_missing(error: &PacketError) -> bool {
    matches!(error, PacketError::Failed { said, .. } if said.contains("No such file or directory"))
}
