use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

use super::*;

const PLACE: Place = Place::behind(1, 3);

/// Values that no socket has by itself, or that a host allows only within its own bounds.
const TELLING: &[(&str, i32)] = &[
    ("IP_TOS", 0x10),
    ("IP_TTL", 33),
    ("IP_MTU_DISCOVER", 2),
    ("IP_RECVERR", 1),
    ("IP_RECVTTL", 1),
    ("IP_RECVTOS", 1),
    ("IP_PKTINFO", 1),
    ("IP_MINTTL", 3),
    ("IP_MULTICAST_TTL", 7),
    ("IP_MULTICAST_LOOP", 0),
    ("IP_MULTICAST_ALL", 0),
    ("IP_RECVORIGDSTADDR", 1),
    ("IP_BIND_ADDRESS_NO_PORT", 1),
    ("IPV6_RECVPKTINFO", 1),
    ("IPV6_RECVHOPLIMIT", 1),
    ("IPV6_UNICAST_HOPS", 44),
    ("IPV6_MULTICAST_HOPS", 5),
    ("IPV6_MULTICAST_LOOP", 0),
    ("IPV6_TCLASS", 0x20),
    ("IPV6_DONTFRAG", 1),
    ("IPV6_RECVERR", 1),
    ("IPV6_AUTOFLOWLABEL", 0),
    ("TCP_NODELAY", 1),
    ("TCP_MAXSEG", 1000),
    ("TCP_KEEPIDLE", 77),
    ("TCP_KEEPINTVL", 11),
    ("TCP_KEEPCNT", 4),
    ("TCP_SYNCNT", 3),
    ("TCP_LINGER2", 20),
    ("TCP_DEFER_ACCEPT", 7),
    ("TCP_WINDOW_CLAMP", 30_000),
    ("TCP_USER_TIMEOUT", 30_000),
    ("TCP_FASTOPEN", 16),
    ("TCP_NOTSENT_LOWAT", 16_384),
    ("TCP_SAVE_SYN", 1),
    ("UDP_GRO", 1),
    ("UDP_SEGMENT", 1200),
    ("SO_BROADCAST", 1),
    ("SO_KEEPALIVE", 1),
    ("SO_OOBINLINE", 1),
    ("SO_PRIORITY", 3),
    ("SO_PASSCRED", 1),
    ("SO_RCVLOWAT", 9),
    ("SO_TIMESTAMPNS", 1),
    ("SO_RXQ_OVFL", 1),
    ("SO_PEEK_OFF", 4),
    ("SO_SNDBUF", 100_000),
    ("SO_RCVBUF", 65_536),
];

fn labelled(label: &str) -> &'static SocketOption {
    let mut table = option::TABLE.iter();
    table.find(|option| option.label == label).unwrap()
}

/// Gives a socket every telling value that it takes.
fn distort(socket: &OwnedFd) -> usize {
    let kind = nature(socket).unwrap();
    let options = TELLING
        .iter()
        .map(|(label, value)| (labelled(label), value));
    options
        .filter(|(option, _)| option.is_on(kind))
        .filter(|(option, value)| {
            raw::set(socket, option.level, option.name, &value.to_ne_bytes()).is_ok()
        })
        .count()
}

fn seen(socket: &OwnedFd) -> Sockets {
    let mut collector = Collector::default();
    collector.add(socket, PLACE).unwrap();
    collector.finish()
}

fn pair() -> (OwnedFd, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (served, _) = listener.accept().unwrap();
    (client.into(), served.into())
}

/// Makes a socket.
type Maker = Box<dyn Fn() -> OwnedFd>;

/// Kinds of sockets, each made afresh.
fn kinds() -> Vec<(&'static str, Maker)> {
    vec![
        (
            "udp",
            Box::new(|| UdpSocket::bind("127.0.0.1:0").unwrap().into()),
        ),
        (
            "udp6",
            Box::new(|| UdpSocket::bind("[::1]:0").unwrap().into()),
        ),
        (
            "listener",
            Box::new(|| TcpListener::bind("127.0.0.1:0").unwrap().into()),
        ),
        (
            "listener6",
            Box::new(|| TcpListener::bind("[::1]:0").unwrap().into()),
        ),
        ("connection", Box::new(|| pair().0)),
        ("unix", Box::new(|| UnixStream::pair().unwrap().0.into())),
    ]
}

#[test]
fn every_value_that_a_socket_takes_is_carried_to_a_fresh_one() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED every_value_that_a_socket_takes: needs root");
        return;
    }
    for (name, make) in kinds() {
        let source = make();
        let changed = distort(&source);
        assert!(changed >= 6, "{name}: {changed}");
        let sockets = seen(&source);
        let text = serde_json::to_vec(&sockets).unwrap();
        let sockets: Sockets = serde_json::from_slice(&text).unwrap();
        let fresh = make();
        assert_ne!(seen(&fresh), sockets, "{name}");
        let lost = sockets.set(&sockets.sockets[0], &fresh);
        assert_eq!(lost, [""; 0], "{name}");
        assert_eq!(seen(&fresh), sockets, "{name}");
    }
}

#[test]
fn a_socket_says_only_what_is_not_as_in_the_first_of_its_kind() {
    let mut collector = Collector::default();
    let sockets: Vec<OwnedFd> = (0..3).map(|_| pair().0).collect();
    let option = labelled("TCP_USER_TIMEOUT");
    raw::set(&sockets[2], option.level, option.name, &5_i32.to_ne_bytes()).unwrap();
    for socket in &sockets {
        collector.add(socket, PLACE).unwrap();
    }
    let seen = collector.finish();
    assert_eq!(seen.kinds.len(), 1);
    assert_eq!(seen.sockets[1].other, []);
    let own = (option.level, option.name, Value::Int(5));
    assert_eq!(seen.sockets[2].other, [own]);
}

#[test]
fn what_a_host_does_not_have_is_told() {
    let socket: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
    let mut sockets = seen(&socket);
    let congestion = labelled("TCP_CONGESTION");
    for entry in &mut sockets.kinds[0] {
        if (entry.0, entry.1) == (congestion.level, congestion.name) {
            entry.2 = Value::Text("there-is-none".to_owned());
        }
    }
    let lost = sockets.set(&sockets.sockets[0], &socket);
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert!(lost[0].starts_with("TCP_CONGESTION is "), "{lost:?}");
    assert!(lost[0].contains("was `there-is-none`"), "{lost:?}");
}
