//! The Migration Interface's API: what a Coordinator asks of the agent of its own system, as JSON
//! over HTTP/1.1 on a unix socket.
//!
//! Every operation of a migration is keyed by its [`MigrationId`] in the path and idempotent: a
//! repeated call joins one that is under way, or returns what the first one returned. A call
//! returns when the operation is over; progress is read from [`progress`](paths).
//!
//! | method and path | request | response |
//! | --- | --- | --- |
//! | `GET /v1/facts` | | `NodeFacts` |
//! | `GET /v1/services` | | `Vec<`[`ServiceView`]`>` |
//! | `POST /v1/services` | [`RunRequest`] | [`Started`] |
//! | `GET /v1/services/{name}` | | `ServiceFacts` |
//! | `GET /v1/services/{name}/image` | | [`Unpacking`] while a service's image is being unpacked |
//! | `GET /v1/services/{name}/writing` | | `Writing`: measured for some tenths of a second |
//! | `DELETE /v1/services/{name}` | | `{}`; refused while its gate is shut |
//! | `GET /v1/attendants` | | `Vec<`[`Attendant`]`>` what outlives migrations on purpose |
//! | source side | | |
//! | `POST /v1/migrations/{id}/block` | [`OfService`] | `{}` control messages are refused from now on |
//! | `POST /v1/migrations/{id}/unblock` | [`OfService`] | `{}` |
//! | `POST /v1/migrations/{id}/open` | [`OpenRequest`] | `{}` data path open, first pass of files copied |
//! | `POST /v1/migrations/{id}/frontman/hold` | [`OfService`] | `{}` Frontman has the endpoint and holds |
//! | `POST /v1/migrations/{id}/frontman/lead` | [`LeadRequest`] | `{}` it leads clients to the new place |
//! | `POST /v1/migrations/{id}/frontman/yield` | [`OfService`] | `{}` endpoint is the service's again; the Frontman hands over what it held and retires |
//! | `POST /v1/migrations/{id}/checkpoint` | [`CheckpointRequest`] | [`Checkpointed`] frozen by the cgroup, everything sent, delivery verified by the destination |
//! | `POST /v1/migrations/{id}/confirm` | [`OfService`] | `{}` nobody has told the frozen container's engine anything; asked before the commit |
//! | `POST /v1/migrations/{id}/thaw` | [`OfService`] | `{}` the service runs on at the source |
//! | `POST /v1/migrations/{id}/delete-source` | [`OfService`] | `{}` the frozen source container is destroyed (never thawed) |
//! | destination side | | |
//! | `POST /v1/migrations/{id}/create` | [`CreateRequest`] | [`Created`] |
//! | `POST /v1/migrations/{id}/restore` | `{}` | [`Restored`] restored and held before its first instruction |
//! | `POST /v1/migrations/{id}/run` | `{}` | [`Running`] it executes from now on |
//! | `POST /v1/migrations/{id}/discard` | `{}` | `{}` nothing is left of it; refused after `run` |
//! | `POST /v1/migrations/{id}/settle` | `{}` | `{}` after all pages are in: the migration's working state is dropped, the service stays |
//! | both | | |
//! | `GET /v1/migrations` | | `Vec<`[`MigrationState`]`>` what this agent holds, for the Coordinator's reconciler |
//! | `GET /v1/migrations/{id}` | | [`MigrationState`]; 404 when unknown |

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use ums_core::budget::Span;
use ums_core::facts::{Loss, NodeFacts, Obstacle};
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_core::report::Bytes;
use ums_core::specification::{PublishedPort, Specification, Volume};
use ums_core::technique::Technique;

/// A process that outlives a migration on purpose, with its owner and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attendant {
    /// What it is, such as `frontman`.
    pub kind: String,
    /// The service it is there for.
    pub service: ServiceName,
    /// The migration that wants it.
    pub owner: String,
    /// What it does now, in its own word.
    pub state: String,
    /// What leads where, such as `6379 → 192.0.2.20:6379`.
    pub leads: Vec<String>,
    /// When it ends by itself, milliseconds since the Unix epoch.
    pub ends_at_ms: u64,
    /// Its process id.
    pub pid: u32,
}

