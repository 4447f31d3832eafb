//! The Frontman's life, from its listeners to its end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::connection::{Decision, Shared, serve};
use crate::control::{Limits, Mode, PORTS_MAX, Port, Status, Upstreams};
use crate::record::{self, Record};
use crate::server::{self, Server};

/// Connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;

/// Rest after a failed accept: without it a process out of descriptors would spin.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// After draining, connections that were reset get this long to be taken down.
const LAST_REST: Duration = Duration::from_secs(5);

/// Longest time that can be asked for, so that adding it to a clock can't overflow.
const SECONDS_MAX: u64 = 366 * 24 * 3600;

/// What a Frontman is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The service it stands for.
    pub service: String,
    /// The migration that wants it.
    pub owner: String,
    /// Control socket.
    pub socket: PathBuf,
    /// State file.
    pub state: PathBuf,
    /// For each of the system's ports, where to listen; port 0 takes a free one.
    pub ports: BTreeMap<u16, SocketAddr>,
    /// Bounds.
    pub limits: Limits,
}

/// A Frontman that can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is nothing to listen on, or too much.
    #[error("{given} ports given: a Frontman serves 1 to {PORTS_MAX}")]
    Ports {
        /// How many there were.
        given: usize,
    },
    /// A bound is out of range.
    #[error("{name} is out of range: give 1 to {most}")]
    Limit {
        /// Which.
        name: &'static str,
        /// The largest value.
        most: u64,
    },
    /// A listener can't be had.
    #[error("cannot listen on {address} for port {system_port}")]
    Listen {
        /// The system's port.
        system_port: u16,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another one answers on the control socket.
    #[error("a Frontman answers on {} already: use it, or retire it first", .0.display())]
    AlreadyThere(PathBuf),
    /// A file can't be written.
    #[error("cannot set up {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A request that doesn't fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this Frontman is retiring: start another one")]
    Retiring,
    #[error("no upstream for port {0}: name one for each port")]
    NoUpstream(u16),
    #[error("port {0} is not one of this Frontman's")]
    UnknownPort(u16),
}

/// A Frontman whose listeners are bound.
#[derive(Debug)]
pub struct Frontman {
    control: Arc<Control>,
    listeners: Vec<(u16, TcpListener)>,
    control_socket: tokio::net::UnixListener,
}

impl Frontman {
    /// Binds the listeners and the control socket, and writes the state file.
    pub fn start(config: Config) -> Result<Self, StartError> {
        check(&config)?;
        // The control socket comes first: it tells whether another Frontman is there already.
        let control_socket = server::bind(&config.socket)?;
        let bound = listen_all(&config.ports).and_then(|(listeners, ports)| {
            let control = Arc::new(Control::new(config.clone(), ports));
            let path = &config.state;
            control.write_record().map_err(|source| StartError::File {
                path: path.clone(),
                source,
            })?;
            Ok((listeners, control))
        });
        match bound {
            Ok((listeners, control)) => Ok(Self {
                control,
                listeners,
                control_socket,
            }),
            Err(error) => {
                let _ = record::remove(&config.socket);
                Err(error)
            }
        }
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        self.control.status()
    }

    /// Serves until it has retired; `stop` asks it to retire, however often it fires.
    pub async fn run(self, mut stop: tokio::sync::mpsc::Receiver<()>) {
        let Self {
            control,
            listeners,
            control_socket,
        } = self;
        let mut accepting = JoinSet::new();
        for (system_port, listener) in listeners {
            accepting.spawn(accept(listener, system_port, control.clone()));
        }
        let server = tokio::spawn(Server::default().serve(control_socket, control.clone()));
        let drain_seconds = control.config.limits.drain_seconds;
        let mut decision = control.decision.subscribe();
        loop {
            let now = decision.borrow_and_update().clone();
            if matches!(now, Decision::Retire(..)) {
                break;
            }
            tokio::select! {
                _ = decision.changed() => {}
                () = sleep_until(control.end()) => {
                    tracing::warn!("retiring: the time set for this Frontman is over");
                    control.retire(drain_seconds);
                }
                Some(()) = stop.recv() => control.retire(drain_seconds),
            }
        }
        let mut connections = JoinSet::new();
        while let Some(accepted) = accepting.join_next().await {
            connections.spawn(async move {
                if let Ok(mut accepted) = accepted {
                    while accepted.join_next().await.is_some() {}
                }
            });
        }
        drain(&control, connections, stop).await;
        server.abort();
        let _ = server.await;
        control.remove_files();
        tracing::info!(counts = ?control.shared.counters.read(), "retired");
    }
}

