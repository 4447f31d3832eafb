//! What the kernel has sent or is to send, and nobody has acknowledged yet.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};

use anyhow::{Context, Result, bail};

/// Bytes written to an IPv4 connection that its peer has not acknowledged, as the kernel shows
/// them in the network namespace of the calling thread (`tx_queue` in `/proc/net/tcp`).
pub(crate) fn unacknowledged(stream: &TcpStream) -> Result<u64> {
    let (SocketAddr::V4(local), SocketAddr::V4(peer)) = (stream.local_addr()?, stream.peer_addr()?)
    else {
        bail!("not an IPv4 connection")
    };
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
    queued(&table, local, peer).context("the kernel has no such connection any more")
}

fn queued(table: &str, local: SocketAddrV4, peer: SocketAddrV4) -> Option<u64> {
    let (local, peer) = (hexadecimal(local), hexadecimal(peer));
    let of = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let ends = [words.next()?, words.next()?];
        let (queue, _) = words.nth(1)?.split_once(':')?;
        (ends == [&local, &peer]).then(|| u64::from_str_radix(queue, 16).ok())?
    };
    table.lines().find_map(of)
}

/// As the kernel writes it: the address in the machine's byte order.
fn hexadecimal(address: SocketAddrV4) -> String {
    let ip = u32::from_ne_bytes(address.ip().octets());
    format!("{ip:08X}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_was_not_read_but_acknowledged_does_not_count() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(address).expect("accepted");
        let (mut server, _) = listener.accept().expect("a client");
        client.write_all(b"hello").expect("sent");
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).expect("received");
        assert_eq!(unacknowledged(&client).expect("it is there"), 0);
    }

    #[test]
    fn the_right_line_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n   \
             0: 0100007F:1F90 0200007F:0050 01 00000000:00000000 00:0 0\n   \
             1: 0100007F:1F91 0200007F:0050 01 0000001A:00000000 00:0 0\n";
        let at = |text: &str| text.parse().expect("an address");
        let peer = at("127.0.0.2:80");
        assert_eq!(queued(table, at("127.0.0.1:8081"), peer), Some(26));
        assert_eq!(queued(table, at("127.0.0.1:8082"), peer), None);
    }
}