/// What `ums run` asks for: a service to be created and started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Name of the service.
    pub name: ServiceName,
    /// Absolute path on the agent's host of the root filesystem to start from; it is copied into
    /// the image store unless it is there already. Empty where `image` is given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rootfs: String,
    /// The image to start from, and whose configuration holds where nothing else is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// Program and arguments; of an image with an entrypoint, its arguments. Empty is what the image says.
    pub command: Vec<String>,
    /// In place of the image's entrypoint and command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// Environment, `NAME=value` each; added to the image's.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory inside the container; the image's, or `/`, when empty.
    #[serde(default)]
    pub cwd: String,
    /// `USER[:GROUP]`, numbers or names of the root filesystem's own; in place of the image's, and of `uid` and
    /// `gid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
    /// Memory limit, bytes.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// Processors that it may use, in billionths of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// Labels, added to the image's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Address on the service network; one that follows from the names of system and service when absent.
    #[serde(default)]
    pub address: Option<std::net::Ipv4Addr>,
    /// Published ports.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
}

/// An image that a service is to be started from. The agent reads it: it has the image store, and a registry
/// need not send to anybody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    /// Its reference (`ums_image::Reference`), with paths on the agent's host.
    pub reference: String,
    /// Whether its registry may be spoken to without TLS.
    #[serde(default)]
    pub plain_http: bool,
    /// Who asks the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
}

/// Who asks a registry. It is kept nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No log tells a password.
        out.debug_struct("Login")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A service that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The service.
    #[serde(flatten)]
    pub view: ServiceView,
    /// What its image asks for that is not done here, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How far an image is that a service waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacking {
    /// Read so far of its layers, as they are stored, bytes.
    pub bytes: u64,
    /// All of them, bytes.
    pub bytes_total: u64,
}

/// A service as `ums list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its Specification.
    pub specification: Specification,
    /// What it is doing.
    pub status: ServiceStatus,
    /// Process id of its init, in the agent's PID namespace, while it has one.
    pub init_pid: Option<i32>,
    /// The migration that holds its gate shut, if one does.
    pub migration: Option<MigrationId>,
    /// Where clients reach it: `address:port` for each published port, in order.
    pub endpoints: Vec<SocketAddr>,
    /// What could not be set again when it came here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<Loss>,
    /// What it has in memory, bytes, while it has a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What its container engine has of it; absent where UMS has started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineView>,
    /// Pages of its memory that come in while it runs; `None` where its keeper does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<IncomingPages>,
}

/// Pages of a service's memory that come in while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IncomingPages {
    /// How many are still to be installed.
    pub missing: u64,
    /// How long it has run, or ran, while some of them were at the system that it came from, microseconds;
    /// `None` where none ever were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_risk_us: Option<u64>,
    /// Why it was killed, if some of them could not be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// What a container engine has of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineView {
    /// The engine's name on its node.
    pub name: String,
    /// What it has done with the container that stands in the way of a move.
    pub obstacles: Vec<Obstacle>,
}

/// What a service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceStatus {
    /// It runs.
    Running,
    /// It is frozen for a migration, or waits in the freeze for its checkpoint to be whole.
    Frozen,
    /// It is being received, or started for the first time, and has not executed an instruction here.
    Arriving,
    /// Its init has exited by itself.
    Exited,
    /// Its container engine holds it still.
    Paused,
}

/// Names the service that an operation is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfService {
    /// The service.
    pub service: ServiceName,
}

/// Where and how the data path is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataEndpoint {
    /// Address of the destination agent's data path.
    pub address: SocketAddr,
    /// The system that must be found there (name in its certificate).
    pub system: SystemName,
    /// One-time permit, 64 hexadecimal digits; worthless after its first use and without the
    /// certificate of the source.
    pub permit: String,
}

/// Opens the data path and copies files for the first time, while the service runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// The service.
    pub service: ServiceName,
    /// Where to send.
    pub endpoint: DataEndpoint,
    /// Whether the destination lacks the image, so that it is sent too.
    pub send_image: bool,
    /// Where the destination's end of a tunnel is, if it has one: packets of established
    /// connections are led there.
    #[serde(default)]
    pub tunnel: Option<DataEndpoint>,
    /// How memory moves: with pre-copy it goes over in rounds meanwhile, where it can.
    #[serde(default = "stop_and_copy")]
    pub technique: Technique,
}

fn stop_and_copy() -> Technique {
    Technique::StopAndCopy
}

/// Freezes the service, checkpoints it and streams everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// The service.
    pub service: ServiceName,
    /// How memory moves.
    pub technique: Technique,
}

