//! What all clients have in common: where they find the service, how they are stopped, and what
//! they tell afterwards.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::namespace::Namespace;

/// Longest wait for one answer on one connection. A held connection is answered after the move;
/// a dead one that nobody closed must not keep a client waiting for ever.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Longest time that a client tries to have one request answered.
pub(crate) const REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Pause after all addresses refused.
const RECONNECT_PAUSE: Duration = Duration::from_millis(5);

/// What a client saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Which client.
    pub name: String,
    /// Requests that were made.
    pub requests: u64,
    /// Requests never answered, or answered wrongly.
    pub failed: u64,
    /// Connections made after the first one.
    pub reconnects: u64,
    /// Longest time between two answers, milliseconds.
    pub longest_gap_ms: f64,
}

impl Summary {
    /// Several connections of one client, seen as one.
    pub fn merged(name: &str, parts: &[Summary]) -> Self {
        let mut whole = Self {
            name: name.to_owned(),
            ..Self::default()
        };
        for part in parts {
            whole.requests += part.requests;
            whole.failed += part.failed;
            whole.reconnects += part.reconnects;
            whole.longest_gap_ms = whole.longest_gap_ms.max(part.longest_gap_ms);
        }
        whole
    }
}

/// A client at work in a thread of its own, in the world's network namespace.
#[derive(Debug)]
pub struct Load<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<T>>,
}

impl<T: Send + 'static> Load<T> {
    /// Starts `work`, which must end soon after the flag is set.
    pub fn start(
        world: &Namespace,
        work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        Self::start_in(format!("/proc/{}/ns/net", world.init()).as_ref(), work)
    }

    /// The same in the network namespace that a file stands for.
    pub fn start_in(
        path: &Path,
        work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let opened = std::fs::File::open(path);
        let network = opened.with_context(|| format!("cannot open {}", path.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
            work(&flag)
        });
        Ok(Self { stop, thread })
    }

    /// Stops the client and takes what it found.
    pub fn stop(self) -> Result<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the client panicked: see above"))?
    }
}

/// Several clients, each known by a name.
#[derive(Debug, Default)]
pub struct Loads(Vec<(String, Load<Summary>)>);

impl Loads {
    /// Starts one more.
    pub fn start(
        &mut self,
        world: &Namespace,
        name: &str,
        work: impl FnOnce(&AtomicBool) -> Result<Summary> + Send + 'static,
    ) -> Result<()> {
        self.0.push((name.to_owned(), Load::start(world, work)?));
        Ok(())
    }

    /// What the clients found that have ended by themselves, which none should before it is told to.
    pub fn ended(&mut self) -> Vec<(String, Result<Summary>)> {
        let ended = self.0.extract_if(.., |(_, load)| load.thread.is_finished());
        ended.map(|(name, load)| (name, load.stop())).collect()
    }

    /// Stops all at once, and takes what each found.
    pub fn stop(self) -> Vec<(String, Result<Summary>)> {
        for (_, load) in &self.0 {
            load.stop.store(true, Ordering::Relaxed);
        }
        let found = |(name, load): (String, Load<Summary>)| (name, load.stop());
        self.0.into_iter().map(found).collect()
    }
}

/// Where a service may be: a client that is refused at one address tries the next, as one does
/// that was given a name with several addresses.
#[derive(Debug, Clone)]
pub(crate) struct Finder {
    addresses: Vec<SocketAddr>,
    current: usize,
    connections: u64,
}

impl Finder {
    pub(crate) fn new(addresses: &[SocketAddr]) -> Self {
        Self {
            addresses: addresses.to_vec(),
            current: 0,
            connections: 0,
        }
    }

    /// Connects to the service, wherever it is.
    pub(crate) fn connect(&mut self) -> Result<TcpStream> {
        let start = Instant::now();
        loop {
            match self.connect_once() {
                Ok(stream) => return Ok(stream),
                Err(error) if start.elapsed() > REQUEST_PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(RECONNECT_PAUSE),
            }
        }
    }

    /// Tries each address once.
    pub(crate) fn connect_once(&mut self) -> Result<TcpStream> {
        for _ in 0..self.addresses.len() {
            let address = self.addresses[self.current];
            if let Ok(stream) = TcpStream::connect_timeout(&address, ANSWER_PATIENCE) {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
                stream.set_write_timeout(Some(ANSWER_PATIENCE))?;
                self.connections += 1;
                return Ok(stream);
            }
            self.current = (self.current + 1) % self.addresses.len();
        }
        Err(anyhow!("nobody answers at any of {:?}", self.addresses))
    }

    /// The connection was lost: the next address is as good as this one.
    pub(crate) fn try_next(&mut self) {
        self.current = (self.current + 1) % self.addresses.len();
    }

    /// Connections made after the first one.
    pub(crate) fn reconnects(&self) -> u64 {
        self.connections.saturating_sub(1)
    }
}

/// Makes requests at a steady rate and measures the time between answers.
#[derive(Debug)]
pub(crate) struct Pace {
    period: Duration,
    next: Instant,
    answered: Option<Instant>,
    longest: Duration,
}

impl Pace {
    pub(crate) fn new(period: Duration) -> Self {
        Self {
            period,
            next: Instant::now(),
            answered: None,
            longest: Duration::ZERO,
        }
    }

    /// Sleeps until the next request is due. After a standstill it goes on from now: what was
    /// missed is not made up for in a burst.
    pub(crate) fn wait(&mut self) {
        let now = Instant::now();
        std::thread::sleep(self.next.saturating_duration_since(now));
        self.next = self.next.max(now) + self.period;
    }

    pub(crate) fn answered(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.answered.replace(now) {
            self.longest = self.longest.max(now - last);
        }
    }

    pub(crate) fn longest_ms(&self) -> f64 {
        self.longest.as_secs_f64() * 1e3
    }
}
