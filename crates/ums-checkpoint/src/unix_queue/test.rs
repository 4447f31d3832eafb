use std::io::{IoSlice, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

use nix::sys::socket::{
    AddressFamily, ControlMessage, SockFlag, SockType, send, sendmsg, setsockopt, socket,
    socketpair, sockopt,
};

use super::*;

fn pass(from: &impl AsRawFd, what: &impl AsRawFd) {
    let fds = [what.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let text = [IoSlice::new(b"take it")];
    let sent = sendmsg::<()>(from.as_raw_fd(), &text, &rights, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(7));
}

#[test]
fn who_asks_for_senders() {
    let socket = OwnedFd::from(UnixDatagram::unbound().unwrap());
    assert_eq!(of(&socket), Queue::default());
    setsockopt(&socket, sockopt::PassCred, &true).unwrap();
    assert!(of(&socket).tells_senders);
    let (pid, fd) = (std::process::id().cast_signed(), socket.as_raw_fd());
    assert!(queue(pid, fd).tells_senders);
    assert_eq!(queue(pid, i32::MAX), Queue::default());
    setsockopt(&socket, sockopt::PassCred, &false).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimestamp, &true).unwrap();
    assert!(of(&socket).tells_senders, "a time comes with each");
}

#[test]
fn an_urgent_byte_stays_where_it_is() {
    let (mut a, b) = UnixStream::pair().unwrap();
    a.write_all(b"one").unwrap();
    let b = OwnedFd::from(b);
    assert_eq!(of(&b), Queue::default());
    send(a.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
    assert!(of(&b).urgent && of(&b).urgent);
    let mut got = [0; 3];
    UnixStream::from(b).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"one");
}

#[test]
fn what_is_in_flight_is_seen_and_stays_there() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let (b, file) = (OwnedFd::from(b), std::fs::File::open("/dev/null").unwrap());
    pass(&a, &file);
    assert_eq!(of(&b).flight, None, "a file is carried");
    a.write_all(b"between").unwrap();
    let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
    pass(&a, &terminal);
    assert_eq!(flight_anywhere(&b).unwrap(), Some(Flight::Terminal));
    assert_eq!(
        flight_anywhere(&b).unwrap(),
        Some(Flight::Terminal),
        "still there"
    );
    assert_eq!(in_flight(&b), 2);
    let mut got = [0; 21];
    UnixStream::from(b).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"take itbetweentake it");
}

#[test]
fn a_socket_in_flight_may_have_some_itself() {
    for datagrams in [false, true] {
        let ends = |datagrams| -> (OwnedFd, OwnedFd) {
            match datagrams {
                true => {
                    let (a, b) = UnixDatagram::pair().unwrap();
                    (a.into(), b.into())
                }
                false => {
                    let (a, b) = UnixStream::pair().unwrap();
                    (a.into(), b.into())
                }
            }
        };
        let ((a, b), (c, d)) = (ends(datagrams), ends(false));
        pass(&a, &d);
        assert_eq!(of(&b).flight, None, "an empty one is carried");
        pass(&c, &c);
        assert_eq!(of(&b).flight, Some(Flight::Nested));
        assert_eq!(flight_anywhere(&b).unwrap(), Some(Flight::Nested));
    }
}

#[test]
fn the_largest_message() {
    let (a, b) = UnixDatagram::pair().unwrap();
    let b = OwnedFd::from(b);
    assert_eq!(largest(&b).unwrap(), 0);
    for length in [3, PIECE + 20_000, PIECE, 5] {
        a.send(&vec![1; length]).unwrap();
    }
    assert_eq!(largest(&b).unwrap(), PIECE + 20_000);
    let b = UnixDatagram::from(b);
    assert_eq!(b.recv(&mut [0; 8]).unwrap(), 3, "none was read");
}

#[test]
fn counts_of_descriptors() {
    assert_eq!(count("pos:\t0\nflags:\t02\nscm_fds: 3\n"), 3);
    assert_eq!(count("scm_fds: many\n"), 0);
    assert_eq!(count(""), 0);
}

#[test]
fn messages_that_are_not_given_again_are_found_anywhere() {
    let (a, b) = UnixDatagram::pair().unwrap();
    let name = format!("ums-test-changed-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let named = UnixDatagram::bind_addr(&address).unwrap();
    let target = SocketAddr::from_abstract_name(format!("{name}-to")).unwrap();
    let to = UnixDatagram::bind_addr(&target).unwrap();
    let other = UnixDatagram::unbound().unwrap();
    for content in [&b"first"[..], b"", &[7; PIECE + 9], b"", b""] {
        a.send(content).unwrap();
    }
    other.send_to_addr(b"no name", &target).unwrap();
    named.send_to_addr(&[7; PIECE + 9], &target).unwrap();
    named.send_to_addr(b"named", &target).unwrap();
    let (b, to) = (OwnedFd::from(b), OwnedFd::from(to));
    let empty = Changed {
        empty: 3,
        ..Changed::default()
    };
    assert_eq!(changed(&b).unwrap(), empty);
    assert_eq!(
        largest(&b).unwrap(),
        PIECE + 9,
        "what was looked at is passed over"
    );
    let named = Changed {
        named: 2,
        ..Changed::default()
    };
    assert_eq!(changed(&to).unwrap(), named);
    let b = UnixDatagram::from(b);
    let mut got = [0; 16];
    assert_eq!(b.recv(&mut got).unwrap(), 5);
    assert_eq!(b.recv(&mut got).unwrap(), 0, "nothing was taken");
}

#[test]
fn what_is_behind_a_first_datagram_without_content_is_found() {
    let (a, b) = UnixDatagram::pair().unwrap();
    for content in [&b""[..], b"one", b"", b"two"] {
        a.send(content).unwrap();
    }
    let b = OwnedFd::from(b);
    let found = changed(&b).unwrap();
    assert_eq!((found.empty, found.behind), (2, 2));
    // The empty ones are passed over by now, and hide others all the same.
    assert_eq!(changed(&b).unwrap().behind, 2);
}

#[test]
fn whoever_made_a_pair_is_at_its_other_end() {
    let (a, _b) = UnixStream::pair().unwrap();
    let me = std::process::id().cast_signed();
    let user = nix::unistd::getuid().as_raw();
    let group = nix::unistd::getgid().as_raw();
    let told = peer_credentials(me, a.as_raw_fd());
    assert_eq!(told, Some((me, user, group)));
    assert_eq!(peer_credentials(me, i32::MAX), None);
}

#[test]
fn the_end_is_no_message() {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    for content in [&b""[..], b"last"] {
        send(a.as_raw_fd(), content, MsgFlags::empty()).unwrap();
    }
    drop(a);
    let empty = Changed {
        empty: 1,
        ..Changed::default()
    };
    assert_eq!(changed(&b).unwrap(), empty);
}

#[test]
fn who_is_not_connected_has_no_queue() {
    for kind in [SockType::SeqPacket, SockType::Stream, SockType::Datagram] {
        let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        assert_eq!(of(&socket), Queue::default());
        assert_eq!(changed(&socket).unwrap(), Changed::default(), "{kind:?}");
        assert_eq!(largest(&socket).unwrap(), 0, "{kind:?}");
        assert_eq!(flight_anywhere(&socket).unwrap(), None, "{kind:?}");
    }
}