/// The checkpoint is whole at the destination, and the service frozen at the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointed {
    /// When the freeze began, nanoseconds of this host's CLOCK_MONOTONIC.
    pub frozen_at_ns: u64,
    /// When CRIU had finished and every page was on its way, same clock.
    pub dumped_at_ns: u64,
    /// When the destination had confirmed the whole stream, same clock.
    pub delivered_at_ns: u64,
    /// BLAKE3 over the stream, on which both sides agreed.
    pub digest: String,
    /// What was moved.
    pub bytes: Bytes,
    /// Rounds before the freeze.
    pub rounds: u32,
    /// Where the time between the first and the last of these moments went.
    #[serde(default)]
    pub spans: Vec<Span>,
}

/// Where the Frontman shall lead clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeadRequest {
    /// The service.
    pub service: ServiceName,
    /// For each published port, in the Specification's order, where it answers now.
    pub endpoints: Vec<SocketAddr>,
}

/// Creates the container that will receive the service: everything but its processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// What to create.
    pub specification: Specification,
    /// The system whose agent may connect to the data path.
    pub source: SystemName,
    /// Upper bound of the memory that will arrive, bytes; more is refused on the stream.
    pub memory_bytes_max: u64,
}

/// The container stands, its name, address and ports are taken, its data path listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// Port of the data path on this system's address, and the permit.
    pub data_port: u16,
    /// One-time permit.
    pub permit: String,
    /// Whether the image has to be sent.
    pub image_needed: bool,
    /// Port on this system for each published port of the service.
    pub endpoints: Vec<SocketAddr>,
    /// The end of a tunnel for established connections, if this system takes part in one.
    #[serde(default)]
    pub tunnel: Option<TunnelEnd>,
}

/// Where a tunnel ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelEnd {
    /// UDP port on this system's address.
    pub port: u16,
    /// One-time permit, 64 hexadecimal digits.
    pub permit: String,
}

/// The service is restored and held before its first instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// How long CRIU took, microseconds.
    pub restore_us: u64,
    /// Digest of the stream it was restored from.
    pub digest: String,
    /// Where the time went.
    #[serde(default)]
    pub spans: Vec<Span>,
}

/// The service executes at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// From the arrival of `run` at the agent to the service's first instruction, microseconds.
    pub resume_us: u64,
    /// What could not be set again here.
    #[serde(default)]
    pub losses: Vec<Loss>,
}

/// Which side of a migration an agent is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It sends.
    Source,
    /// It receives.
    Destination,
}

/// How far the agent is with a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Source: gate shut, nothing else done. Destination: container created, waiting for data.
    Prepared,
    /// Files are being copied, the service runs.
    Copying,
    /// The service is frozen and being checkpointed.
    Checkpointing,
    /// Everything is at the destination and verified.
    Delivered,
    /// Destination: restored, held before the first instruction.
    Held,
    /// Destination: the service runs, pages are still being installed.
    Installing,
    /// Nothing is left to do.
    Settled,
    /// It failed; `error` says why. Source: the service is as `frozen` says.
    Failed,
}

/// What an agent knows of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationState {
    /// Which.
    pub id: MigrationId,
    /// The service.
    pub service: ServiceName,
    /// Our side.
    pub role: Role,
    /// How far.
    pub phase: Phase,
    /// Source: when the service was last frozen for a checkpoint, whether or not it still is;
    /// nanoseconds of this host's CLOCK_MONOTONIC.
    pub frozen_at_ns: Option<u64>,
    /// Moved so far.
    pub bytes: Bytes,
    /// Source: the last round of pre-copy that was begun.
    #[serde(default)]
    pub round: Option<Round>,
    /// Pages still to be installed at the destination.
    pub pages_pending: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// A round of pre-copy: memory that is sent while the service runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// From 1 on.
    pub number: u32,
    /// What it sends, bytes.
    pub bytes: u64,
}

/// Node facts travel between Coordinators too, so that each can judge the other.
pub type Facts = NodeFacts;

/// Path helpers, so that client and server can't disagree.
pub mod paths {
    use ums_core::id::{MigrationId, ServiceName};

    /// `/v1/services/{name}`
    pub fn service(name: &ServiceName) -> String {
        format!("/v1/services/{name}")
    }

    /// `/v1/services/{name}/image`
    pub fn image(name: &ServiceName) -> String {
        format!("/v1/services/{name}/image")
    }

    /// `/v1/services/{name}/writing`
    pub fn writing(name: &ServiceName) -> String {
        format!("/v1/services/{name}/writing")
    }

    /// `/v1/migrations/{id}`
    pub fn progress(id: MigrationId) -> String {
        format!("/v1/migrations/{id}")
    }

    /// `/v1/migrations/{id}/{operation}`
    pub fn operation(id: MigrationId, operation: &str) -> String {
        format!("/v1/migrations/{id}/{operation}")
    }
}
