//! Pages that stay at the source until the service runs at the destination (post-copy): two small processes
//! bring them over, one on each side, apart from the agents, which may be killed meanwhile.
//!
//! ```text
//!  destination                                              source
//!  keeper ══ unix stream ══ pager (bring) ══ mTLS 1.3 ══ pager (serve) ── memory of the frozen processes
//! ```
//!
//! The keeper asks ([`supply`](ums_checkpoint::supply)); the source answers what it is asked, and remembers nothing. So
//! a connection that breaks is made anew, and what was not answered is asked again. Who may ask: the system that the
//! service moves to, by its certificate, with the permit that went to it over the data path.
//!
//! The source's pager lives as long as its *lease*, a file in the run directory that the agent removes before anything
//! may change the frozen memory; it looks at the lease after each read, so what it sends was read while the
//! service was frozen for this migration.

mod bring;
mod serve;
mod start;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use ums_core::frontman::PortRange;
use ums_core::id::{MigrationId, SystemName};
use ums_tls::Identity;

use crate::node::Node;

pub(crate) use start::{bring, serve};

/// Name of the image file that tells the destination where the source's pager is.
pub(crate) const NAME: &str = "ums-pager.json";

/// Where pages are that have stayed, as the destination is told over the data path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stayed {
    /// Where the source's pager listens.
    pub(crate) address: SocketAddr,
    /// The system that must be found there.
    pub(crate) system: SystemName,
    /// Permit of this migration, 64 hexadecimal digits.
    pub(crate) permit: String,
}

/// Certificates of a system, as a pager is given them: over a pipe, never as an argument.
#[derive(Serialize, Deserialize)]
struct Certificates {
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
}

impl From<&Identity> for Certificates {
    fn from(identity: &Identity) -> Self {
        Self {
            ca_pem: identity.ca_pem.clone(),
            cert_pem: identity.cert_pem.clone(),
            key_pem: identity.key_pem.clone(),
        }
    }
}

impl From<Certificates> for Identity {
    fn from(it: Certificates) -> Self {
        Self {
            ca_pem: it.ca_pem,
            cert_pem: it.cert_pem,
            key_pem: it.key_pem,
        }
    }
}

/// What a pager is to do, on its standard input.
#[derive(Serialize, Deserialize)]
enum Task {
    /// At the source.
    Serve(Serve),
    /// At the destination; the stream to the keeper is its standard output.
    Bring(Bring),
}

#[derive(Serialize, Deserialize)]
struct Serve {
    identity: Certificates,
    migration: MigrationId,
    destination: SystemName,
    permit: String,
    /// The service's control group.
    cgroup: String,
    address: std::net::IpAddr,
    ports: Option<PortRange>,
    lease: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Bring {
    identity: Certificates,
    migration: MigrationId,
    stayed: Stayed,
    /// How long the source may not be reached, milliseconds.
    patience_ms: u64,
}

/// Runs a pager: what it is to do comes on standard input.
///
/// # Errors
/// When it can't begin.
pub fn run() -> anyhow::Result<()> {
    // Signals to the agent's group are not meant for it.
    let _ = nix::unistd::setsid();
    let task: Task = serde_json::from_reader(std::io::stdin().lock())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match task {
        Task::Serve(task) => runtime.block_on(serve::run(task)),
        Task::Bring(task) => runtime.block_on(bring::run(task)),
    }
}

fn lease_path(node: &Node, id: MigrationId) -> PathBuf {
    node.frontmen
        .settings
        .run_dir
        .join("pagers")
        .join(id.to_string())
}

/// From now on nothing is read of the frozen service any more: its memory may change, or go.
///
/// # Errors
/// When the lease can't be removed.
pub(crate) fn end(node: &Node, id: MigrationId) -> std::io::Result<()> {
    match std::fs::remove_file(lease_path(node, id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_leased(lease: &Path) -> bool {
    // What can't be looked at is not counted as there.
    lease.try_exists().unwrap_or(false)
}
