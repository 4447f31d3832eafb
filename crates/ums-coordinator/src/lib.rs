//! The Coordinator (UMS §III-A): one per system. It serves the client API and the peer API, runs
//! the saga of the 15 steps for services that leave, a receiver for services that arrive, and keeps
//! the journal from which both go on after a crash.
//!
//! Architecture invariant: it never touches a container, a route or a page itself; it asks the
//! Migration Interface of its own system, and the Coordinator of the other.

mod agent_process;
mod agents;
mod client_server;
mod clock;
mod config;
mod destination;
mod estimates;
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod listen;
mod peer;
mod peer_server;
mod policy;
mod problem;
mod reconciler;
mod settings;
mod shared;
#[cfg(test)]
mod simulation;
mod source;
mod status;
mod tasks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use ums_api::client::SOCKET_NAME;
use ums_api::http::AgentClient;
use ums_api::lock::{Lock, LockError};
use ums_api::peer::ALPN;
use ums_core::id::SystemName;
use ums_tls::TlsError;

pub use config::{AgentCommand, Config, Limits, PeerConfig};
pub use journal::{FILE_NAME as JOURNAL_FILE_NAME, JournalError, OpenStore};
pub use settings::Settings;

use journal::Journal;
use settings::InForce;
use shared::Shared;
use tasks::{Tasks, for_ever};

/// A Coordinator can't start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The journal can't be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The identity can't be used.
    #[error("this system's identity can't be used")]
    Identity(#[from] TlsError),
    /// The certificate is another system's.
    #[error(
        "the certificate is of system `{certificate}`, and this is `{system}`; issue one with `ums ca`"
    )]
    Name {
        /// Whose it is.
        certificate: SystemName,
        /// Whose it should be.
        system: SystemName,
    },
    /// The address for peers can't be listened at.
    #[error("peers can't be listened for at {address}; is it this host's, and free?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The run directory is another Coordinator's.
    #[error("the run directory can't be used")]
    RunDir(#[from] LockError),
    /// The socket for clients can't be made.
    #[error("the socket {path} can't be made; see who owns its directory")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn ensure_dir(path: &std::path::Path) -> Result<(), LockError> {
    std::fs::create_dir_all(path).map_err(|source| LockError::File {
        path: path.to_owned(),
        source,
    })
}

/// A running Coordinator.
pub struct Coordinator {
    /// The run directory, in which it has its socket, is its own.
    _run_dir: Lock,
    shared: Arc<Shared>,
    address: SocketAddr,
    socket: PathBuf,
}

impl Coordinator {
    /// Opens the journal, takes up what was interrupted, and serves.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        Self::start_with_store(config, journal::in_file()).await
    }

    /// The same, with a store for the journal that tests can let fail.
    pub async fn start_with_store(config: Config, store: OpenStore) -> Result<Self, ServeError> {
        let certificate = config.identity.name()?;
        if certificate != config.system {
            return Err(ServeError::Name {
                certificate,
                system: config.system,
            });
        }
        let server_tls = ums_tls::server_config(&config.identity, &[ALPN])?;
        let client_tls = ums_tls::client_config(&config.identity, &[ALPN])?;
        let limits = &config.limits;
        // The journal's lock keeps a second Coordinator out, before it can take the socket.
        let journal = Arc::new(Journal::open(
            &config.state_dir,
            &config.system,
            limits.history_max,
            store,
        )?);
        let run_dir = ensure_dir(&config.run_dir)
            .and_then(|()| Lock::take(&config.run_dir, "coordinator-run.lock"))?;
        let listen_error = |source| ServeError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let socket = config.run_dir.join(SOCKET_NAME);
        let clients = listen::bind_unix(&socket).map_err(|source| ServeError::Socket {
            path: socket.clone(),
            source,
        })?;

        let agent = AgentClient::new(
            &config.agent_socket,
            limits.request_timeout,
            limits.copy_timeout,
        );
        let timeouts = (limits.request_timeout, limits.copy_timeout);
        let agents = agents::Agents::new(agent, &config.run_dir, timeouts);
        let peers = peer::Peers::new(peer::over_tls(client_tls), limits.request_timeout);
        let tasks = Arc::new(Tasks::new());
        let agent_command = config.agent_command.clone();
        let shared = Arc::new(Shared {
            settings: InForce::new(&config),
            config,
            journal,
            desk: shared::Desk::Blocking,
            agents,
            peers,
            registry: status::Registry::default(),
            arrivals: destination::Arrivals::default(),
            tasks: Arc::clone(&tasks),
        });
        if let Some(command) = agent_command {
            let this = Arc::clone(&shared);
            tasks.spawn(for_ever("what keeps the agent", move || {
                agent_process::keep(Arc::clone(&this), command.clone())
            }));
        }
        reconciler::take_up(&shared).await?;
        let this = Arc::clone(&shared);
        tasks.spawn(for_ever("the reconciler", move || {
            reconciler::run(Arc::clone(&this))
        }));
        let router = peer_server::router(Arc::clone(&shared));
        let limits = shared.config.limits.clone();
        let idle = limits.idle_timeout;
        tasks.spawn(listen::peers(
            listener,
            server_tls,
            router,
            limits,
            Arc::clone(&tasks),
        ));
        let router = client_server::router(Arc::clone(&shared));
        tasks.spawn(listen::unix(clients, router, idle, Arc::clone(&tasks)));
        Ok(Self {
            _run_dir: run_dir,
            shared,
            address,
            socket,
        })
    }

    /// Where peers reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients reach it.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Takes up changed settings, for what begins from now on. Nothing that is under way is cut off:
    /// see [`Settings`].
    pub fn take_up(&self, settings: Settings) {
        self.shared.peers.keep(&settings.peers);
        self.shared.settings.replace(settings);
    }

    /// Ends it where it stands: nothing is said to anybody, and the journal is as it is.
    ///
    /// That is the same as a crash, and as harmless: what is under way goes on, or is undone, when it
    /// is started again; services are not touched.
    pub async fn stop(self) {
        self.shared.tasks.end().await;
    }
}
