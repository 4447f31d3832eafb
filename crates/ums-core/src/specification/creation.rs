//! What a container engine was told of a container that nobody else needs: it goes from engine to engine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a container engine was told to make a container (the Docker Engine API's `Config` and
/// `HostConfig`), as far as it is not in the Specification itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Creation {
    /// The reference of its image, such as `docker.io/library/redis:7`.
    pub image: String,
    /// The engine's id of that image, 64 hexadecimal digits.
    pub image_id: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What happens when it ends.
    pub restart: Restart,
    /// Groups that its user has besides its own.
    pub groups: Vec<String>,
    /// Its user as it was given, when it was.
    pub user: String,
    /// The signal that stops it, where it is not SIGTERM.
    pub stop_signal: Option<String>,
    /// How long it may take to stop, seconds.
    pub stop_seconds: Option<i64>,
    /// Whether its root filesystem is mounted read-only.
    pub read_only: bool,
    /// Processors, in billionths of one.
    pub nano_cpus: Option<i64>,
    /// Processes and threads that it may have.
    pub pids_limit: Option<i64>,
    /// How its health is checked.
    pub health: Option<Health>,
    /// Names and addresses that it was given beside its own (`--add-host`), `NAME:ADDRESS` each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// What an engine does when a container ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// The engine's word: `no`, `always`, `unless-stopped` or `on-failure`; empty is `no`.
    pub policy: String,
    /// How often at most, of `on-failure`; 0 is without end.
    pub times: i64,
}

impl Restart {
    /// Whether it is ever started again.
    pub fn is_on(&self) -> bool {
        !matches!(self.policy.as_str(), "" | "no")
    }
}

/// A check of a container's health, times in nanoseconds; 0 is the engine's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// What is run: `NONE`, `CMD ARGUMENT…` or `CMD-SHELL COMMAND`.
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval_ns: i64,
    /// How long one may take.
    pub timeout_ns: i64,
    /// Failures after which it is unhealthy.
    pub retries: i64,
    /// Time at the beginning in which failures don't count.
    pub start_period_ns: i64,
}
