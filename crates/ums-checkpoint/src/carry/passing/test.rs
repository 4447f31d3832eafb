use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};

use super::*;

/// What this process is in the middle of at a socket.
fn at(socket: &impl AsRawFd, moment: Moment) -> Vec<String> {
    let pid = std::process::id().cast_signed();
    let found = passing(&[Process { pid, inner: pid }], moment).unwrap();
    let number = format!("descriptor {},", socket.as_raw_fd());
    found
        .into_iter()
        .filter(|what| what.contains(&number))
        .collect()
}

#[test]
fn who_waits_with_data() {
    let name = format!("ums-passing-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let mut waits = UnixStream::connect_addr(&address).unwrap();
    for moment in [Moment::Running, Moment::Frozen] {
        assert_eq!(at(&listener, moment), Vec::<String>::new());
    }
    waits.write_all(b"early").unwrap();
    for moment in [Moment::Running, Moment::Frozen] {
        let told = at(&listener, moment);
        assert!(
            told.len() == 1 && told[0].contains("waits to be accepted"),
            "{told:?}"
        );
    }
    let (_accepted, _) = listener.accept().unwrap();
    assert_eq!(at(&listener, Moment::Frozen), Vec::<String>::new());
}

#[test]
fn unread_messages_with_their_senders() {
    let (a, b) = UnixDatagram::pair().unwrap();
    setsockopt(&b, sockopt::PassCred, &true).unwrap();
    assert_eq!(
        at(&b, Moment::Frozen),
        Vec::<String>::new(),
        "nothing in it"
    );
    a.send(b"by whom").unwrap();
    assert!(at(&b, Moment::Running)[0].contains("SO_PASSCRED"));
    b.recv(&mut [0; 8]).unwrap();
    assert_eq!(at(&b, Moment::Frozen), Vec::<String>::new());
}

#[test]
fn an_urgent_byte_and_what_is_in_front_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut from = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut to, _) = listener.accept().unwrap();
    from.write_all(b"first").unwrap();
    send(from.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
    from.write_all(b"behind").unwrap();
    while send_is_under_way(&from) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for moment in [Moment::Running, Moment::Frozen] {
        assert!(at(&to, moment)[0].contains("MSG_OOB"));
    }
    assert_eq!(recv(to.as_raw_fd(), &mut [0], MsgFlags::MSG_OOB), Ok(1));
    assert!(
        at(&to, Moment::Frozen)[0].contains("MSG_OOB"),
        "before what is in front"
    );
    to.read_exact(&mut [0; 11]).unwrap();
    assert_eq!(at(&to, Moment::Frozen), Vec::<String>::new());
}

fn send_is_under_way(socket: &TcpStream) -> bool {
    raw::unsent(&OwnedFd::from(socket.try_clone().unwrap())).unwrap() > 0
}

#[test]
fn what_is_held_back() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(socket.local_addr().unwrap()).unwrap();
    let copy = OwnedFd::from(socket.try_clone().unwrap());
    cork(&copy, true).unwrap();
    assert_eq!(at(&socket, Moment::Frozen), Vec::<String>::new());
    socket.send(b"one").unwrap();
    assert!(at(&socket, Moment::Frozen)[0].contains("UDP_CORK"));
    cork(&copy, false).unwrap();
    assert_eq!(at(&socket, Moment::Frozen), Vec::<String>::new());
}
