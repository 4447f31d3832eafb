//! Accepts connections and serves a router on each, bounded in number.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use ums_core::id::SystemName;

use crate::tasks::Tasks;

/// Most connections at once for each API: some for each migration, and watchers.
const CONNECTIONS_MAX: usize = 256;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be silent between requests. Longer than the period at which a source
/// renews its lease, so that a connection that is meant for the freeze stays open until then.
const IDLE_TIMEOUT: Duration = Duration::from_secs(180);

/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection, by its certificate.
#[derive(Debug, Clone)]
pub(crate) struct PeerIdentity(pub(crate) SystemName);

/// Serves the client API.
pub(crate) async fn unix(listener: UnixListener, router: Router, tasks: Arc<Tasks>) {
    let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tasks.spawn(async move {
                    connection(stream, router).await;
                    drop(permit);
                });
            }
            Err(error) => pause("the client API", &error).await,
        }
    }
}

/// Serves the peer API: mutual TLS, the peer's name as an extension of each request.
pub(crate) async fn peers(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    router: Router,
    tasks: Arc<Tasks>,
) {
    let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, address)) => {
                let (router, config) = (router.clone(), Arc::clone(&config));
                tasks.spawn(async move {
                    match ums_tls::accept(stream, config, HANDSHAKE_TIMEOUT).await {
                        Ok((stream, peer)) => {
                            let identity = axum::Extension(PeerIdentity(peer.system));
                            connection(stream, router.layer(identity)).await;
                        }
                        Err(error) => {
                            let error: &dyn std::error::Error = &error;
                            tracing::warn!(%address, error, "a peer was not let in");
                        }
                    }
                    drop(permit);
                });
            }
            Err(error) => pause("the peer API", &error).await,
        }
    }
}

async fn pause(what: &str, error: &std::io::Error) {
    tracing::warn!(%error, "{what} can't accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Binds the socket of the client API for its owner alone. One that a dead Coordinator left is
/// replaced; a live one can't be there, because it would hold the journal.
pub(crate) fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