/// Waits for the connections to end; a request to stop that comes meanwhile ends them at once.
async fn drain(
    control: &Control,
    mut connections: JoinSet<()>,
    mut stop: tokio::sync::mpsc::Receiver<()>,
) {
    loop {
        tokio::select! {
            ended = connections.join_next() => if ended.is_none() { return },
            () = sleep_until(control.end() + LAST_REST) => return,
            Some(()) = stop.recv() => control.retire(0),
            _ = control.changed() => {}
        }
    }
}

/// Accepts until the Frontman retires, and returns the connections that are not over then.
async fn accept(listener: TcpListener, system_port: u16, control: Arc<Control>) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    let mut decision = control.decision.subscribe();
    // What the kernel has completed before the end is accepted still: closing the listener would
    // reset it. It can't be more than its backlog.
    let mut rest = BACKLOG;
    while rest > 0 {
        let retiring = matches!(*decision.borrow_and_update(), Decision::Retire(..));
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(taken(&control, client, system_port));
                    rest -= u32::from(retiring);
                }
                Err(error) => {
                    tracing::warn!(%error, system_port, "cannot accept");
                    sleep(ACCEPT_REST).await;
                    rest -= u32::from(retiring);
                }
            },
            () = std::future::ready(()), if retiring => break,
            _ = decision.changed() => {}
            Some(_) = connections.join_next() => {}
        }
    }
    connections
}

fn taken(
    control: &Control,
    client: TcpStream,
    system_port: u16,
) -> impl Future<Output = ()> + Send + use<> {
    control.shared.counters.accepted();
    serve(
        client,
        system_port,
        control.shared.clone(),
        control.decision.subscribe(),
    )
}

/// What requests act on.
#[derive(Debug)]
pub(crate) struct Control {
    config: Config,
    ports: BTreeMap<u16, SocketAddr>,
    shared: Arc<Shared>,
    decision: watch::Sender<Decision>,
    started_at: u64,
    life: Mutex<Life>,
}

/// The part of its state that changes with requests.
#[derive(Debug)]
struct Life {
    end: Instant,
    socket: PathBuf,
    state: PathBuf,
}

impl Control {
    fn new(config: Config, ports: BTreeMap<u16, SocketAddr>) -> Self {
        let end = Instant::now() + Duration::from_secs(config.limits.retire_after_seconds);
        let (socket, state) = (config.socket.clone(), config.state.clone());
        Self {
            shared: Arc::new(Shared::new(config.limits)),
            decision: watch::Sender::new(Decision::Hold),
            started_at: unix_seconds(Duration::ZERO),
            life: Mutex::new(Life { end, socket, state }),
            ports,
            config,
        }
    }

    pub(crate) fn status(&self) -> Status {
        let decision = self.decision.borrow().clone();
        let left = self.end().saturating_duration_since(Instant::now());
        let upstreams = decision.upstreams();
        let port = |(system_port, listen): (&u16, &SocketAddr)| Port {
            system_port: *system_port,
            listen: *listen,
            upstream: upstreams.and_then(|all| all.get(system_port)).copied(),
        };
        Status {
            service: self.config.service.clone(),
            owner: self.config.owner.clone(),
            pid: std::process::id(),
            phase: match decision {
                Decision::Hold => Mode::Holding,
                Decision::Lead(_) => Mode::Leading,
                Decision::Retire(..) => Mode::Retiring,
            },
            ports: self.ports.iter().map(port).collect(),
            limits: self.config.limits,
            counts: self.shared.counters.read(),
            started_at: self.started_at,
            ends_at: unix_seconds(left),
        }
    }

    pub(crate) fn hold(&self) -> Result<(), Refusal> {
        self.decide(Decision::Hold)
    }

    pub(crate) fn lead(&self, upstreams: Upstreams) -> Result<(), Refusal> {
        if let Some(port) = self.ports.keys().find(|port| !upstreams.contains_key(port)) {
            return Err(Refusal::NoUpstream(*port));
        }
        if let Some(port) = upstreams.keys().find(|port| !self.ports.contains_key(port)) {
            return Err(Refusal::UnknownPort(*port));
        }
        self.decide(Decision::Lead(Arc::new(upstreams)))
    }

    /// Moves between holding and leading; a repetition changes nothing, not even its end.
    fn decide(&self, wanted: Decision) -> Result<(), Refusal> {
        let mut refused = false;
        let changed = self.decision.send_if_modified(|current| {
            refused = matches!(current, Decision::Retire(..));
            if refused || *current == wanted {
                return false;
            }
            self.life().end =
                Instant::now() + Duration::from_secs(self.config.limits.retire_after_seconds);
            *current = wanted;
            true
        });
        if changed {
            self.note();
        }
        if refused {
            Err(Refusal::Retiring)
        } else {
            Ok(())
        }
    }

