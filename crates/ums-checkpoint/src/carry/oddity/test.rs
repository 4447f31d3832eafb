use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, FromRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, send};

use super::*;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn seen(socket: impl AsFd) -> Vec<Oddity> {
    let copy = socket.as_fd().try_clone_to_owned().unwrap();
    of(&copy, socket::nature(&copy).unwrap())
}

/// Until it is seen, which is at once on the loopback device, or almost.
fn seen_at_last(socket: impl AsFd) -> Vec<Oddity> {
    loop {
        match seen(&socket) {
            found if found.is_empty() => std::thread::yield_now(),
            found => return found,
        }
    }
}

fn is_hidden(socket: &TcpStream) -> bool {
    let copy = socket.as_fd().try_clone_to_owned().unwrap();
    hides_more(&copy, socket::nature(&copy).unwrap()).unwrap()
}

fn send_urgent(socket: &TcpStream) {
    send(socket.as_raw_fd(), b"U", MsgFlags::MSG_OOB).unwrap();
}

fn wait_for(socket: &TcpStream, bytes: i32) {
    let copy = socket.as_fd().try_clone_to_owned().unwrap();
    while raw::unread(&copy).unwrap() < bytes {
        std::thread::yield_now();
    }
}

#[test]
fn an_urgent_byte_is_seen_until_it_is_read() {
    let (mut client, mut served) = pair();
    client.write_all(b"abc").unwrap();
    wait_for(&served, 3);
    assert_eq!(seen(&served), []);
    send_urgent(&client);
    assert_eq!(seen_at_last(&served), [Oddity::Urgent]);
    client.write_all(b"after").unwrap();
    assert_eq!(recv(served.as_raw_fd(), &mut [0], MsgFlags::MSG_OOB), Ok(1));
    assert_eq!(seen(&served), []);
    // What came after it does not show before the bytes before it are read.
    while !is_hidden(&served) {
        std::thread::yield_now();
    }
    served.read_exact(&mut [0; 8]).unwrap();
    assert!(!is_hidden(&served));
    assert_eq!(seen(&served), []);
}

#[test]
fn an_urgent_byte_among_others_is_seen_too() {
    let (mut client, mut served) = pair();
    let copy = served.as_fd().try_clone_to_owned().unwrap();
    raw::set(
        &copy,
        libc::SOL_SOCKET,
        libc::SO_OOBINLINE,
        &1_i32.to_ne_bytes(),
    )
    .unwrap();
    client.write_all(b"abc").unwrap();
    send_urgent(&client);
    client.write_all(b"after").unwrap();
    wait_for(&served, 9);
    assert_eq!(seen(&served), [Oddity::Urgent], "ahead");
    served.read_exact(&mut [0; 3]).unwrap();
    assert_eq!(seen(&served), [Oddity::Urgent], "next");
    served.read_exact(&mut [0; 1]).unwrap();
    assert_eq!(seen(&served), []);
    assert!(!is_hidden(&served));
}

#[test]
fn what_waits_is_seen() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(seen(&socket), []);
    socket.send_to(b"", socket.local_addr().unwrap()).unwrap();
    assert_eq!(seen_at_last(&socket), [Oddity::Unread], "an empty one");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(seen(&listener), []);
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(seen_at_last(&listener), [Oddity::Unaccepted]);
    let refused = UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    refused.connect(nobody).unwrap();
    refused.send(b"x").unwrap();
    assert!(seen_at_last(&refused).contains(&Oddity::PendingError));
}

fn netlink() -> OwnedFd {
    let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
    let protocol = SockProtocol::NetlinkRoute;
    nix::sys::socket::socket(family, kind, SockFlag::empty(), protocol).unwrap()
}

fn join(socket: &OwnedFd, group: i32) {
    const NETLINK_ADD_MEMBERSHIP: i32 = 1;
    raw::set(
        socket,
        SOL_NETLINK,
        NETLINK_ADD_MEMBERSHIP,
        &group.to_ne_bytes(),
    )
    .unwrap();
}

