//! The options of sockets that can be read and set, as one table (socket(7), ip(7), ipv6(7), tcp(7),
//! udp(7), packet(7), netlink(7), unix(7); numbers of Linux's `uapi` headers).
//!
//! CRIU carries some of them. All are here, because what it sets may come out otherwise; left out is
//! what a socket's own life changes (`TCP_QUICKACK`, `SO_INCOMING_CPU`), what CRIU itself needs
//! otherwise while a connection is in repair (`SO_REUSEADDR`, and `TCP_NODELAY` and `TCP_CORK` of a
//! connected socket), and what can be set before `bind(2)` only (`IPV6_V6ONLY`).

use serde::{Deserialize, Serialize};

const SOCKET: i32 = 1;
const IP: i32 = 0;
const IP6: i32 = 41;
const TCP: i32 = 6;
const UDP: i32 = 17;
const UDPLITE: i32 = 136;
const RAW: i32 = 255;
const PACKET: i32 = 263;
const NETLINK: i32 = 270;

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const AF_PACKET: i32 = 17;

const SOCK_STREAM: i32 = 1;
const SOCK_RAW: i32 = 3;

const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// What a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nature {
    /// `SO_DOMAIN`.
    pub domain: i32,
    /// `SO_TYPE`.
    pub kind: i32,
    /// `SO_PROTOCOL`.
    pub protocol: i32,
    /// The state of a TCP socket, else 0.
    pub state: u8,
}

impl Nature {
    /// Whether it speaks TCP.
    pub(super) fn is_tcp(self) -> bool {
        self.is_inet() && self.kind == SOCK_STREAM && matches!(self.protocol, 0 | TCP)
    }

    /// Whether it is of IPv4 or IPv6.
    pub(super) fn is_inet(self) -> bool {
        matches!(self.domain, AF_INET | AF_INET6)
    }

    /// Whether options of IPv4 apply: an IPv6 socket speaks it too, a raw one doesn't.
    pub(super) fn has_ip(self) -> bool {
        self.domain == AF_INET || self.domain == AF_INET6 && self.kind != SOCK_RAW
    }

    /// Whether it is of IPv6.
    pub(super) fn is_inet6(self) -> bool {
        self.domain == AF_INET6
    }

    /// Whether it waits for connections.
    pub(super) fn is_listening(self) -> bool {
        self.is_tcp() && self.state == TCP_LISTEN
    }

    /// Whether it is a TCP socket without a connection.
    pub(super) fn is_closed(self) -> bool {
        self.is_tcp() && self.state == TCP_CLOSE
    }

    /// Whether it is a raw socket of IPv4 or IPv6.
    pub(super) fn is_raw(self) -> bool {
        self.is_inet() && self.kind == SOCK_RAW
    }

    /// Whether it sends datagrams over IPv4 alone: UDP, or a raw socket.
    pub(super) fn is_inet4_datagram(self) -> bool {
        let is_udp = matches!(self.protocol, 0 | UDP | UDPLITE) && !self.is_tcp();
        self.domain == AF_INET && (self.is_raw() || is_udp)
    }

    /// Whether it is a UDP socket.
    pub(super) fn is_udp(self) -> bool {
        self.is_datagram_of(UDP)
    }

    fn is_datagram_of(self, protocol: i32) -> bool {
        self.is_inet() && !self.is_raw() && !self.is_tcp() && self.protocol == protocol
    }
}

/// Which sockets have an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Any,
    /// All that speak IPv4.
    Ip,
    /// Those of them that may send to many. (A TCP socket that was accepted answers otherwise than one that
    /// connected, and takes no value.)
    IpDatagram,
    Ip4Raw,
    Ip6,
    /// The same of IPv6.
    Ip6Datagram,
    Ip6Raw,
    IcmpRaw,
    Tcp,
    /// Neither connected nor connecting.
    TcpIdle,
    TcpListening,
    Udp,
    UdpLite,
    Unix,
    UnixOrNetlink,
    Netlink,
    Packet,
}

