//! What the kernel has sent or is to send, and nobody has acknowledged yet.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;

/// Length of `nlmsghdr`.
const HEADER: usize = 16;

/// Where `idiag_wqueue` is in the kernel's answer, an `inet_diag_msg`.
const QUEUE_AT: usize = HEADER + 60;

/// Asks the kernel about one IPv4 connection, by its socket diagnostics (`sock_diag(7)`): of one
/// connection they are cheap, unlike the table in `/proc/net/tcp`.
#[derive(Debug)]
pub(crate) struct Unacknowledged {
    diagnostics: OwnedFd,
    request: Vec<u8>,
}

impl Unacknowledged {
    /// Of this connection, which must be of the calling thread's network namespace.
    pub(crate) fn of(stream: &TcpStream) -> Result<Self> {
        let (SocketAddr::V4(local), SocketAddr::V4(peer)) =
            (stream.local_addr()?, stream.peer_addr()?)
        else {
            bail!("not an IPv4 connection")
        };
        let diagnostics = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        );
        Ok(Self {
            diagnostics: diagnostics.context("no socket diagnostics")?,
            request: request(local, peer),
        })
    }

    /// Bytes written that the other side has not acknowledged now.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let socket = self.diagnostics.as_raw_fd();
        send(socket, &self.request, MsgFlags::empty()).context("cannot ask")?;
        let mut answer = [0; 1024];
        let count = recv(socket, &mut answer, MsgFlags::empty()).context("no answer")?;
        let queue = queue(&answer[..count]);
        queue.context("the kernel has no such connection any more")
    }
}

/// The number in an answer; `None` when it is an error.
fn queue(answer: &[u8]) -> Option<u64> {
    let kind = answer.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    let queue = answer.get(QUEUE_AT..QUEUE_AT + 4)?.try_into().ok();
    (kind == SOCK_DIAG_BY_FAMILY).then_some(u64::from(queue.map(u32::from_ne_bytes)?))
}

/// `nlmsghdr` and `inet_diag_req_v2` for one connection.
fn request(local: SocketAddrV4, peer: SocketAddrV4) -> Vec<u8> {
    let family = AddressFamily::Inet as u8;
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    // Any state.
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(peer.port().to_be_bytes());
    for address in [local.ip(), peer.ip()] {
        body.extend(address.octets());
        body.extend([0; 12]);
    }
    // Any interface; and no cookie, that is, whichever socket has these addresses.
    body.extend(0_u32.to_ne_bytes());
    body.extend([0xff; 8]);
    let mut request = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port id, of no use here.
    request.extend([0; 8]);
    request.extend(body);
    request
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("accepted");
        (client, listener.accept().expect("a client").0)
    }

    #[test]
    fn what_was_acknowledged_does_not_count_and_what_waits_does() {
        let (mut client, mut server) = connection();
        let unacknowledged = Unacknowledged::of(&client).expect("diagnostics");
        client.write_all(b"hello").expect("sent");
        server.read_exact(&mut [0; 5]).expect("received");
        assert_eq!(unacknowledged.bytes().expect("it is there"), 0);
        // Nobody reads, so what fills both buffers is more than the other side takes.
        client.set_nonblocking(true).expect("a flag");
        let chunk = vec![0; 1 << 20];
        while client.write(&chunk).is_ok() {}
        assert!(unacknowledged.bytes().expect("it is there") > 0);
    }

    #[test]
    fn an_error_is_no_number() {
        let mut answer = vec![0; QUEUE_AT];
        answer.extend(7_u32.to_ne_bytes());
        answer[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(queue(&answer), None, "NLMSG_ERROR");
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        assert_eq!(queue(&answer), Some(7));
        assert_eq!(queue(&answer[..QUEUE_AT]), None, "cut off");
    }
}
