//! QUIC as the two ends use it: one connection, one stream for control, datagrams for packets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
    TransportConfig, VarInt,
};
use rustls_pki_types::CertificateDer;
use ums_core::id::SystemName;
use ums_tls::{Identity, TlsError};

use super::launch::Ports;
use super::permit::Permit;

/// Application protocol, as negotiated in the handshake.
const ALPN: &[u8] = b"ums-tunnel/1";

/// A silent path is asked this often whether it is there. NAT keeps UDP for 30 s at least, so this
/// is for noticing a break, not for NAT.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// After this long without an answer the near end connects anew: four questions unanswered. Within
/// it the connection survives by itself, and TCP's first retransmissions inside bridge it.
const IDLE: Duration = Duration::from_secs(4);

/// What waits for congestion control. It is lost with its connection, so it is no larger than it
/// takes to keep a path busy between two turns of the sender; the rest waits in the hold.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// What waits to be written into the device; QUIC drops the oldest beyond it.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// The UDP socket's buffers: bursts of some thousand packets while the process isn't running.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// The control stream carries a few short messages.
const STREAM_WINDOW_BYTES: u32 = 16 * 1024;

/// Handshakes that wait at one time: the far end has one peer.
const INCOMING_MAX: usize = 16;

/// As many as quinn's own have.
const ID_BYTES: usize = 8;

/// Why a connection is closed, for the other end's log.
pub(crate) const CLOSE_RETIRED: VarInt = VarInt::from_u32(0);
pub(crate) const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);
pub(crate) const CLOSE_REPLACED: VarInt = VarInt::from_u32(2);
pub(crate) const CLOSE_UNUSABLE: VarInt = VarInt::from_u32(3);

/// A tunnel that can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The system's identity can't be used.
    #[error("cannot set up the tunnel's TLS")]
    Tls(#[from] TlsError),
    /// TLS lacks what QUIC needs.
    #[error("cannot set up the tunnel's TLS: {0}")]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// No UDP socket.
    #[error("cannot bind a UDP socket on {address}, ports {first} to {last}")]
    Bind {
        /// The address.
        address: IpAddr,
        /// The first port that was tried.
        first: u16,
        /// The last.
        last: u16,
        /// Why the last one failed.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no random numbers.
    #[error("cannot read random numbers: is /dev/urandom there?")]
    Random(#[source] io::Error),
    /// The runtime refused the socket.
    #[error("cannot use the UDP socket")]
    Socket(#[source] io::Error),
}

/// The far end's endpoint.
pub(crate) fn listen(
    identity: &Identity,
    socket: UdpSocket,
    secret: &Permit,
) -> Result<Endpoint, QuicError> {
    let tls = ums_tls::server_config(identity, &[ALPN])?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config
        .max_incoming(INCOMING_MAX)
        .transport_config(Arc::new(transport()));
    endpoint(Some(config), socket, secret)
}

/// The near end's endpoint, and how it connects.
pub(crate) fn dial(
    identity: &Identity,
    socket: UdpSocket,
    secret: &Permit,
) -> Result<(Endpoint, ClientConfig), QuicError> {
    let tls = ums_tls::client_config(identity, &[ALPN])?;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport()));
    Ok((endpoint(None, socket, secret)?, config))
}

/// The system that a connection's certificate names.
pub(crate) fn peer(connection: &quinn::Connection) -> Result<SystemName, TlsError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    ums_tls::peer_name(&chain.unwrap_or_default())
}

/// Whether the other end has closed because it has retired. It has said so too, on the stream; but
/// the end of the connection may be seen first.
pub(crate) fn has_retired(error: &quinn::ConnectionError) -> bool {
    matches!(error, quinn::ConnectionError::ApplicationClosed(close)
        if close.error_code == CLOSE_RETIRED)
}

/// Whether no datagram waits to be sent.
pub(crate) fn has_sent_all(connection: &quinn::Connection) -> bool {
    // One that waits takes more: its own bytes, and its place in the queue.
    const NONE_WAITS: usize = 64;
    connection.datagram_send_buffer_space() + NONE_WAITS >= SEND_BUFFER_BYTES
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IDLE.try_into().ok())
        .datagram_send_buffer_size(SEND_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER_BYTES));
    transport
}

/// The far end's socket.
pub(crate) fn bind(address: IpAddr, ports: Ports) -> Result<UdpSocket, QuicError> {
    let mut failed = io::Error::from(io::ErrorKind::InvalidInput);
    for port in ports.first..=ports.last {
        match UdpSocket::bind((address, port)) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(QuicError::Bind {
        address,
        first: ports.first,
        last: ports.last,
        source: failed,
    })
}

/// The near end's socket.
pub(crate) fn bind_towards(peer: SocketAddr) -> Result<UdpSocket, QuicError> {
    let any = match peer {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    bind(any, Ports::ANY)
}

fn endpoint(
    server: Option<ServerConfig>,
    socket: UdpSocket,
    secret: &Permit,
) -> Result<Endpoint, QuicError> {
    // Larger than the usual limit needs CAP_NET_ADMIN; without it the limit itself will do.
    let size = SOCKET_BUFFER_BYTES;
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &size)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &size));
    let _ = setsockopt(&socket, sockopt::SndBufForce, &size)
        .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &size));
    let runtime = Arc::new(quinn::TokioRuntime);
    let key = blake3::derive_key(RESETS, secret.bytes());
    let mut config = EndpointConfig::new(Arc::new(ResetKey(key)));
    let seed = Permit::random().map_err(QuicError::Random)?;
    config.cid_generator(move || Box::new(ConnectionIds::new(seed.bytes())));
    Endpoint::new(config, server, socket, runtime).map_err(QuicError::Socket)
}

/// What the key of stateless resets (RFC 9000, section 10.3) is derived for.
const RESETS: &str = "ums-tunnel 2026 stateless resets";

/// The key of stateless resets: an end's standby has the same, so the other end believes it that a
/// connection of the dead one is no more, at once.
struct ResetKey([u8; blake3::KEY_LEN]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        let hash = blake3::keyed_hash(&self.0, data);
        signature.copy_from_slice(&hash.as_bytes()[..signature.len()]);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let hash = blake3::keyed_hash(&self.0, data);
        // In constant time: `Hash` compares so.
        let signature = blake3::Hash::from_slice(signature).map_err(|_| CryptoError)?;
        if hash == signature {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

/// Connection ids without a mark of who gave them: quinn's own have one, and nobody would be told
/// of the end of a connection whose id the standby can't tell from a stranger's.
#[derive(Debug)]
struct ConnectionIds(blake3::OutputReader);

impl ConnectionIds {
    /// Each seed gives ids of its own.
    fn new(seed: &[u8]) -> Self {
        Self(blake3::Hasher::new().update(seed).finalize_xof())
    }
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        self.0.fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