impl On {
    fn has(self, socket: Nature) -> bool {
        let idle = matches!(socket.state, TCP_CLOSE | TCP_LISTEN);
        match self {
            Self::Any => true,
            Self::Ip => socket.has_ip(),
            Self::IpDatagram => socket.has_ip() && !socket.is_tcp(),
            Self::Ip4Raw => socket.domain == AF_INET && socket.is_raw(),
            Self::Ip6 => socket.is_inet6(),
            Self::Ip6Datagram => socket.is_inet6() && !socket.is_tcp(),
            Self::Ip6Raw => socket.is_inet6() && socket.is_raw(),
            Self::IcmpRaw => socket.domain == AF_INET && socket.is_raw() && socket.protocol == 1,
            Self::Tcp => socket.is_tcp(),
            Self::TcpIdle => socket.is_tcp() && idle,
            Self::TcpListening => socket.is_tcp() && socket.state == TCP_LISTEN,
            Self::Udp => socket.is_datagram_of(UDP),
            Self::UdpLite => socket.is_datagram_of(UDPLITE),
            Self::Unix => socket.domain == AF_UNIX,
            Self::UnixOrNetlink => matches!(socket.domain, AF_UNIX | AF_NETLINK),
            Self::Netlink => socket.domain == AF_NETLINK,
            Self::Packet => socket.domain == AF_PACKET,
        }
    }
}

/// How the kernel writes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// An `int`.
    Int,
    /// So many bytes, or fewer where the kernel has fewer; none is a value too.
    Bytes(usize),
    /// A name, with or without a zero at its end.
    Text,
    /// The number of a network device, which another host numbers otherwise.
    Device,
    /// The same in network byte order.
    DeviceBigEndian,
}

/// How a value that was read is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// As it was read.
    Plain,
    /// Half of it, by another option: the kernel doubles the size of a buffer, and lets none but an
    /// administrator go beyond the system's bound.
    Buffer(i32),
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketOption {
    /// `level` of setsockopt(2).
    pub level: i32,
    /// `optname`.
    pub name: i32,
    /// For messages.
    pub label: &'static str,
    pub form: Form,
    pub how: How,
    on: On,
}

impl SocketOption {
    /// Whether a socket has it.
    pub(super) fn is_on(&self, socket: Nature) -> bool {
        self.on.has(socket)
    }

    /// Whether a value is as good as what was: the size of a buffer can only be set to an even number.
    pub(super) fn is_same(&self, is: &Value, was: &Value) -> bool {
        match (self.how, is, was) {
            (How::Buffer(_), Value::Int(is), Value::Int(was)) => *is == was + was % 2,
            _ => is == was,
        }
    }
}

/// A value as it is written into the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Value {
    Int(i32),
    /// A name: of a device, of a congestion control.
    Text(String),
    Bytes(Vec<u8>),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Text(text) => write!(f, "`{text}`"),
            Self::Bytes(bytes) => write!(f, "{bytes:02x?}"),
        }
    }
}

const fn option(
    on: On,
    level: i32,
    name: i32,
    label: &'static str,
    form: Form,
    how: How,
) -> SocketOption {
    SocketOption {
        level,
        name,
        label,
        form,
        how,
        on,
    }
}

const fn int(on: On, level: i32, name: i32, label: &'static str) -> SocketOption {
    option(on, level, name, label, Form::Int, How::Plain)
}

const fn bytes(on: On, level: i32, name: i32, label: &'static str, len: usize) -> SocketOption {
    option(on, level, name, label, Form::Bytes(len), How::Plain)
}

/// The option of these numbers.
pub(super) fn find(level: i32, name: i32) -> Option<&'static SocketOption> {
    let same = |option: &&SocketOption| (option.level, option.name) == (level, name);
    TABLE.iter().find(same)
}

