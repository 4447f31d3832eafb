//! The largest segment that a TCP connection sends.
//!
//! A connection that CRIU makes again (`TCP_REPAIR`, its `soccr_restore`) is told what its peer takes, but goes on with
//! the segments of 536 bytes less options that it began with: the kernel reckons anew when the path's MTU
//! changes (`tcp_current_mss`), which it seldom does. It also does when the options of IP are set
//! (`tcp_sync_mss`, called in `net/ipv4/ip_sockglue.c`), so they are set to what they are. Over IPv6 nothing
//! like it is known: there a connection goes on with segments of 1220 bytes less options.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;

use super::raw;

const IP_OPTIONS: i32 = 4;
/// Longest options of IPv4, bytes.
const OPTIONS_MAX: usize = 40;

/// Has the kernel reckon anew what fits into a segment of an open connection.
pub(super) fn reckon(socket: &OwnedFd) -> io::Result<()> {
    let mut options = [0; OPTIONS_MAX];
    let len = raw::get(socket, libc::IPPROTO_IP, IP_OPTIONS, &mut options)?;
    raw::set(socket, libc::IPPROTO_IP, IP_OPTIONS, &options[..len])
}

#[cfg(test)]
mod test {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket,
    };
    use std::os::fd::AsRawFd;

    use super::*;

    const TCP_MAXSEG: i32 = 2;
    const TCP_REPAIR: i32 = 19;
    const TCP_REPAIR_OPTIONS: i32 = 22;
    const TCPOPT_MAXSEG: u32 = 2;

    fn segment(socket: &OwnedFd) -> i32 {
        raw::get_int(socket, libc::IPPROTO_TCP, TCP_MAXSEG).unwrap()
    }

    /// A connection made as CRIU makes it, whose peer takes segments of so many bytes.
    fn restored(family: AddressFamily, peer: SocketAddr, own: SocketAddr, mss: u32) -> OwnedFd {
        let made = socket(family, SockType::Stream, SockFlag::empty(), None).unwrap();
        let set = |name, value: &[u8]| raw::set(&made, libc::IPPROTO_TCP, name, value).unwrap();
        set(TCP_REPAIR, &1_i32.to_ne_bytes());
        bind(made.as_raw_fd(), &SockaddrStorage::from(own)).unwrap();
        connect(made.as_raw_fd(), &SockaddrStorage::from(peer)).unwrap();
        let option = [TCPOPT_MAXSEG.to_ne_bytes(), mss.to_ne_bytes()].concat();
        set(TCP_REPAIR_OPTIONS, &option);
        // Nobody is told that it is there.
        set(TCP_REPAIR, &(-1_i32).to_ne_bytes());
        made
    }

    #[test]
    fn a_restored_connection_sends_what_its_peer_takes() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED a_restored_connection_sends_what_its_peer_takes: needs root");
            return;
        }
        for (family, at) in [
            (AddressFamily::Inet, "127.0.0.1:0"),
            (AddressFamily::Inet6, "[::ffff:127.0.0.1]:0"),
        ] {
            let free = || TcpListener::bind(at).unwrap().local_addr().unwrap();
            let connection = restored(family, free(), free(), 1400);
            assert!(segment(&connection) < 1300, "it needs no help any more");
            reckon(&connection).unwrap();
            assert!(
                segment(&connection) > 1300,
                "{at}: {}",
                segment(&connection)
            );
        }
    }

    #[test]
    fn one_that_is_as_it_was_stays_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let connection = OwnedFd::from(connection);
        let before = segment(&connection);
        reckon(&connection).unwrap();
        assert_eq!(segment(&connection), before);
    }
}
