//! The links of services: a veth pair for each, whose one end is in the service's namespace and whose
//! other end is on the bridge while the service has its place there.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde_json::Value;
use ums_core::id::ServiceName;
use ums_node::packets::{MTU, PacketError, has_v6, set, within};

use super::rtnetlink::{Link, Links};
use super::{Address, BRIDGE, Driver, NetworkError, address, blocking, mac, translation};

impl Driver {
    /// Connects a service's network namespace to the bridge.
    pub async fn attach(
        &self,
        service: &ServiceName,
        netns: &Path,
        address: impl Into<Address>,
    ) -> Result<(), NetworkError> {
        let address = address.into();
        self.wire(service, netns, address).await?;
        self.join(service, netns, address).await
    }

    /// Makes all of a service's network but its place on the bridge, which another of its name may
    /// still have. Its hardware address follows from its address on the bridge.
    pub async fn wire(
        &self,
        service: &ServiceName,
        netns: &Path,
        address: Address,
    ) -> Result<(), NetworkError> {
        self.check(address.on_bridge)?;
        // Its own may be of another network: an engine's.
        let _changing = self.changing.lock().await;
        let mac = mac(address.on_bridge);
        let end = match self.end_of(service, netns, &mac).await? {
            Some(end) => end,
            None => {
                let free = self.free_end(service).await?;
                let inside = netns.display();
                // One request, so that neither end is ever seen without the other.
                let add = format!(
                    "link add name {free} mtu {MTU} type veth peer name eth0 address {mac} mtu {MTU} netns {inside}"
                );
                self.ip(&add, None).await?;
                free
            }
        };
        let label = address::label(service, address.on_bridge);
        let ready = format!("link set dev {end} alias {label} addrgenmode none up\n");
        self.batch(&["-batch", "-"], &ready, None).await?;
        // From here on the bridge stays: while it was made the last service may have gone.
        if !self.has_link(BRIDGE).await? {
            self.bridge().await?;
        }
        self.inside.prepare(netns).await?;
        if address.on_bridge != address.inside {
            let settings = || set("net/ipv4/tcp_mtu_probing", "1");
            within(netns, settings).await??;
            self.nft(&translation::rules(address), Some(netns)).await?;
        }
        self.batch(
            &["-batch", "-"],
            &self.addresses_inside(address),
            Some(netns),
        )
        .await
    }

    /// Commands that give a service's namespace its addresses and routes.
    ///
    /// An address that is not the one on the bridge is on `lo`, where no neighbour hears of it, and is
    /// what the service's own packets come from.
    fn addresses_inside(&self, address: Address) -> String {
        let prefix_len = self.network.prefix_len;
        let Address { on_bridge, inside } = address;
        // The bridge's hardware address is known: the first answer after a move waits for nobody.
        let (gateway, bridge) = (self.gateway(), address::mac(self.gateway()));
        let known = format!("lladdr {bridge} dev eth0 nud permanent");
        let mut text = "link set dev lo up\n".to_owned();
        let network = format!("{}/{prefix_len}", address::base(self.network));
        text.push_str(&match on_bridge == inside {
            true => format!(
                "addr replace {inside}/{prefix_len} dev eth0\n\
                 link set dev eth0 up\n\
                 neigh replace {gateway} {known}\n\
                 route replace default via {gateway} dev eth0\n"
            ),
            false => format!(
                "addr replace {inside}/32 dev lo\n\
                 addr replace {on_bridge}/32 dev eth0\n\
                 link set dev eth0 up\n\
                 neigh replace {gateway} {known}\n\
                 route replace {network} dev eth0 scope link src {inside}\n\
                 route replace default via {gateway} dev eth0 src {inside}\n"
            ),
        });
        if has_v6() {
            let ((own, prefix_len), (gateway, _)) = (self.v6(inside), self.v6(gateway));
            let (outer, _) = self.v6(on_bridge);
            let network = address::v6_network(self.network);
            text.push_str(&match on_bridge == inside {
                true => format!(
                    "addr replace {own}/{prefix_len} dev eth0 nodad\n\
                     neigh replace {gateway} {known}\n\
                     route replace ::/0 via {gateway} dev eth0\n"
                ),
                false => format!(
                    "addr replace {own}/128 dev lo nodad\n\
                     addr replace {outer}/128 dev eth0 nodad\n\
                     neigh replace {gateway} {known}\n\
                     route replace {network} dev eth0 src {own}\n\
                     route replace ::/0 via {gateway} dev eth0 src {own}\n"
                ),
            });
        }
        text
    }

    /// Addresses on the bridge, and whose each is. What has left and is kept for its Frontman still has
    /// its own.
    pub async fn addresses(&self) -> Result<BTreeMap<Ipv4Addr, ServiceName>, NetworkError> {
        let links = self.links().await?;
        let ours = links
            .iter()
            .filter(|link| link["ifname"].as_str().is_some_and(address::is_veth));
        let labels = ours.filter_map(|link| link["ifalias"].as_str());
        Ok(labels.filter_map(address::labelled).collect())
    }

