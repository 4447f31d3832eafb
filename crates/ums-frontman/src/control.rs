//! What is said over the control socket: one JSON object a line, each request answered by one
//! line. Every request is idempotent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest line on the control socket. A Frontman with [`PORTS_MAX`] ports needs a tenth of it.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Most ports one Frontman listens on.
pub const PORTS_MAX: usize = 256;

/// Where connections to each of the system's ports are led.
pub type Upstreams = BTreeMap<u16, SocketAddr>;

/// What the agent asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How things stand.
    Status {},
    /// Keep connections, from now on, without leading them anywhere.
    Hold {},
    /// Lead held and new connections there.
    Lead {
        /// For each of its ports, where the service answers.
        upstreams: Upstreams,
    },
    /// Accept nothing more, drain, exit. A repeated request can shorten the time, not lengthen it.
    Retire {
        /// How long connections may go on before they are reset, seconds.
        drain_seconds: u64,
    },
}

/// What the Frontman answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response<S = Status> {
    /// Done; this is how things stand.
    Ok(Box<S>),
    /// Not done, and why.
    Error(String),
}

/// Which of its three modes a Frontman is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Connections are kept until there is a decision.
    Holding,
    /// Connections are led to the service.
    Leading,
    /// Nothing new is accepted, connections are drained.
    Retiring,
}

/// How a Frontman stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The service it stands for.
    pub service: String,
    /// The migration that wants it.
    pub owner: String,
    /// Its process id.
    pub pid: u32,
    /// Its mode.
    pub phase: Mode,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its limits.
    pub limits: Limits,
    /// What it has done so far.
    pub counts: Counts,
    /// When it started, seconds since the Unix epoch.
    pub started_at: u64,
    /// When it will retire by itself, or when its draining ends; seconds since the Unix epoch.
    pub ends_at: u64,
}

/// A port of the system that the Frontman serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The system's port, by which clients know the service.
    pub system_port: u16,
    /// Where the Frontman itself listens.
    pub listen: SocketAddr,
    /// Where connections are led, while they are.
    pub upstream: Option<SocketAddr>,
}

/// Bounds on what clients can make a Frontman keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Connections without an upstream at one time.
    pub hold_connections: usize,
    /// Bytes read ahead from all held connections together. At 0, or beyond it, data waits in the
    /// kernel's buffers, and TCP's window holds the client back: nothing is refused for it.
    pub hold_bytes: usize,
    /// How long a connection waits for an upstream, seconds.
    pub hold_seconds: u64,
    /// Connections being led at one time.
    pub lead_connections: usize,
    /// How long the Frontman lives after the last `hold` or `lead` that changed something, seconds.
    pub retire_after_seconds: u64,
    /// How long it drains when it retires by itself, seconds.
    pub drain_seconds: u64,
}

impl Limits {
    /// How long a connection waits for an upstream.
    pub fn hold(&self) -> Duration {
        Duration::from_secs(self.hold_seconds)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hold_connections: 1024,
            hold_bytes: 4 << 20,
            hold_seconds: 60,
            lead_connections: 4096,
            retire_after_seconds: 3600,
            drain_seconds: 30,
        }
    }
}

/// What has become of the connections. Each accepted connection ends in exactly one of the
/// totals, or is among `holding` and `leading`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Accepted.
    pub accepted: u64,
    /// Without an upstream now.
    pub holding: u64,
    /// Being led now.
    pub leading: u64,
    /// Led, and ended by client or service.
    pub finished: u64,
    /// Led, and broken off by a reset or an error on either side.
    pub broken: u64,
    /// Refused because there were too many.
    pub refused_bound: u64,
    /// Refused because no decision, or no upstream that answered, came in time.
    pub refused_time: u64,
    /// Refused because the Frontman retired without having anywhere to lead them.
    pub refused_retired: u64,
    /// Given up by the client while they were held.
    pub gone: u64,
    /// Reset because draining took too long.
    pub cut: u64,
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let lead: Request =
            serde_json::from_str(r#"{"lead":{"upstreams":{"80":"10.0.0.1:8080"}}}"#).unwrap();
        let upstreams = Upstreams::from([(80, "10.0.0.1:8080".parse().unwrap())]);
        assert_eq!(lead, Request::Lead { upstreams });
        let status: Request = serde_json::from_str(r#"{"status":{}}"#).unwrap();
        assert_eq!(status, Request::Status {});
        for bad in [
            r#"{"dance":{}}"#,
            r#"{"hold":{"x":1}}"#,
            r#"{"retire":{}}"#,
            "[]",
            "",
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }
}
