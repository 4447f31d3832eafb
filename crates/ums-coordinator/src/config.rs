//! What a Coordinator is told: a plain struct. Whoever has a file, flags or an environment to read
//! it from (the binary) parses them; nothing here knows where a value came from.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ums_api::client::Permission;
use ums_core::id::SystemName;
use ums_tls::Identity;

/// All that a Coordinator needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The system it speaks for. [`Identity::name`] must be the same.
    pub system: SystemName,
    /// Directory of the journal; made when it is missing.
    pub state_dir: PathBuf,
    /// Directory of the client API's socket; made when it is missing.
    pub run_dir: PathBuf,
    /// Where peers reach this Coordinator. Port 0 takes a free one, for tests.
    pub listen: SocketAddr,
    /// Certificate, key and CA.
    pub identity: Identity,
    /// The peers it knows. Nobody else is talked to or listened to.
    pub peers: BTreeMap<SystemName, PeerConfig>,
    /// Socket of the Migration Interface of this system.
    pub agent_socket: PathBuf,
    /// How to start the Migration Interface when nobody answers at its socket; `None` leaves that
    /// to somebody else.
    pub agent_command: Option<AgentCommand>,
    /// Versions of the peer API that it speaks: [`ums_api::peer::VERSIONS`], or fewer in a test with a twin of an
    /// earlier release.
    pub peer_versions: Vec<u32>,
    /// Bounds and periods.
    pub limits: Limits,
}

/// A peer: where it is, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Where its Coordinator listens. Its agent's data path is at the same IP address.
    pub address: SocketAddr,
    /// What it may do; empty denies everything.
    pub allow: BTreeSet<Permission>,
}

/// How the Migration Interface is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// File that its output is appended to; `None` discards it.
    pub log: Option<PathBuf>,
}

/// Bounds and periods; [`Limits::default`] suits production, tests shorten the periods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most migrations at once for which this system is the source. Each freezes a service and
    /// shares the link, so more of them only make every downtime longer.
    pub outgoing_max: usize,
    /// Most services at once that are being received: each holds memory for what arrives.
    pub incoming_max: usize,
    /// How long a reservation lives without a word from its source. It only reclaims; no safety
    /// rests on it, so it may be generous.
    pub lease: Duration,
    /// How long a prepared instance waits for the commit before the source is asked.
    pub doubt_after: Duration,
    /// Period of the reconciler.
    pub reconcile_every: Duration,
    /// First pause before a repeat; it doubles up to [`Limits::retry_max`].
    pub retry_first: Duration,
    /// Longest pause before a repeat.
    pub retry_max: Duration,
    /// Longest wait for an answer to a small request: everything but the copying of data.
    pub request_timeout: Duration,
    /// Longest wait for the operations that copy: opening the data path and the checkpoint.
    pub copy_timeout: Duration,
    /// Period at which the agent is asked how far the copying is.
    pub progress_every: Duration,
    /// Most migrations kept in the history; the oldest make room.
    pub history_max: usize,
    /// How long a handshake may take, and a request's body from its head on: whoever is slower
    /// only holds a place.
    pub arrival_timeout: Duration,
    /// How long a connection may be silent between requests, and how long a request's head may
    /// take. Longer than the period at which a source renews its lease, so that a connection that
    /// is meant for the freeze stays open until then.
    pub idle_timeout: Duration,
}

/// The slowest at which memory is expected to be put in place before a service runs, bytes a second: a
/// fifth of what was measured.
const RESTORE_BYTES_PER_SECOND_MIN: u64 = 256 << 20;

impl Limits {
    /// Longest wait for a restore of so much memory, all of which may have to be in place first.
    pub fn restore_timeout(&self, memory_bytes: u64) -> Duration {
        let seconds = memory_bytes / RESTORE_BYTES_PER_SECOND_MIN;
        self.request_timeout
            .saturating_add(Duration::from_secs(seconds))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            outgoing_max: 4,
            incoming_max: 8,
            lease: Duration::from_secs(60),
            doubt_after: Duration::from_secs(2),
            reconcile_every: Duration::from_secs(1),
            retry_first: Duration::from_millis(50),
            retry_max: Duration::from_secs(5),
            request_timeout: Duration::from_secs(60),
            copy_timeout: Duration::from_secs(4 * 60 * 60),
            progress_every: Duration::from_millis(250),
            history_max: 10_000,
            arrival_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(180),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_restore_is_waited_for_by_its_size() {
        let limits = Limits::default();
        assert_eq!(limits.restore_timeout(0), limits.request_timeout);
        // 0.7 s for each GiB were measured where all pages are put in place before a service runs.
        for gib in [1_u64, 85, 1024, 16 << 10] {
            let measured = Duration::from_secs_f64(gib as f64 * 0.7);
            assert!(
                limits.restore_timeout(gib << 30) > measured * 4,
                "{gib} GiB"
            );
        }
        limits.restore_timeout(u64::MAX);
    }
}