/// All of them, in the order in which they are set: an option comes after those that change it too
/// (`IP_TOS` sets the priority, `SO_RCVLOWAT` may enlarge the buffer), and what forbids changes last.
pub(super) const TABLE: &[SocketOption] = &[
    int(On::Ip, IP, 1, "IP_TOS"),
    int(On::Ip, IP, 2, "IP_TTL"),
    int(On::Ip4Raw, IP, 3, "IP_HDRINCL"),
    bytes(On::Ip, IP, 4, "IP_OPTIONS", 40),
    int(On::Ip, IP, 6, "IP_RECVOPTS"),
    int(On::Ip, IP, 7, "IP_RETOPTS"),
    int(On::Ip, IP, 8, "IP_PKTINFO"),
    int(On::Ip, IP, 10, "IP_MTU_DISCOVER"),
    int(On::Ip, IP, 11, "IP_RECVERR"),
    int(On::Ip, IP, 12, "IP_RECVTTL"),
    int(On::Ip, IP, 13, "IP_RECVTOS"),
    int(On::Ip, IP, 15, "IP_FREEBIND"),
    int(On::Ip, IP, 18, "IP_PASSSEC"),
    int(On::Ip, IP, 19, "IP_TRANSPARENT"),
    int(On::Ip, IP, 20, "IP_RECVORIGDSTADDR"),
    int(On::Ip, IP, 21, "IP_MINTTL"),
    int(On::Ip4Raw, IP, 22, "IP_NODEFRAG"),
    int(On::Ip, IP, 23, "IP_CHECKSUM"),
    int(On::Ip, IP, 24, "IP_BIND_ADDRESS_NO_PORT"),
    int(On::Ip, IP, 25, "IP_RECVFRAGSIZE"),
    int(On::Ip, IP, 26, "IP_RECVERR_RFC4884"),
    int(On::IpDatagram, IP, 33, "IP_MULTICAST_TTL"),
    int(On::Ip, IP, 34, "IP_MULTICAST_LOOP"),
    int(On::Ip, IP, 49, "IP_MULTICAST_ALL"),
    option(
        On::Ip,
        IP,
        50,
        "IP_UNICAST_IF",
        Form::DeviceBigEndian,
        How::Plain,
    ),
    int(On::Ip, IP, 51, "IP_LOCAL_PORT_RANGE"),
    int(On::Ip6, IP6, 2, "IPV6_2292PKTINFO"),
    int(On::Ip6, IP6, 3, "IPV6_2292HOPOPTS"),
    int(On::Ip6, IP6, 4, "IPV6_2292DSTOPTS"),
    int(On::Ip6, IP6, 5, "IPV6_2292RTHDR"),
    int(On::Ip6Raw, IP6, 7, "IPV6_CHECKSUM"),
    int(On::Ip6, IP6, 8, "IPV6_2292HOPLIMIT"),
    int(On::Ip6, IP6, 11, "IPV6_FLOWINFO"),
    int(On::Ip6, IP6, 16, "IPV6_UNICAST_HOPS"),
    option(
        On::Ip6Datagram,
        IP6,
        17,
        "IPV6_MULTICAST_IF",
        Form::Device,
        How::Plain,
    ),
    int(On::Ip6Datagram, IP6, 18, "IPV6_MULTICAST_HOPS"),
    int(On::Ip6, IP6, 19, "IPV6_MULTICAST_LOOP"),
    int(On::Ip6, IP6, 23, "IPV6_MTU_DISCOVER"),
    int(On::Ip6, IP6, 25, "IPV6_RECVERR"),
    int(On::Ip6, IP6, 29, "IPV6_MULTICAST_ALL"),
    int(On::Ip6Raw, IP6, 30, "IPV6_ROUTER_ALERT_ISOLATE"),
    int(On::Ip6, IP6, 31, "IPV6_RECVERR_RFC4884"),
    int(On::Ip6, IP6, 33, "IPV6_FLOWINFO_SEND"),
    int(On::Ip6Raw, IP6, 36, "IPV6_HDRINCL"),
    int(On::Ip6, IP6, 49, "IPV6_RECVPKTINFO"),
    int(On::Ip6, IP6, 51, "IPV6_RECVHOPLIMIT"),
    int(On::Ip6, IP6, 53, "IPV6_RECVHOPOPTS"),
    bytes(On::Ip6, IP6, 54, "IPV6_HOPOPTS", 2048),
    bytes(On::Ip6, IP6, 55, "IPV6_RTHDRDSTOPTS", 2048),
    int(On::Ip6, IP6, 56, "IPV6_RECVRTHDR"),
    bytes(On::Ip6, IP6, 57, "IPV6_RTHDR", 2048),
    int(On::Ip6, IP6, 58, "IPV6_RECVDSTOPTS"),
    bytes(On::Ip6, IP6, 59, "IPV6_DSTOPTS", 2048),
    int(On::Ip6, IP6, 60, "IPV6_RECVPATHMTU"),
    int(On::Ip6, IP6, 62, "IPV6_DONTFRAG"),
    int(On::Ip6, IP6, 66, "IPV6_RECVTCLASS"),
    int(On::Ip6, IP6, 67, "IPV6_TCLASS"),
    int(On::Ip6, IP6, 70, "IPV6_AUTOFLOWLABEL"),
    int(On::Ip6, IP6, 72, "IPV6_ADDR_PREFERENCES"),
    int(On::Ip6, IP6, 73, "IPV6_MINHOPCOUNT"),
    int(On::Ip6, IP6, 74, "IPV6_RECVORIGDSTADDR"),
    int(On::Ip6, IP6, 75, "IPV6_TRANSPARENT"),
    option(
        On::Ip6,
        IP6,
        76,
        "IPV6_UNICAST_IF",
        Form::DeviceBigEndian,
        How::Plain,
    ),
    int(On::Ip6, IP6, 77, "IPV6_RECVFRAGSIZE"),
    int(On::Ip6, IP6, 78, "IPV6_FREEBIND"),
    int(On::TcpIdle, TCP, 1, "TCP_NODELAY"),
    int(On::TcpIdle, TCP, 2, "TCP_MAXSEG"),
    int(On::TcpIdle, TCP, 3, "TCP_CORK"),
    int(On::Tcp, TCP, 4, "TCP_KEEPIDLE"),
    int(On::Tcp, TCP, 5, "TCP_KEEPINTVL"),
    int(On::Tcp, TCP, 6, "TCP_KEEPCNT"),
    int(On::Tcp, TCP, 7, "TCP_SYNCNT"),
    int(On::Tcp, TCP, 8, "TCP_LINGER2"),
    int(On::Tcp, TCP, 9, "TCP_DEFER_ACCEPT"),
    int(On::Tcp, TCP, 10, "TCP_WINDOW_CLAMP"),
    option(On::Tcp, TCP, 13, "TCP_CONGESTION", Form::Text, How::Plain),
    int(On::Tcp, TCP, 16, "TCP_THIN_LINEAR_TIMEOUTS"),
    int(On::Tcp, TCP, 18, "TCP_USER_TIMEOUT"),
    int(On::TcpIdle, TCP, 23, "TCP_FASTOPEN"),
    int(On::Tcp, TCP, 25, "TCP_NOTSENT_LOWAT"),
    int(On::Tcp, TCP, 27, "TCP_SAVE_SYN"),
    int(On::TcpIdle, TCP, 30, "TCP_FASTOPEN_CONNECT"),
    bytes(On::TcpListening, TCP, 33, "TCP_FASTOPEN_KEY", 32),
    int(On::TcpIdle, TCP, 34, "TCP_FASTOPEN_NO_COOKIE"),
    int(On::Tcp, TCP, 36, "TCP_INQ"),
    int(On::Tcp, TCP, 37, "TCP_TX_DELAY"),
    int(On::Tcp, TCP, 44, "TCP_RTO_MAX_MS"),
    int(On::Tcp, TCP, 45, "TCP_RTO_MIN_US"),
    int(On::Tcp, TCP, 46, "TCP_DELACK_MAX_US"),
    int(On::Udp, UDP, 1, "UDP_CORK"),
    int(On::Udp, UDP, 100, "UDP_ENCAP"),
    int(On::Udp, UDP, 101, "UDP_NO_CHECK6_TX"),
    int(On::Udp, UDP, 102, "UDP_NO_CHECK6_RX"),
    int(On::Udp, UDP, 103, "UDP_SEGMENT"),
    int(On::Udp, UDP, 104, "UDP_GRO"),
    int(On::UdpLite, UDPLITE, 10, "UDPLITE_SEND_CSCOV"),
    int(On::UdpLite, UDPLITE, 11, "UDPLITE_RECV_CSCOV"),
    bytes(On::IcmpRaw, RAW, 1, "ICMP_FILTER", 4),
    int(On::Packet, PACKET, 7, "PACKET_COPY_THRESH"),
    int(On::Packet, PACKET, 8, "PACKET_AUXDATA"),
    int(On::Packet, PACKET, 9, "PACKET_ORIGDEV"),
    int(On::Packet, PACKET, 14, "PACKET_LOSS"),
    int(On::Packet, PACKET, 15, "PACKET_VNET_HDR"),
    int(On::Packet, PACKET, 17, "PACKET_TIMESTAMP"),
    int(On::Packet, PACKET, 19, "PACKET_TX_HAS_OFF"),
    int(On::Packet, PACKET, 20, "PACKET_QDISC_BYPASS"),
    int(On::Packet, PACKET, 23, "PACKET_IGNORE_OUTGOING"),
    int(On::Packet, PACKET, 24, "PACKET_VNET_HDR_SZ"),
    int(On::Netlink, NETLINK, 3, "NETLINK_PKTINFO"),
    int(On::Netlink, NETLINK, 4, "NETLINK_BROADCAST_ERROR"),
    int(On::Netlink, NETLINK, 5, "NETLINK_NO_ENOBUFS"),
    int(On::Netlink, NETLINK, 8, "NETLINK_LISTEN_ALL_NSID"),
    int(On::Netlink, NETLINK, 10, "NETLINK_CAP_ACK"),
    int(On::Netlink, NETLINK, 11, "NETLINK_EXT_ACK"),
    int(On::Netlink, NETLINK, 12, "NETLINK_GET_STRICT_CHK"),
    int(On::Any, SOCKET, 1, "SO_DEBUG"),
    int(On::Any, SOCKET, 5, "SO_DONTROUTE"),
    int(On::Any, SOCKET, 6, "SO_BROADCAST"),
    int(On::Any, SOCKET, 9, "SO_KEEPALIVE"),
    int(On::Any, SOCKET, 10, "SO_OOBINLINE"),
    int(On::Any, SOCKET, 11, "SO_NO_CHECK"),
    int(On::Any, SOCKET, 12, "SO_PRIORITY"),
    bytes(On::Any, SOCKET, 13, "SO_LINGER", 8),
    int(On::UnixOrNetlink, SOCKET, 16, "SO_PASSCRED"),
    int(On::Any, SOCKET, 18, "SO_RCVLOWAT"),
    bytes(On::Any, SOCKET, 20, "SO_RCVTIMEO", 16),
    bytes(On::Any, SOCKET, 21, "SO_SNDTIMEO", 16),
    option(
        On::Any,
        SOCKET,
        25,
        "SO_BINDTODEVICE",
        Form::Text,
        How::Plain,
    ),
    int(On::Any, SOCKET, 29, "SO_TIMESTAMP"),
    int(On::UnixOrNetlink, SOCKET, 34, "SO_PASSSEC"),
    int(On::Any, SOCKET, 35, "SO_TIMESTAMPNS"),
    int(On::Any, SOCKET, 36, "SO_MARK"),
    bytes(On::Any, SOCKET, 37, "SO_TIMESTAMPING", 8),
    int(On::Any, SOCKET, 40, "SO_RXQ_OVFL"),
    int(On::Any, SOCKET, 41, "SO_WIFI_STATUS"),
    int(On::Any, SOCKET, 42, "SO_PEEK_OFF"),
    int(On::Any, SOCKET, 43, "SO_NOFCS"),
    int(On::Any, SOCKET, 45, "SO_SELECT_ERR_QUEUE"),
    int(On::Any, SOCKET, 46, "SO_BUSY_POLL"),
    bytes(On::Any, SOCKET, 47, "SO_MAX_PACING_RATE", 8),
    int(On::Any, SOCKET, 60, "SO_ZEROCOPY"),
    bytes(On::Any, SOCKET, 61, "SO_TXTIME", 8),
    int(On::Any, SOCKET, 63, "SO_TIMESTAMP_NEW"),
    int(On::Any, SOCKET, 64, "SO_TIMESTAMPNS_NEW"),
    bytes(On::Any, SOCKET, 65, "SO_TIMESTAMPING_NEW", 8),
    int(On::Any, SOCKET, 69, "SO_PREFER_BUSY_POLL"),
    int(On::Any, SOCKET, 70, "SO_BUSY_POLL_BUDGET"),
    int(On::Any, SOCKET, 73, "SO_RESERVE_MEM"),
    int(On::Any, SOCKET, 74, "SO_TXREHASH"),
    int(On::Any, SOCKET, 75, "SO_RCVMARK"),
    int(On::Unix, SOCKET, 76, "SO_PASSPIDFD"),
    int(On::Any, SOCKET, 82, "SO_RCVPRIORITY"),
    int(On::Unix, SOCKET, 83, "SO_PASSRIGHTS"),
    int(On::Unix, SOCKET, 84, "SO_INQ"),
    option(On::Any, SOCKET, 7, "SO_SNDBUF", Form::Int, How::Buffer(32)),
    option(On::Any, SOCKET, 8, "SO_RCVBUF", Form::Int, How::Buffer(33)),
    int(On::Any, SOCKET, 72, "SO_BUF_LOCK"),
    int(On::Any, SOCKET, 44, "SO_LOCK_FILTER"),
];

