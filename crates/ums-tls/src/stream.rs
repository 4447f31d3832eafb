//! Connections of the data path: TCP, TLS over it, and who is at the other end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use ums_core::id::SystemName;

use crate::{TlsError, fingerprint, peer_name, server_name};

/// One read from the socket fetches this much: rustls by itself asks for 4 KiB at a time, which
/// costs more in system calls than the decryption does.
const SOCKET_READ_BYTES: usize = 256 * 1024;

/// Plaintext that rustls takes before it has to write: one write to the socket carries this much.
const TLS_BUFFER_BYTES: usize = 256 * 1024;

/// An encrypted connection.
pub type Connection = TlsStream<BufReader<TcpStream>>;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The system, by its certificate.
    pub system: SystemName,
    /// Fingerprint of that certificate.
    pub fingerprint: String,
    /// Address it has.
    pub address: SocketAddr,
}

/// Connects to `address` and makes sure that `system` is there.
///
/// The configuration's first ALPN protocol has to be agreed on.
pub async fn connect(
    address: SocketAddr,
    system: &SystemName,
    config: Arc<ClientConfig>,
    timeout: Duration,
) -> Result<Connection, TlsError> {
    let name = server_name(system)?;
    let tcp = limited("connecting", address, timeout, TcpStream::connect(address)).await?;
    let tcp = prepared(tcp, address)?;
    let wanted = config.alpn_protocols.clone();
    let shake = TlsConnector::from(config).connect(name, tcp);
    let stream = limited("TLS handshake", address, timeout, shake).await?;
    agreed(TlsStream::Client(stream), &wanted, address)
}

/// Takes a connection that a listener accepted, and learns who it is from.
pub async fn accept(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    timeout: Duration,
) -> Result<(Connection, Peer), TlsError> {
    let failed = |source| TlsError::Connect {
        operation: "accepting",
        address: "a peer".to_owned(),
        source,
    };
    let address = tcp.peer_addr().map_err(failed)?;
    let tcp = prepared(tcp, address)?;
    let wanted = config.alpn_protocols.clone();
    let shake = TlsAcceptor::from(config).accept(tcp);
    let stream = TlsStream::Server(limited("TLS handshake", address, timeout, shake).await?);
    let stream = agreed(stream, &wanted, address)?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let system = peer_name(chain)?;
    let fingerprint = chain.first().map(fingerprint).unwrap_or_default();
    Ok((
        stream,
        Peer {
            system,
            fingerprint,
            address,
        },
    ))
}

fn prepared(tcp: TcpStream, address: SocketAddr) -> Result<BufReader<TcpStream>, TlsError> {
    tcp.set_nodelay(true).map_err(|source| TlsError::Connect {
        operation: "setting up the socket",
        address: address.to_string(),
        source,
    })?;
    Ok(BufReader::with_capacity(SOCKET_READ_BYTES, tcp))
}

fn agreed(
    mut stream: Connection,
    wanted: &[Vec<u8>],
    address: SocketAddr,
) -> Result<Connection, TlsError> {
    let protocol = stream.get_ref().1.alpn_protocol();
    if !wanted.is_empty() && !wanted.iter().any(|known| Some(&known[..]) == protocol) {
        let wanted = wanted
            .iter()
            .map(|one| String::from_utf8_lossy(one))
            .collect::<Vec<_>>();
        return Err(TlsError::Protocol {
            address: address.to_string(),
            wanted: wanted.join("`, `"),
        });
    }
    match &mut stream {
        TlsStream::Client(client) => client.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES)),
        TlsStream::Server(server) => server.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES)),
    }
    Ok(stream)
}

async fn limited<T>(
    operation: &'static str,
    address: SocketAddr,
    limit: Duration,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T, TlsError> {
    let address = address.to_string();
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(source)) => Err(TlsError::Connect {
            operation,
            address,
            source,
        }),
        Err(_) => Err(TlsError::Timeout {
            operation,
            address,
            seconds: limit.as_secs(),
        }),
    }
}
