//! Ports of the system: which programs have.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ums_core::specification::{PublishedPort, Transport};

/// State of a listening socket in `/proc/net/tcp`.
const LISTENING: u8 = 10;

/// State of a socket in `/proc/net/udp` that has no peer (TCP_CLOSE, `include/net/tcp_states.h`).
const UNCONNECTED: u8 = 7;

/// A port of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its transport protocol.
    pub transport: Transport,
    /// Its number.
    pub number: u16,
}

impl Port {
    /// A TCP port.
    pub fn tcp(number: u16) -> Self {
        let transport = Transport::Tcp;
        Self { transport, number }
    }

    /// The system's port that leads to a published one.
    pub fn of(published: &PublishedPort) -> Self {
        Self {
            transport: published.transport,
            number: published.system_port,
        }
    }
}

/// Ports that programs of this network namespace have: TCP ports that they listen on, and UDP ports
/// that take datagrams from everybody.
pub fn listening_ports() -> BTreeSet<Port> {
    let tables = [
        ("tcp", Transport::Tcp),
        ("tcp6", Transport::Tcp),
        ("udp", Transport::Udp),
        ("udp6", Transport::Udp),
    ];
    let ports = tables.into_iter().flat_map(|(table, transport)| {
        // Without IPv6 there are no such files.
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
        listening(&text.unwrap_or_default(), transport)
    });
    ports.collect()
}

/// Ports in a table of `/proc/net`. A UDP socket that is connected hears its peer alone, and has the
/// state of an established connection.
fn listening(text: &str, transport: Transport) -> Vec<Port> {
    let wanted = match transport {
        Transport::Tcp => LISTENING,
        Transport::Udp => UNCONNECTED,
    };
    let sockets = text.lines().skip(1).filter_map(socket);
    sockets
        .filter(|(_, _, state)| *state == wanted)
        .map(|(_, number, _)| Port { transport, number })
        .collect()
}

/// Whether any TCP socket of this network namespace is bound to the address.
pub fn has_sockets(address: Ipv4Addr) -> bool {
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

    #[test]
    fn only_listeners_count_as_listening() {
        let text = "  sl  local_address rem_address   st\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000\n\
            nonsense\n";
        assert_eq!(listening(text, Transport::Tcp), [Port::tcp(8080)]);
        let udp = |number| Port {
            transport: Transport::Udp,
            number,
        };
        let text = "  sl  local_address rem_address   st\n\
            0: 00000000:0035 00000000:0000 07 00000000:00000000\n\
            1: 0100007F:A001 0100007F:0035 01 00000000:00000000\n";
        assert_eq!(listening(text, Transport::Udp), [udp(53)]);
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(listening_ports().contains(&udp(socket.local_addr().unwrap().port())));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listening_ports().contains(&Port::tcp(listener.local_addr().unwrap().port())));
        assert!(has_sockets(Ipv4Addr::LOCALHOST));
        assert!(!has_sockets(Ipv4Addr::new(192, 0, 2, 1)));
    }
}