#[test]
fn groups_of_netlink_that_do_not_fit_are_seen() {
    let (bound, far, unbound) = (netlink(), netlink(), netlink());
    for socket in [&bound, &far] {
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1)).unwrap();
    }
    assert_eq!(seen(&bound), []);
    // RTNLGRP_BRVLAN
    join(&far, 33);
    let told = |oddities: Vec<Oddity>| match oddities.as_slice() {
        [Oddity::Uncarried(text)] => text.clone(),
        other => panic!("{other:?}"),
    };
    assert!(told(seen(&far)).contains("beyond the 32nd"));
    assert_eq!(seen(&unbound), []);
    join(&unbound, 1);
    assert!(told(seen(&unbound)).contains("never bound"));
}

/// An eBPF program that lets everything pass.
#[expect(unsafe_code, reason = "bpf(2) has no wrapper")]
fn program() -> Option<OwnedFd> {
    // BPF_MOV64_IMM(r0, -1), BPF_EXIT.
    let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let licence = c"GPL";
    let mut attributes = [0_u64; 16];
    // BPF_PROG_TYPE_SOCKET_FILTER and the number of instructions.
    attributes[0] = 1 | 2 << 32;
    attributes[1] = code.as_ptr() as u64;
    attributes[2] = licence.as_ptr() as u64;
    let (load, len) = (5, size_of_val(&attributes));
    // SAFETY: the kernel reads the attributes and what they lead to, all of which outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, load, attributes.as_ptr(), len) };
    // SAFETY: a descriptor that nobody else knows yet.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[test]
fn a_filter_that_can_not_be_read_is_seen() {
    const SO_ATTACH_BPF: i32 = 50;
    let Some(program) = program() else {
        eprintln!("SKIPPED a_filter_that_can_not_be_read_is_seen: no bpf(2)");
        return;
    };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let copy = socket.as_fd().try_clone_to_owned().unwrap();
    raw::set(
        &copy,
        libc::SOL_SOCKET,
        SO_ATTACH_BPF,
        &program.as_raw_fd().to_ne_bytes(),
    )
    .unwrap();
    assert!(matches!(&seen(&socket)[..], [Oddity::Uncarried(text)] if text.contains("eBPF")));
}

#[test]
fn addresses_of_one_link_are_known() {
    for (address, expected) in [
        ("fe80::1", true),
        ("ff02::fb", true),
        ("ff32::1", true),
        ("ff05::1", false),
        ("2001:db8::1", false),
        ("::1", false),
    ] {
        assert_eq!(
            is_link_local(address.parse().unwrap()),
            expected,
            "{address}"
        );
    }
}

/// Of a whole process: this one.
#[test]
fn a_process_is_looked_at() {
    let pid = std::process::id().cast_signed();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    let mut found = look(&[Process { pid, inner: 7 }]).unwrap();
    while !found.contains(&(7, Oddity::Unread)) {
        found = look(&[Process { pid, inner: 7 }]).unwrap();
    }
    assert!(found.iter().all(|(pid, _)| *pid == 7));
}

#[test]
fn the_first_message_of_a_unix_socket_is_looked_at() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let looked = |socket: &UnixDatagram| unread_message(&socket.try_clone().unwrap().into());
    let (one, other) = UnixDatagram::pair().unwrap();
    assert_eq!(looked(&other), None, "there is none");
    one.send(b"text").unwrap();
    assert_eq!(looked(&other), None, "its sender has no name");
    assert_eq!(other.recv(&mut [0; 8]).unwrap(), 4, "it is still there");
    one.send(b"").unwrap();
    assert_eq!(looked(&other), Some(Oddity::Empty));

    let name = |what: &str| {
        let name = format!("ums-test-{what}-{}", std::process::id());
        SocketAddr::from_abstract_name(name).unwrap()
    };
    let [from, to] = ["from", "to"].map(|what| UnixDatagram::bind_addr(&name(what)).unwrap());
    from.send_to_addr(b"text", &name("to")).unwrap();
    assert_eq!(looked(&to), Some(Oddity::Sender));
}