    /// Ends it, `drain_seconds` from now at the latest.
    pub(crate) fn retire(&self, drain_seconds: u64) {
        let wanted = Instant::now() + Duration::from_secs(drain_seconds.min(SECONDS_MAX));
        let mut first = false;
        let changed = self.decision.send_if_modified(|current| {
            let end = match current {
                Decision::Retire(_, end) if *end <= wanted => return false,
                Decision::Retire(..) => wanted,
                Decision::Hold | Decision::Lead(_) => {
                    first = true;
                    wanted
                }
            };
            self.life().end = end;
            *current = Decision::Retire(current.upstreams().cloned(), end);
            true
        });
        if first {
            self.step_aside();
        }
        if changed {
            self.note();
        }
    }

    /// Frees the names of its files, so that the service's next Frontman can start while this one
    /// still drains.
    fn step_aside(&self) {
        let mut life = self.life();
        let aside = |path: &PathBuf| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let extension = path.extension().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{stem}.{}.{extension}", std::process::id()))
        };
        let (socket, state) = (aside(&life.socket), aside(&life.state));
        match std::fs::rename(&life.socket, &socket) {
            Ok(()) => life.socket = socket,
            Err(error) => tracing::warn!(%error, "cannot rename the control socket"),
        }
        match std::fs::rename(&life.state, &state) {
            Ok(()) => life.state = state,
            Err(error) => tracing::warn!(%error, "cannot rename the state file"),
        }
    }

    /// Logs the change and writes it down. Clients are served even when that fails.
    fn note(&self) {
        let status = self.status();
        tracing::info!(phase = ?status.phase, ports = ?status.ports, "changed");
        if let Err(error) = self.write_record() {
            tracing::error!(%error, "cannot write the state file");
        }
    }

    fn write_record(&self) -> std::io::Result<()> {
        let (socket, state) = {
            let life = self.life();
            (life.socket.clone(), life.state.clone())
        };
        record::write(
            &state,
            &Record {
                socket,
                status: self.status(),
            },
        )
    }

    fn remove_files(&self) {
        let life = self.life();
        for path in [&life.state, &life.socket] {
            if let Err(error) = record::remove(path) {
                tracing::warn!(%error, path = %path.display(), "cannot remove");
            }
        }
    }

    fn end(&self) -> Instant {
        self.life().end
    }

    /// Returns at the next change from now on.
    async fn changed(&self) {
        let _ = self.decision.subscribe().changed().await;
    }

    fn life(&self) -> std::sync::MutexGuard<'_, Life> {
        // Nothing panics while it holds the lock, and each field is whole by itself.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(config: &Config) -> Result<(), StartError> {
    let given = config.ports.len();
    if !(1..=PORTS_MAX).contains(&given) {
        return Err(StartError::Ports { given });
    }
    let limits = &config.limits;
    let within = |name, value: u64, least: u64, most: u64| {
        if (least..=most).contains(&value) {
            Ok(())
        } else {
            Err(StartError::Limit { name, most })
        }
    };
    let most = 1 << 20;
    within("hold-connections", limits.hold_connections as u64, 1, most)?;
    within("lead-connections", limits.lead_connections as u64, 1, most)?;
    within("hold-bytes", limits.hold_bytes as u64, 0, 1 << 30)?;
    within("hold-seconds", limits.hold_seconds, 1, SECONDS_MAX)?;
    within("retire-after", limits.retire_after_seconds, 1, SECONDS_MAX)?;
    within("drain-seconds", limits.drain_seconds, 0, SECONDS_MAX)
}

type Listeners = (Vec<(u16, TcpListener)>, BTreeMap<u16, SocketAddr>);

fn listen_all(ports: &BTreeMap<u16, SocketAddr>) -> Result<Listeners, StartError> {
    let mut listeners = Vec::new();
    let mut bound = BTreeMap::new();
    for (&system_port, &address) in ports {
        let failed = |source| StartError::Listen {
            system_port,
            address,
            source,
        };
        let listener = listen(address).map_err(failed)?;
        bound.insert(system_port, listener.local_addr().map_err(failed)?);
        listeners.push((system_port, listener));
    }
    Ok((listeners, bound))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The wall clock that far from now; for people and listings, never for decisions.
fn unix_seconds(from_now: Duration) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_add(from_now).as_secs()
}
