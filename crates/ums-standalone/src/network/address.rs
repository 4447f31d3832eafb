//! Names and addresses: what follows from what, and what is free.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ums_core::id::{ServiceName, SystemName};
use ums_core::specification::Specification;
use ums_node::facts::Port;

use crate::settings::Network;

/// What our ends of the veth pairs are called; an interface has at most 15 characters.
const VETHS: [&str; 2] = ["umsv", "umsw"];

/// Digits of the hash in a name: two services of one system share all of them once in 10^12.
const VETH_DIGITS: usize = 11;

/// Where the IPv6 addresses of services begin: `um` and `s` behind the prefix of local addresses.
const V6_NETWORK: Ipv6Addr = Ipv6Addr::new(0xfd75, 0x6d73, 0, 0, 0, 0, 0, 0);

fn mask(network: Network) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(network.prefix_len))
        .unwrap_or(0)
}

/// The first address of the network.
pub fn gateway(network: Network) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(network.address) & mask(network)) + 1)
}

/// The network's own address, whatever address in it was configured.
pub fn base(network: Network) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.address) & mask(network))
}

/// Whether an address lies in the network.
pub fn contains(network: Network, address: Ipv4Addr) -> bool {
    (u32::from(address) ^ u32::from(network.address)) & mask(network) == 0
}

/// Whether a service can have the address.
pub(super) fn usable(network: Network, address: Ipv4Addr) -> bool {
    let host = u32::from(address) & !mask(network);
    contains(network, address) && host > 1 && host < !mask(network)
}

/// The IPv6 address that goes with a service's address, in a network of unique local addresses
/// (RFC 4193) that is the same on every system: a service needs no second one to be chosen for it.
pub(super) fn v6(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(V6_NETWORK.to_bits() | u128::from(address.to_bits()))
}

/// Length of the prefix of the services' IPv6 network.
pub(super) fn v6_prefix_len(network: Network) -> u8 {
    96 + network.prefix_len
}

/// The services' IPv6 network, `address/length`.
pub(super) fn v6_network(network: Network) -> String {
    format!("{}/{}", v6(base(network)), v6_prefix_len(network))
}

/// The hardware address that belongs to an address: locally administered, and the same everywhere.
pub fn mac(address: Ipv4Addr) -> String {
    let octets = mac_octets(address);
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

/// The same as the kernel has it.
pub(super) fn mac_octets(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0x75, a, b, c, d]
}

/// Names of the system's ends of a service's veth pairs: one that is on its way here has the name
/// that is free, while one that has left is still on the bridge for its Frontman.
pub(super) fn veths(service: &ServiceName) -> [String; 2] {
    let hash = blake3::hash(service.as_str().as_bytes()).to_hex();
    VETHS.map(|kind| format!("{kind}{}", &hash[..VETH_DIGITS]))
}