#[cfg(test)]
mod test {
    use std::collections::BTreeSet;

    use super::*;

    const fn nature(domain: i32, kind: i32, protocol: i32, state: u8) -> Nature {
        Nature {
            domain,
            kind,
            protocol,
            state,
        }
    }

    #[test]
    fn each_option_is_there_once() {
        let numbers: BTreeSet<_> = TABLE.iter().map(|o| (o.level, o.name)).collect();
        let labels: BTreeSet<_> = TABLE.iter().map(|o| o.label).collect();
        assert_eq!(numbers.len(), TABLE.len());
        assert_eq!(labels.len(), TABLE.len());
    }

    #[test]
    fn what_changes_another_comes_before_it() {
        let at = |label: &str| TABLE.iter().position(|o| o.label == label).unwrap();
        assert!(at("IP_TOS") < at("SO_PRIORITY"));
        assert!(at("SO_RCVLOWAT") < at("SO_RCVBUF"));
        assert!(at("TCP_WINDOW_CLAMP") < at("SO_RCVBUF"));
        assert!(at("SO_RCVBUF") < at("SO_BUF_LOCK") && at("SO_SNDBUF") < at("SO_BUF_LOCK"));
        assert!(at("SO_TIMESTAMPING") < at("SO_TIMESTAMPING_NEW"));
        assert_eq!(at("SO_LOCK_FILTER"), TABLE.len() - 1);
    }

