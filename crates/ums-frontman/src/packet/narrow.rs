//! A path that has become narrower.
//!
//! QUIC finds out how large packets may be, and notices when the path takes less (RFC 9000, section
//! 14.4), from large packets that are lost while smaller ones arrive. But the kernel is given small
//! packets together with the large ones before them (`UDP_SEGMENT`), and where it knows itself that
//! those are too large (`EMSGSIZE`) it refuses them all. Then nothing is noticed, and whoever sends
//! full packets waits for ever. So the kernel is asked what it knows; a new connection begins with
//! the smallest size and finds its way up again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use quinn::Connection;
use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
use tokio::time::sleep;

/// How often the kernel is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Headers of IP and UDP, bytes.
const HEADERS_V4: u32 = 28;
const HEADERS_V6: u32 = 48;

/// Returns when the connection's packets have become too large for its path.
pub(crate) async fn narrowed(link: &Connection) {
    loop {
        sleep(LOOK_EVERY).await;
        let used = u32::from(link.stats().path.current_mtu);
        // Where the kernel can't tell, there is no route: QUIC notices that.
        if payload_max(link.remote_address()).is_ok_and(|most| used > most) {
            return;
        }
    }
}

/// The largest payload of a UDP packet to this address, as far as the kernel knows now.
fn payload_max(to: SocketAddr) -> io::Result<u32> {
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    let most = match to {
        SocketAddr::V4(_) => ip_mtu(&socket)?.saturating_sub(HEADERS_V4),
        SocketAddr::V6(_) => ipv6_mtu(&socket)?.saturating_sub(HEADERS_V6),
    };
    Ok(most)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_kernel_tells_what_the_loopback_takes() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let most = payload_max(socket.local_addr().unwrap()).unwrap();
        let sent = vec![0; usize::try_from(most).unwrap().min(65_507)];
        let to = socket.local_addr().unwrap();
        assert_eq!(socket.send_to(&sent, to).unwrap(), sent.len());
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:9".parse().unwrap();
        assert_eq!(payload_max(mapped).unwrap(), most);
    }
}
