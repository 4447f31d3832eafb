//! The nftables rules as text, and what the kernel holds of them: pure, so that each change can be
//! tested without a kernel.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::Value;
use ums_core::id::ServiceName;
use ums_core::specification::{PublishedPort, Transport};

use ums_node::facts::Port;

use super::{BRIDGE, address};
use crate::settings::Network;

/// The table that holds everything, in the families `ip` and, with the endpoints alone, `ip6`.
pub(super) const TABLE: &str = "ums";

/// Removes the table, also if it isn't there.
pub(super) const REMOVE: &str = "add table ip ums\ndelete table ip ums\n";

/// The same for IPv6.
pub(super) const REMOVE_V6: &str = "add table ip6 ums\ndelete table ip6 ums\n";

/// The endpoints over IPv6, as [`base`] has them over IPv4.
pub(super) fn base_v6(network: Network) -> String {
    let cidr = address::v6_network(network);
    let endpoint =
        "ip6 daddr != ::1 fib daddr type local dnat ip6 to meta l4proto . th dport map @endpoints";
    format!(
        "\
add table ip6 {TABLE}
add map ip6 {TABLE} endpoints {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
add chain ip6 {TABLE} prerouting {{ type nat hook prerouting priority -100; policy accept; }}
add chain ip6 {TABLE} output {{ type nat hook output priority -100; policy accept; }}
add chain ip6 {TABLE} postrouting {{ type nat hook postrouting priority 100; policy accept; }}
flush table ip6 {TABLE}
add rule ip6 {TABLE} prerouting {endpoint}
add rule ip6 {TABLE} output {endpoint}
add rule ip6 {TABLE} postrouting ip6 saddr {cidr} ip6 daddr {cidr} ct status dnat masquerade
add rule ip6 {TABLE} postrouting ip6 saddr {cidr} oifname != {{ \"{BRIDGE}\", \"lo\" }} masquerade
"
    )
}

/// The rules that don't belong to one service. Repeating them changes nothing; the map and the set
/// keep their elements.
pub(super) fn base(network: Network) -> String {
    let cidr = format!("{}/{}", address::base(network), network.prefix_len);
    // Only traffic to the system's own addresses is an endpoint's; loopback is left alone because
    // what comes from 127.0.0.1 can't be routed to a service.
    let endpoint = "ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to meta l4proto . th dport map @endpoints";
    // A service that uses an endpoint of its own system must get the answer from there, not from
    // a neighbour it has never spoken to.
    format!(
        "\
add table ip {TABLE}
add map ip {TABLE} endpoints {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add set ip {TABLE} moved {{ type ipv4_addr; }}
add chain ip {TABLE} prerouting {{ type nat hook prerouting priority -100; policy accept; }}
add chain ip {TABLE} output {{ type nat hook output priority -100; policy accept; }}
add chain ip {TABLE} postrouting {{ type nat hook postrouting priority 100; policy accept; }}
add chain ip {TABLE} forward {{ type filter hook forward priority 0; policy accept; }}
add chain ip {TABLE} local {{ type filter hook output priority 0; policy accept; }}
flush table ip {TABLE}
add rule ip {TABLE} prerouting {endpoint}
add rule ip {TABLE} output {endpoint}
add rule ip {TABLE} postrouting ip saddr {cidr} ip daddr {cidr} ct status dnat masquerade
add rule ip {TABLE} postrouting ip saddr {cidr} oifname != {{ \"{BRIDGE}\", \"lo\" }} masquerade
add rule ip {TABLE} forward ip daddr @moved meta l4proto tcp reject with tcp reset
add rule ip {TABLE} local ip daddr @moved meta l4proto tcp reject with tcp reset
"
    )
}

/// As an element of the map.
fn element(port: Port) -> String {
    format!("{} . {}", port.transport.name(), port.number)
}

/// Where a port of the system leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The service it belongs to.
    pub service: ServiceName,
    /// Where new connections go.
    pub to: SocketAddrV4,
    /// Whether a Frontman has it.
    pub taken: bool,
    /// Where the service itself was when its Frontman took the port, if it was here.
    pub home: Option<SocketAddrV4>,
}

impl Endpoint {
    /// The element's comment: all that the map itself has no room for.
    fn comment(&self) -> String {
        match (self.taken, self.home) {
            (false, _) => self.service.to_string(),
            (true, None) => format!("{} frontman", self.service),
            (true, Some(home)) => format!("{} frontman {home}", self.service),
        }
    }

    fn from_comment(comment: &str, to: SocketAddrV4) -> Option<Self> {
        let mut words = comment.split(' ');
        let service = words.next()?.parse().ok()?;
        let taken = match words.next() {
            None => false,
            Some("frontman") => true,
            Some(_) => return None,
        };
        let home = words.next().map(str::parse).transpose().ok()?;
        Some(Self {
            service,
            to,
            taken,
            home,
        })
    }
}

/// A port that belongs to another service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "port {port} of this system belongs to service `{owner}`: choose another port for `{service}`"
)]
pub struct Conflict {
    port: u16,
    owner: ServiceName,
    service: ServiceName,
}

/// What the kernel holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Endpoints by port of the system.
    pub endpoints: BTreeMap<Port, Endpoint>,
    /// Addresses of services that have moved away, whose old connections are reset.
    pub moved: BTreeMap<Ipv4Addr, ServiceName>,
}

impl Table {
    /// Whether no service has anything in it.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.moved.is_empty()
    }

    /// Whether a service has anything in it.
    pub fn has(&self, service: &ServiceName) -> bool {
        let moved = self.moved.values().any(|owner| owner == service);
        moved || self.ports_of(service).next().is_some()
    }

    /// What the kernel holds after the change.
    pub(super) fn after(&self, change: &Change) -> Self {
        let mut table = self.clone();
        for (port, _) in &change.remove {
            table.endpoints.remove(port);
        }
        for address in &change.stay {
            table.moved.remove(address);
        }
        table.endpoints.extend(change.add.clone());
        table.moved.extend(change.away.clone());
        table
    }

    /// The change that makes all of it where there is nothing.
    pub(super) fn all(&self) -> Change {
        Change {
            add: self.endpoints.clone(),
            away: self.moved.clone(),
            ..Change::default()
        }
    }

    pub(super) fn publish(
        &self,
        service: &ServiceName,
        address: Ipv4Addr,
        ports: &[PublishedPort],
    ) -> Result<Change, Conflict> {
        let endpoint = |port: &PublishedPort| {
            let to = SocketAddrV4::new(address, port.service_port);
            let service = service.clone();
            (
                Port::of(port),
                Endpoint {
                    service,
                    to,
                    taken: false,
                    home: None,
                },
            )
        };
        let wanted: BTreeMap<Port, Endpoint> = ports.iter().map(endpoint).collect();
        let mut change = self.unpublish(service);
        change
            .stay
            .extend(self.moved.contains_key(&address).then_some(address));
        change.stay.sort();
        change.stay.dedup();
        self.check(service, wanted.keys())?;
        change.add = wanted;
        Ok(change)
    }

    pub(super) fn unpublish(&self, service: &ServiceName) -> Change {
        let moved = self.moved.iter().filter(|(_, owner)| *owner == service);
        Change {
            remove: self
                .ports_of(service)
                .map(|(port, endpoint)| (port, endpoint.clone()))
                .collect(),
            stay: moved.map(|(address, _)| *address).collect(),
            ..Change::default()
        }
    }

    pub(super) fn take(
        &self,
        service: &ServiceName,
        listeners: &BTreeMap<u16, SocketAddrV4>,
    ) -> Result<Change, Conflict> {
        let ports: Vec<Port> = listeners.keys().copied().map(Port::tcp).collect();
        self.check(service, ports.iter())?;
        let mut change = Change::default();
        for (port, &to) in ports.into_iter().zip(listeners.values()) {
            let before = self.endpoints.get(&port);
            let replaced = before.map(|before| (port, before.clone()));
            change.remove.extend(replaced);
            let home = before.and_then(|before| {
                if before.taken {
                    before.home
                } else {
                    Some(before.to)
                }
            });
            change.add.insert(
                port,
                Endpoint {
                    service: service.clone(),
                    to,
                    taken: true,
                    home,
                },
            );
        }
        Ok(change)
    }

    pub(super) fn give_back(&self, service: &ServiceName) -> Change {
        let mut change = Change::default();
        for (port, endpoint) in self
            .ports_of(service)
            .filter(|(_, endpoint)| endpoint.taken)
        {
            change.remove.push((port, endpoint.clone()));
            if let Some(to) = endpoint.home {
                let service = service.clone();
                change.add.insert(
                    port,
                    Endpoint {
                        service,
                        to,
                        taken: false,
                        home: None,
                    },
                );
            }
        }
        change
    }

    pub(super) fn moved_away(&self, service: &ServiceName, address: Ipv4Addr) -> Change {
        let there = self.moved.get(&address);
        Change {
            stay: there
                .filter(|owner| *owner != service)
                .map(|_| address)
                .into_iter()
                .collect(),
            away: (there != Some(service))
                .then(|| (address, service.clone()))
                .into_iter()
                .collect(),
            ..Change::default()
        }
    }

    fn ports_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (Port, &'a Endpoint)> {
        let endpoints = self
            .endpoints
            .iter()
            .map(|(port, endpoint)| (*port, endpoint));
        endpoints.filter(move |(_, endpoint)| endpoint.service == *service)
    }

    fn check<'a>(
        &self,
        service: &ServiceName,
        mut ports: impl Iterator<Item = &'a Port>,
    ) -> Result<(), Conflict> {
        let foreign = ports.find_map(|port| {
            let owner = &self.endpoints.get(port)?.service;
            (owner != service).then(|| (port.number, owner.clone()))
        });
        match foreign {
            Some((port, owner)) => Err(Conflict {
                port,
                owner,
                service: service.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// Elements to remove and to add, in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Change {
    remove: Vec<(Port, Endpoint)>,
    add: BTreeMap<Port, Endpoint>,
    /// Addresses whose connections are no longer reset.
    stay: Vec<Ipv4Addr>,
    /// Addresses whose connections are reset from now on.
    away: BTreeMap<Ipv4Addr, ServiceName>,
}

impl Change {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |verb: &str, set: &str, element: String| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{verb} element ip {TABLE} {set} {{ {element} }}");
        };
        for (port, _) in &self.remove {
            line("delete", "endpoints", element(*port));
        }
        for address in &self.stay {
            line("delete", "moved", address.to_string());
        }
        for (port, endpoint) in &self.add {
            let (comment, to) = (endpoint.comment(), endpoint.to);
            let port = element(*port);
            let element = format!("{port} comment \"{comment}\" : {} . {}", to.ip(), to.port());
            line("add", "endpoints", element);
        }
        for (address, service) in &self.away {
            line("add", "moved", format!("{address} comment \"{service}\""));
        }
        text
    }

    /// The same over IPv6. A Frontman listens on IPv4 alone, so what it has taken leads nowhere.
    pub(super) fn text_v6(&self) -> String {
        let mut text = String::new();
        let mut line = |verb: &str, element: String| {
            let _ = writeln!(text, "{verb} element ip6 {TABLE} endpoints {{ {element} }}");
        };
        for (port, _) in self.remove.iter().filter(|(_, endpoint)| !endpoint.taken) {
            line("delete", element(*port));
        }
        for (port, endpoint) in self.add.iter().filter(|(_, endpoint)| !endpoint.taken) {
            let (port, to) = (element(*port), address::v6(*endpoint.to.ip()));
            line("add", format!("{port} : {to} . {}", endpoint.to.port()));
        }
        text
    }
}

/// Reads what `nft -j list table` prints. Elements that aren't ours are left out.
pub(super) fn parse(text: &str) -> Result<Table, serde_json::Error> {
    let document: Value = serde_json::from_str(text)?;
    let mut table = Table::default();
    for item in document["nftables"].as_array().into_iter().flatten() {
        for element in item["map"]["elem"].as_array().into_iter().flatten() {
            table.endpoints.extend(endpoint(element));
        }
        for element in item["set"]["elem"].as_array().into_iter().flatten() {
            table.moved.extend(moved(&element["elem"]));
        }
    }
    Ok(table)
}

fn endpoint(element: &Value) -> Option<(Port, Endpoint)> {
    let (key, to) = (&element[0]["elem"], &element[1]["concat"]);
    let of = &key["val"]["concat"];
    let port = Port {
        transport: Transport::from_name(of[0].as_str()?)?,
        number: number(&of[1])?,
    };
    let to = SocketAddrV4::new(to[0].as_str()?.parse().ok()?, number(&to[1])?);
    Some((port, Endpoint::from_comment(key["comment"].as_str()?, to)?))
}

fn moved(element: &Value) -> Option<(Ipv4Addr, ServiceName)> {
    let address = element["val"].as_str()?.parse().ok()?;
    Some((address, element["comment"].as_str()?.parse().ok()?))
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

#[cfg(test)]
mod test;