    #[test]
    fn a_socket_has_the_options_of_its_kind() {
        let on = |label: &str, socket: Nature| {
            let option = TABLE.iter().find(|o| o.label == label).unwrap();
            option.is_on(socket)
        };
        let listener = nature(AF_INET, SOCK_STREAM, TCP, TCP_LISTEN);
        let connected = nature(AF_INET6, SOCK_STREAM, TCP, 1);
        let datagrams = nature(AF_INET, 2, UDP, 0);
        let raw6 = nature(AF_INET6, SOCK_RAW, 58, 0);
        let unix = nature(AF_UNIX, SOCK_STREAM, 0, 0);
        assert!(on("TCP_NODELAY", listener) && !on("TCP_NODELAY", connected));
        assert!(on("TCP_KEEPIDLE", connected) && !on("TCP_KEEPIDLE", unix));
        assert!(on("IP_TOS", connected) && on("IPV6_TCLASS", connected));
        assert!(!on("IP_TOS", raw6) && !on("IPV6_TCLASS", listener));
        assert!(on("UDP_GRO", datagrams) && !on("UDP_GRO", listener));
        assert!(on("SO_PASSCRED", unix) && !on("SO_PASSCRED", datagrams));
        assert!(on("IPV6_MULTICAST_IF", raw6) && !on("IPV6_MULTICAST_IF", connected));
        assert!(on("IPV6_MULTICAST_HOPS", raw6) && !on("IPV6_MULTICAST_HOPS", connected));
        assert!(on("SO_RCVBUF", unix) && on("SO_RCVBUF", raw6));
    }

    #[test]
    fn values_survive_the_image() {
        let values = [
            Value::Int(-1),
            Value::Text("eth0".to_owned()),
            Value::Bytes(vec![]),
        ];
        let text = serde_json::to_string(&values).unwrap();
        assert_eq!(text, "[-1,\"eth0\",[]]");
        let read: [Value; 3] = serde_json::from_str(&text).unwrap();
        assert_eq!(read, values);
    }
}
