//! What may change while a Coordinator runs: the peers table, and how much may go on at once.
//!
//! Changed settings count for what begins from then on. What is under way goes to its end with the
//! peer that it began with, at either side: to cut it off would leave a service frozen, or waiting at
//! the destination, for a person to decide about.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use ums_core::id::SystemName;

use crate::config::{Config, PeerConfig};

/// The settings that a running Coordinator takes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// As [`Config::peers`].
    pub peers: BTreeMap<SystemName, PeerConfig>,
    /// As [`Limits::outgoing_max`](crate::Limits::outgoing_max).
    pub outgoing_max: usize,
    /// As [`Limits::incoming_max`](crate::Limits::incoming_max).
    pub incoming_max: usize,
}

impl Settings {
    /// Those that a configuration begins with.
    pub fn of(config: &Config) -> Self {
        Self {
            peers: config.peers.clone(),
            outgoing_max: config.limits.outgoing_max,
            incoming_max: config.limits.incoming_max,
        }
    }
}

/// The settings in force. Whoever looks twice may see two states, each whole.
#[derive(Debug)]
pub(crate) struct InForce(RwLock<Arc<Settings>>);

impl InForce {
    pub(crate) fn new(config: &Config) -> Self {
        Self(RwLock::new(Arc::new(Settings::of(config))))
    }

    pub(crate) fn now(&self) -> Arc<Settings> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn replace(&self, settings: Settings) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// The peer of this name, if it is known now.
    pub(crate) fn peer(&self, name: &SystemName) -> Option<PeerConfig> {
        self.now().peers.get(name).cloned()
    }
}
