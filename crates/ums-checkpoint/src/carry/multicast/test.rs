use std::net::UdpSocket;
use std::process::Command;

use nix::libc;
use nix::sched::{CloneFlags, unshare};

use super::super::socket::nature;
use super::*;

const PLACE: Place = Place::behind(1, 3);
const IP_MULTICAST_IF: i32 = 32;

/// A namespace with a loopback device and `eth0`, entered by the calling thread.
fn enter_a_namespace(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {test}: needs root");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for command in [
        "link set lo up",
        "link add eth0 type veth peer name other",
        "addr add 10.9.0.2/24 dev eth0",
        "link set eth0 up",
        "link set other up",
        "route add default via 10.9.0.1",
    ] {
        let done = Command::new("ip").args(command.split(' ')).status();
        assert!(done.unwrap().success(), "{command}");
    }
    true
}

fn bound(address: &str) -> OwnedFd {
    UdpSocket::bind(address).unwrap().into()
}

fn seen(socket: &OwnedFd) -> Option<Multicast> {
    let thread = nix::unistd::gettid().as_raw();
    let groups = Groups::of(thread).unwrap();
    capture(socket, PLACE, nature(socket).unwrap(), &groups).unwrap()
}

/// What is seen of a socket is what another one is made.
fn assert_carried(socket: &OwnedFd, fresh: &OwnedFd) {
    let was = seen(socket).unwrap();
    let text = serde_json::to_vec(&was).unwrap();
    let was: Multicast = serde_json::from_slice(&text).unwrap();
    assert_eq!(seen(fresh), None);
    assert_eq!(was.set(fresh), [""; 0]);
    assert_eq!(seen(fresh), Some(was));
}

#[test]
fn memberships_are_exact() {
    if !enter_a_namespace("memberships_are_exact") {
        return;
    }
    let (lo, eth0) = ("lo".to_owned(), "eth0".to_owned());
    let membership = |group: &str, device: &String, include, sources: &[&str]| Membership {
        group: group.parse().unwrap(),
        device: device.clone(),
        include,
        sources: sources
            .iter()
            .map(|source| source.parse().unwrap())
            .collect(),
    };
    let many: Vec<String> = (1..=9).map(|n| format!("192.0.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let bystander = UdpSocket::bind("0.0.0.0:0").unwrap();
    let group = "239.1.2.9".parse().unwrap();
    bystander
        .join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)
        .unwrap();
    let v4 = [
        membership("239.1.2.3", &lo, false, &[]),
        membership("239.1.2.3", &eth0, true, &["192.0.2.7"]),
        membership("232.1.2.4", &eth0, true, &many),
        membership("239.1.2.5", &eth0, false, &["192.0.2.8", "192.0.2.9"]),
        membership("224.0.0.1", &eth0, false, &[]),
    ];
    let v6 = [
        membership("ff12::123", &lo, false, &[]),
        membership("ff32::8000:1", &eth0, true, &["2001:db8::1", "2001:db8::2"]),
        membership("ff02::1", &eth0, false, &[]),
    ];
    for (address, memberships) in [
        ("0.0.0.0:0", &v4[..]),
        ("[::]:0", &v6[..]),
        ("[::]:0", &v4[..]),
    ] {
        let (socket, fresh) = (bound(address), bound(address));
        for membership in memberships {
            membership.join(&socket).unwrap();
        }
        let found = seen(&socket).unwrap().memberships;
        assert_eq!(found.len(), memberships.len(), "{found:?}");
        for membership in memberships {
            assert!(found.contains(membership), "{membership:?} of {found:?}");
        }
        assert_carried(&socket, &fresh);
    }
    let tcp: OwnedFd = std::net::TcpListener::bind("[::]:0").unwrap().into();
    assert_eq!(seen(&tcp), None);
}

#[test]
fn the_way_to_groups_is_seen_however_it_was_chosen() {
    if !enter_a_namespace("the_way_to_groups_is_seen") {
        return;
    }
    let choose = |socket: &OwnedFd, address: &str, device: &str| {
        let outlet = Outlet::chosen(address.parse().unwrap(), device);
        outlet.set(socket).unwrap();
        outlet
    };
    let socket = bound("0.0.0.0:0");
    assert_eq!(seen(&socket), None);
    for (address, device) in [("0.0.0.0", "lo"), ("0.0.0.0", "eth0"), ("10.9.0.2", "eth0")] {
        let outlet = choose(&socket, address, device);
        assert_eq!(seen(&socket).unwrap().outlet, Some(outlet));
        assert_carried(&socket, &bound("0.0.0.0:0"));
    }
    // By its address alone, as most programs do.
    raw::set(&socket, libc::IPPROTO_IP, IP_MULTICAST_IF, &[127, 0, 0, 1]).unwrap();
    let expected = Outlet::chosen(Ipv4Addr::LOCALHOST, "lo");
    assert_eq!(seen(&socket).unwrap().outlet, Some(expected));
    // Nothing has been sent, and nothing is bound by the question.
    let sent = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let udp: Vec<&str> = sent
        .lines()
        .filter(|line| line.starts_with("Udp:"))
        .collect();
    assert_eq!(udp[1].split(' ').nth(4), Some("0"), "{udp:?}");
}
