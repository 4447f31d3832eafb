//! Accepts connections and serves a router on each, bounded in number.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use ums_core::id::SystemName;

use crate::config::Limits;
use crate::tasks::Tasks;

/// Most connections at once for each API: some for each migration, and watchers.
const CONNECTIONS_MAX: usize = 256;

/// Most connections of one peer: four that it keeps idle, and some for each of the most migrations
/// that it can be told to run at once. One peer can't take the others' places.
const PEER_CONNECTIONS_MAX: usize = 64;

/// Most connections of which it is not known yet whose they are. They have places of their own, so
/// that strangers take none from peers.
const HANDSHAKES_MAX: usize = 64;

/// The longest head of a request, bytes: ours have a few hundred.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection, by its certificate.
#[derive(Debug, Clone)]
pub(crate) struct PeerIdentity(pub(crate) SystemName);

/// Serves the client API, to root and to the user that the Coordinator runs as.
pub(crate) async fn unix(
    listener: UnixListener,
    router: Router,
    idle: Duration,
    tasks: Arc<Tasks>,
) {
    let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) if may_ask(&stream) => {
                let router = router.clone();
                tasks.spawn(async move {
                    connection(stream, router, idle).await;
                    drop(permit);
                });
            }
            Ok(_) => tracing::warn!("another user than root was not let in to the client API"),
            Err(error) => pause("the client API", &error).await,
        }
    }
}

/// Whatever the modes of the socket and of its directory say.
fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// Serves the peer API: mutual TLS, the peer's name as an extension of each request.
pub(crate) async fn peers(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    tasks: Arc<Tasks>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let places = Places::default();
    loop {
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, address)) => {
                let (router, config) = (router.clone(), Arc::clone(&config));
                let (places, limits) = (places.clone(), limits.clone());
                tasks.spawn(async move {
                    let accepted = ums_tls::accept(stream, config, limits.arrival_timeout).await;
                    drop(handshake);
                    match accepted {
                        Ok((stream, peer)) => {
                            let Some(_place) = places.take(&peer.system) else {
                                tracing::warn!(peer = %peer.system, "too many connections");
                                return;
                            };
                            let identity = axum::Extension(PeerIdentity(peer.system));
                            connection(stream, router.layer(identity), limits.idle_timeout).await;
                        }
                        Err(error) => {
                            let error: &dyn std::error::Error = &error;
                            tracing::warn!(%address, error, "a peer was not let in");
                        }
                    }
                });
            }
            Err(error) => pause("the peer API", &error).await,
        }
    }
}

/// How many connections each peer has.
#[derive(Debug, Clone, Default)]
struct Places(Arc<Mutex<BTreeMap<SystemName, usize>>>);

/// One connection's place, given back when it is dropped.
struct Place {
    of: SystemName,
    among: Places,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<SystemName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for another connection of this peer, unless it or all together have enough.
    fn take(&self, system: &SystemName) -> Option<Place> {
        let mut taken = self.taken();
        let of_all: usize = taken.values().sum();
        let of_it = taken.get(system).copied().unwrap_or(0);
        if of_all >= CONNECTIONS_MAX || of_it >= PEER_CONNECTIONS_MAX {
            return None;
        }
        taken.insert(system.clone(), of_it + 1);
        Some(Place {
            of: system.clone(),
            among: self.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.among.taken();
        match taken.get_mut(&self.of) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.of)),
        }
    }
}

async fn pause(what: &str, error: &std::io::Error) {
    tracing::warn!(%error, "{what} can't accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    idle: Duration,
) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES_MAX)
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