/// Whether an interface is a service's end, by its name.
pub(super) fn is_veth(name: &str) -> bool {
    let hash = VETHS.iter().find_map(|kind| name.strip_prefix(kind));
    hash.is_some_and(|hash| {
        hash.len() == VETH_DIGITS && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// An address that a service can have and none has; `None` when there is none left.
///
/// The first one to be looked at follows from the names of system and service (their BLAKE3 hash), the
/// others from there on in order: so two systems, whose services have to have addresses of their own to
/// move to each other, seldom choose the same one, and a service that is started again has the address
/// that it had.
pub fn free_address(
    network: Network,
    system: &SystemName,
    service: &ServiceName,
    in_use: &BTreeSet<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let first = u64::from(u32::from(gateway(network))) + 1;
    let last = u64::from(u32::from(base(network)) | !mask(network));
    let count = last.checked_sub(first).filter(|count| *count > 0)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(system.as_str().as_bytes());
    // No name has this byte, so that no two pairs of names read the same.
    hasher.update(b"/");
    hasher.update(service.as_str().as_bytes());
    let mut begin = [0; 8];
    hasher.finalize_xof().fill(&mut begin);
    let begin = u64::from_le_bytes(begin) % count;
    // Looks at no more addresses than are in use, and one.
    (0..count)
        .map(|step| first + (begin + step) % count)
        .filter_map(|address| u32::try_from(address).ok().map(Ipv4Addr::from))
        .find(|address| !in_use.contains(address))
}

/// What our end of a service's veth pair is labelled with (`ip link … alias`).
pub(super) fn label(service: &ServiceName, address: Ipv4Addr) -> String {
    format!("ums:{service}:{address}")
}

/// Whose end it is and which address belongs to it, by its label; `None` where it has none of ours.
pub(super) fn labelled(label: &str) -> Option<(Ipv4Addr, ServiceName)> {
    let (service, address) = label.strip_prefix("ums:")?.rsplit_once(':')?;
    Some((address.parse().ok()?, service.parse().ok()?))
}

/// Ports of the system that services or other programs have; `listening` as from
/// [`ums_node::facts::listening_ports`]. Those that a Frontman has are in [`Table`](super::Table).
pub fn ports_in_use<'a>(
    services: impl IntoIterator<Item = &'a Specification>,
    listening: &BTreeSet<Port>,
) -> BTreeSet<Port> {
    let published = services.into_iter().flat_map(|service| &service.ports);
    let ports = published.map(Port::of);
    ports.chain(listening.iter().copied()).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    fn network() -> Network {
        "10.88.0.9/29".parse().unwrap()
    }

    #[test]
    fn the_first_address_is_the_gateways_and_the_last_nobodys() {
        let network = network();
        assert_eq!(gateway(network), Ipv4Addr::new(10, 88, 0, 9));
        let usable: Vec<u8> = (0..=255)
            .filter(|n| usable(network, Ipv4Addr::new(10, 88, 0, *n)))
            .collect();
        assert_eq!(usable, [10, 11, 12, 13, 14]);
    }

    #[test]
    fn every_address_has_its_own_in_ipv6() {
        let network: Network = "10.88.0.0/16".parse().unwrap();
        assert_eq!(v6_network(network), "fd75:6d73::a58:0/112");
        assert_eq!(
            v6(Ipv4Addr::new(10, 88, 0, 2)),
            "fd75:6d73::10.88.0.2".parse::<Ipv6Addr>().unwrap()
        );
    }

    #[test]
    fn free_addresses_are_given_until_there_are_none() {
        let (system, service) = ("a".parse().unwrap(), "web".parse().unwrap());
        let free = |in_use: &BTreeSet<_>| free_address(network(), &system, &service, in_use);
        let mut in_use = BTreeSet::new();
        while let Some(address) = free(&in_use) {
            assert!(usable(network(), address) && in_use.insert(address));
        }
        assert_eq!(in_use.len(), 5);
        in_use.remove(&Ipv4Addr::new(10, 88, 0, 12));
        assert_eq!(free(&in_use), Some(Ipv4Addr::new(10, 88, 0, 12)));
        for tiny in ["10.88.0.0/30", "10.88.0.0/31", "10.88.0.0/32"] {
            let Ok(tiny) = tiny.parse() else { continue };
            let first = free_address(tiny, &system, &service, &BTreeSet::new());
            assert!(first.is_none_or(|address| usable(tiny, address)));
        }
    }

    #[test]
    fn systems_and_services_choose_different_addresses_and_always_the_same() {
        let network: Network = "10.88.0.0/16".parse().unwrap();
        let none = BTreeSet::new();
        let chosen = |system: &str, service: &str| {
            let (system, service) = (system.parse().unwrap(), service.parse().unwrap());
            free_address(network, &system, &service, &none).unwrap()
        };
        let names = [("a", "web"), ("b", "web"), ("a", "db"), ("b", "db")];
        let all: BTreeSet<_> = names
            .map(|(system, service)| chosen(system, service))
            .into();
        assert_eq!(all.len(), names.len());
        assert_eq!(chosen("a", "web"), chosen("a", "web"));
    }

    #[test]
    fn a_label_tells_whose_address_it_is() {
        let (service, address): (ServiceName, _) =
            ("web".parse().unwrap(), Ipv4Addr::new(10, 88, 0, 5));
        let text = label(&service, address);
        assert_eq!(labelled(&text), Some((address, service)));
        for other in ["ums:web", "", "ums:web:x", "eth:web:10.88.0.5"] {
            assert_eq!(labelled(other), None, "{other}");
        }
    }

    #[test]
    fn names_fit_and_differ() {
        let long: ServiceName = "x".repeat(63).parse().unwrap();
        let short: ServiceName = "x".parse().unwrap();
        let all = [veths(&long), veths(&short)].concat();
        assert!(all.iter().all(|name| name.len() <= 15 && is_veth(name)));
        assert_eq!(BTreeSet::from_iter(&all).len(), 4);
        assert!(!is_veth("umsv") && !is_veth("umsvolume12345"));
        assert_eq!(mac(Ipv4Addr::new(10, 88, 0, 255)), "02:75:0a:58:00:ff");
    }
}
