//! Names and addresses: what follows from what, and what is free.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ums_core::id::ServiceName;
use ums_core::specification::{PublishedPort, Specification};

use crate::config::Network;

/// What our ends of the veth pairs are called; an interface has at most 15 characters.
const VETHS: [&str; 2] = ["umsv", "umsw"];

/// Digits of the hash in a name: two services of one system share all of them once in 10^12.
const VETH_DIGITS: usize = 11;

/// State of a listening socket in `/proc/net/tcp`.
const LISTENING: u8 = 10;

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
pub(super) fn base(network: Network) -> Ipv4Addr {
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
    let [a, b, c, d] = address.octets();
    format!("02:75:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
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

/// Addresses that services have.
pub fn addresses_in_use<'a>(
    services: impl IntoIterator<Item = &'a Specification>,
) -> BTreeSet<Ipv4Addr> {
    services
        .into_iter()
        .map(|service| service.address)
        .collect()
}

/// The lowest address that a service can have and none has.
pub fn free_address(network: Network, in_use: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let first = u32::from(gateway(network)) + 1;
    let last = u32::from(base(network)) | !mask(network);
    // Looks at no more addresses than are in use, and one.
    (first..last)
        .map(Ipv4Addr::from)
        .find(|address| !in_use.contains(address))
}

/// Ports of the system that services or other programs have; `listening` as from
/// [`listening_ports`]. Those that a Frontman has are in [`Table`](super::Table).
pub fn ports_in_use<'a>(
    services: impl IntoIterator<Item = &'a Specification>,
    listening: &BTreeSet<u16>,
) -> BTreeSet<u16> {
    let published = services.into_iter().flat_map(|service| &service.ports);
    let ports = published.map(|port: &PublishedPort| port.system_port);
    ports.chain(listening.iter().copied()).collect()
}

/// TCP ports that programs of this network namespace listen on.
pub fn listening_ports() -> BTreeSet<u16> {
    let files = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let texts = files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| listening(&text)).collect()
}

fn listening(text: &str) -> Vec<u16> {
    let sockets = text.lines().skip(1).filter_map(socket);
    sockets
        .filter(|(_, _, state)| *state == LISTENING)
        .map(|(_, port, _)| port)
        .collect()
}

/// Whether any TCP socket of this network namespace is bound to the address.
pub(super) fn has_sockets(address: Ipv4Addr) -> bool {
    // The kernel prints the address as the machine holds it in memory.
    let wanted = format!("{:08X}", u32::from_ne_bytes(address.octets()));
    let text = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    text.lines()
        .skip(1)
        .filter_map(socket)
        .any(|(local, _, _)| local == wanted)
}

/// Local address in hexadecimal, local port and state of one line of `/proc/net/tcp`.
fn socket(line: &str) -> Option<(&str, u16, u8)> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    Some((
        address,
        u16::from_str_radix(port, 16).ok()?,
        u8::from_str_radix(state, 16).ok()?,
    ))
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
    fn free_addresses_are_given_in_order_until_there_are_none() {
        let mut in_use = BTreeSet::new();
        while let Some(address) = free_address(network(), &in_use) {
            assert!(in_use.insert(address));
        }
        assert_eq!(in_use.len(), 5);
        in_use.remove(&Ipv4Addr::new(10, 88, 0, 12));
        assert_eq!(
            free_address(network(), &in_use),
            Some(Ipv4Addr::new(10, 88, 0, 12))
        );
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

    #[test]
    fn only_listeners_count_as_listening() {
        let text = "  sl  local_address rem_address   st\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000\n\
            nonsense\n";
        assert_eq!(listening(text), [8080]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listening_ports().contains(&listener.local_addr().unwrap().port()));
        assert!(has_sockets(Ipv4Addr::LOCALHOST));
        assert!(!has_sockets(Ipv4Addr::new(192, 0, 2, 1)));
    }
}
