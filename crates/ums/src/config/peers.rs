//! The peers table: what the configuration file says, and the files that `ums peer add` writes.
//!
//! The files are read anew at each look, and a running `ums serve` looks every second.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use ums_api::client::Permission;
use ums_core::id::SystemName;

use super::ConfigError;
use super::layer::read_file;

/// The most peers there may be: each is asked for its state when they are listed.
pub(crate) const PEERS_MAX: usize = 256;

/// A system that this one may exchange services with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    /// Where its Coordinator listens.
    pub(crate) address: SocketAddr,
    /// What it may do; nothing when absent.
    #[serde(default)]
    pub(crate) allow: Vec<Permission>,
}

/// All peers.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    configured: BTreeMap<SystemName, Peer>,
    directory: PathBuf,
}

/// A peer could not be added or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeersError {
    /// The configuration file has it.
    #[error("peer `{0}` stands in the configuration file; change it there")]
    Configured(SystemName),
    /// There is none of that name.
    #[error("there is no peer `{0}`; `ums peer list` shows those there are")]
    Unknown(SystemName),
    /// Its file can't be written or removed.
    #[error("{path} can't be changed")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Peers {
    pub(super) fn new(configured: BTreeMap<SystemName, Peer>, directory: PathBuf) -> Self {
        Self {
            configured,
            directory,
        }
    }

    /// All peers, as they are now; where both name a peer, the configuration file counts.
    pub(crate) fn all(&self) -> Result<BTreeMap<SystemName, Peer>, ConfigError> {
        let failed = |source| ConfigError::Read {
            path: self.directory.clone(),
            source,
        };
        let mut peers = BTreeMap::new();
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            other => Some(other.map_err(failed)?),
        };
        for entry in entries.into_iter().flatten() {
            let path = entry.map_err(failed)?.path();
            if let Some(name) = name_of(&path) {
                peers.insert(name, read_file(&path)?);
            }
            if peers.len() > PEERS_MAX {
                return Err(ConfigError::TooManyPeers(self.directory.clone()));
            }
        }
        peers.extend(self.configured.clone());
        Ok(peers)
    }

    /// Adds a peer, or changes one that was added.
    pub(crate) fn add(&self, name: &SystemName, peer: &Peer) -> Result<PathBuf, PeersError> {
        if self.configured.contains_key(name) {
            return Err(PeersError::Configured(name.clone()));
        }
        let path = self.file(name);
        let failed = |source| PeersError::Write {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        let allow: Vec<String> = peer
            .allow
            .iter()
            .map(|one| format!("\"{}\"", permission(*one)))
            .collect();
        let text = format!(
            "address = \"{}\"\nallow = [{}]\n",
            peer.address,
            allow.join(", ")
        );
        // Renamed into place: a running Coordinator sees the old file or the new one, whole.
        let new = path.with_extension("new");
        let written = std::fs::File::create(&new)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())
                    .and_then(|()| file.sync_all())
            })
            .and_then(|()| std::fs::rename(&new, &path));
        if let Err(source) = written {
            // What is left of the attempt is of no use; the first error is the one to tell.
            let _ = std::fs::remove_file(&new);
            return Err(failed(source));
        }
        Ok(path)
    }

    /// Removes a peer that was added.
    pub(crate) fn remove(&self, name: &SystemName) -> Result<(), PeersError> {
        if self.configured.contains_key(name) {
            return Err(PeersError::Configured(name.clone()));
        }
        let path = self.file(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(PeersError::Unknown(name.clone()))
            }
            other => other.map_err(|source| PeersError::Write { path, source }),
        }
    }

    fn file(&self, name: &SystemName) -> PathBuf {
        self.directory.join(format!("{name}.toml"))
    }
}

/// Whether a file says what a peer is.
pub(crate) fn is_peer(path: &Path) -> bool {
    read_file::<Peer>(path).is_ok()
}

/// The peer that a file speaks of; `None` for files that are not ours.
fn name_of(path: &Path) -> Option<SystemName> {
    if path.extension()? != "toml" {
        return None;
    }
    path.file_stem()?.to_str()?.parse().ok()
}

/// A permission as it is written.
pub(crate) fn permission(permission: Permission) -> &'static str {
    match permission {
        Permission::Send => "send",
        Permission::Receive => "receive",
    }
}