    /// Gives a service that was [wired](Self::wire) its place on the bridge, and takes it from
    /// whoever had it.
    pub async fn join(
        &self,
        service: &ServiceName,
        netns: &Path,
        address: Address,
    ) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        let (service, netns) = (service.clone(), netns.to_owned());
        blocking(move || join_now(&service, &netns, address)).await
    }

    /// The system's end of the service's veth pair, of the one that ends in `netns`.
    async fn end_of(
        &self,
        service: &ServiceName,
        netns: &Path,
        mac: &str,
    ) -> Result<Option<String>, NetworkError> {
        let (links, inside) = tokio::join!(self.links(), self.eth0(netns));
        let (links, inside) = (links?, inside?);
        let Some(inside) = inside.filter(|inside| inside["address"] == mac) else {
            return Ok(None);
        };
        let pair = |name: &String| {
            let mut links = links.iter();
            links.any(|link| is(link, name) && are_a_pair(link, &inside))
        };
        Ok(address::veths(service).into_iter().find(pair))
    }

    /// A name for another end. What has it and is not on the bridge was left by an interruption.
    async fn free_end(&self, service: &ServiceName) -> Result<String, NetworkError> {
        let links = self.links().await?;
        let [first, second] = address::veths(service);
        let free = match has_place(&links, &first) {
            true => second,
            false => first,
        };
        self.delete_link(&free).await?;
        Ok(free)
    }

    pub(super) fn v6(&self, address: Ipv4Addr) -> (Ipv6Addr, u8) {
        (address::v6(address), address::v6_prefix_len(self.network))
    }

    async fn eth0(&self, netns: &Path) -> Result<Option<Value>, NetworkError> {
        let links = json(&self.ip("-j link show", Some(netns)).await?)?;
        let mut links = links.as_array().into_iter().flatten();
        Ok(links.find(|link| link["ifname"] == "eth0").cloned())
    }

    pub(super) async fn batch(
        &self,
        arguments: &[&str],
        commands: &str,
        netns: Option<&Path>,
    ) -> Result<(), NetworkError> {
        self.tools.run("ip", arguments, commands, netns).await?;
        Ok(())
    }

    /// Takes the service off the bridge.
    pub async fn detach(&self, service: &ServiceName) -> Result<(), NetworkError> {
        self.delete_ends(service, on_bridge).await
    }

    /// Undoes [`wire`](Self::wire) for a service that was not joined.
    pub async fn unwire(&self, service: &ServiceName) -> Result<(), NetworkError> {
        self.delete_ends(service, |link| !on_bridge(link)).await
    }

    async fn delete_ends(
        &self,
        service: &ServiceName,
        which: impl Fn(&Value) -> bool,
    ) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        let links = self.links().await?;
        for name in address::veths(service) {
            if links.iter().any(|link| is(link, &name) && which(link)) {
                self.delete_link(&name).await?;
            }
        }
        Ok(())
    }

    /// The links of the system.
    pub(super) async fn links(&self) -> Result<Vec<Value>, NetworkError> {
        let links = json(&self.ip("-j link show", None).await?)?;
        Ok(links.as_array().cloned().unwrap_or_default())
    }

    pub(super) async fn has_link(&self, name: &str) -> Result<bool, NetworkError> {
        Ok(self.links().await?.iter().any(|link| is(link, name)))
    }

    pub(super) async fn delete_link(&self, name: &str) -> Result<(), NetworkError> {
        if !self.has_link(name).await? {
            return Ok(());
        }
        match self.ip(&format!("link del dev {name}"), None).await {
            // It went with the namespace of its other end meanwhile.
            Err(_) if !self.has_link(name).await? => Ok(()),
            done => done.map(drop),
        }
    }
}

/// No program is started: clients wait for it, and nobody answers them yet.
fn join_now(service: &ServiceName, netns: &Path, address: Address) -> Result<(), NetworkError> {
    let failed = NetworkError::Links;
    let links = Links::here().map_err(failed)?;
    let inside = Links::of(netns).and_then(|links| links.link("eth0"));
    let is_wired = |eth0: &Link| eth0.address == address::mac_octets(address.on_bridge);
    let not_wired = || NetworkError::NotWired(service.clone());
    let inside = inside
        .map_err(failed)?
        .filter(is_wired)
        .ok_or_else(not_wired)?;
    let bridge = links.link(BRIDGE).map_err(failed)?.ok_or_else(not_wired)?;
    let ends = address::veths(service).map(|name| links.link(&name));
    let (mut ours, mut other) = (None, None);
    for end in ends {
        match end.map_err(failed)? {
            Some(end) if (end.index, end.peer) == (inside.peer, inside.index) => ours = Some(end),
            Some(end) if end.master == bridge.index => other = Some(end),
            _ => {}
        }
    }
    let ours = ours.ok_or_else(not_wired)?;
    links.set_master(ours.index, bridge.index).map_err(failed)?;
    links.set_hairpin(ours.index).map_err(failed)?;
    // Only then, so that no packet finds nobody; the bridge sends each to the one that it knows.
    match other.map(|other| links.set_master(other.index, 0)) {
        // It went with its namespace meanwhile.
        Some(Err(error)) if error.raw_os_error() != Some(nix::libc::ENODEV) => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Whether a link has this name.
fn is(link: &Value, name: &str) -> bool {
    link["ifname"] == name
}

fn on_bridge(link: &Value) -> bool {
    link["master"] == BRIDGE
}

fn has_place(links: &[Value], name: &str) -> bool {
    links.iter().any(|link| is(link, name) && on_bridge(link))
}

/// The names of services' ends among these links.
pub(super) fn ends(links: &[Value]) -> impl Iterator<Item = &str> {
    let names = links.iter().filter_map(|link| link["ifname"].as_str());
    names.filter(|name| address::is_veth(name))
}

fn are_a_pair(outside: &Value, inside: &Value) -> bool {
    inside["link_index"] == outside["ifindex"] && outside["link_index"] == inside["ifindex"]
}

pub(super) fn json(text: &str) -> Result<Value, NetworkError> {
    let read = serde_json::from_str(text);
    Ok(read.map_err(|source| PacketError::Unreadable { tool: "ip", source })?)
}
