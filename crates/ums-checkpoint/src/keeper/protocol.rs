//! What an agent asks of a keeper.
//!
//! A keeper outlives the agent that started it, and the release that it is of: a later agent talks to
//! it. So each answer tells the version of the protocol; what a later version adds to an answer or to an
//! image is passed over by who does not know it and has a default for who misses it; and a request that
//! a keeper does not understand is answered, not cut off. A request that an earlier keeper would
//! misunderstand, because it passes over what matters, needs a new name.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ums_core::budget::Span;

use crate::carry::Lost;
use crate::criu::page_server::PageOwner;

/// Version of this protocol. 1 hangs up on what it does not understand, and does not tell its version; 2
/// knows no [`MemoryBy::Agent`].
pub const PROTOCOL: u32 = 3;
/// The first version whose keepers leave memory to who asks for the dump.
pub const PROTOCOL_OF_MEMORY_BY_AGENT: u32 = 3;

fn first_protocol() -> u32 {
    1
}

/// What a keeper is started with; it does not change while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeeperConfig {
    /// Name of the service, for messages.
    pub service: String,
    /// Where the keeper listens.
    pub socket: PathBuf,
    /// The C/R bundle's `bin`.
    pub bundle_bin: PathBuf,
    /// Program and first arguments that run the guard: this program's `guard` command.
    pub guard: Vec<String>,
    /// Program and first arguments that run the log's pump: this program's `log` command.
    pub log_pump: Vec<String>,
    /// Path of the control groups below their hierarchies.
    pub cgroup: String,
    /// Memory limit of the service, bytes.
    pub memory_limit_bytes: Option<u64>,
    /// The image's root filesystem: lowest layer of the overlay, never written.
    pub lower: PathBuf,
    /// What the service changed: upper layer.
    pub upper: PathBuf,
    /// Overlayfs's own directory, on the same file system as `upper`.
    pub work: PathBuf,
    /// Where the overlay is mounted, in the keeper's mount namespace only.
    pub merged: PathBuf,
    /// Where the tmpfs for `/dev/shm` is mounted, in the keeper's mount namespace only.
    pub shm: PathBuf,
    /// Size of that tmpfs, bytes.
    pub shm_bytes: u64,
    /// Lines of the devices cgroup (version 1) that allow what a container may use.
    pub devices: Vec<String>,
    /// Where standard output and standard error go.
    pub log: PathBuf,
    /// Bind mounts of the container.
    pub mounts: Vec<ExternalMount>,
    /// Whether a container runtime makes the container, which then comes with [`Request::Place`]: nothing of it is
    /// made by the keeper but the tmpfs for `/dev/shm`, and a network namespace in case the runtime has none. Of what is
    /// said above `cgroup`, the layers, `merged`, the memory limit, the devices and the log don't count then; there must
    /// be nothing at `cgroup`.
    #[serde(default)]
    pub placed: bool,
    /// What somebody else has made of the container: it runs, and is not made by this keeper. `lower`,
    /// `work`, `shm` and `devices` don't count then, and of `log` the place alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// A container that somebody else has made and whose processes run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// Its init, in this PID namespace.
    pub init: i32,
    /// When that began ([`began`](crate::keeper::adopted::began)): another process may have its id.
    pub began: u64,
    /// CRIU's names of what its standard output and standard error were made.
    pub stdio: [String; 2],
    /// Small files that are mounted one by one: each is copied while the service is frozen.
    #[serde(default)]
    pub files: Vec<CopiedFile>,
}

/// A file that is mounted by itself, and its copy in a directory that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopiedFile {
    /// The file.
    pub source: PathBuf,
    /// Where its copy is.
    pub copy: PathBuf,
}

/// A bind mount that CRIU leaves to us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalMount {
    /// Path inside the container.
    pub mountpoint: String,
    /// Name in the image.
    pub key: String,
    /// What is mounted there on this node.
    pub source: PathBuf,
}

/// Name of the image file that carries [`CheckpointInfo`].
pub const INFO_NAME: &str = "ums-checkpoint.json";

/// What the destination's keeper has to know of the source's container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// CRIU's names of the pipes that are standard output and standard error.
    pub stdio: Vec<String>,
    /// All that has pages, or a pagemap without pages.
    pub owners: BTreeSet<PageOwner>,
}

/// A request. Descriptors that go with it are named in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What are you doing?
    Status,
    /// Create the container with runc from an OCI bundle and start it.
    Start {
        /// The bundle: a directory with `config.json`.
        bundle: PathBuf,
    },
    /// Checkpoint it. Descriptors: images directory, page-server socket, and a [`handshake`](super::handshake)
    /// if somebody has to act at the moment of the freeze.
    Dump(DumpRequest),
    /// Give up a checkpoint that is under way, and let the service run on. Returns when none is under
    /// way any more; one that is complete stays so.
    Cut,
    /// Let it run on after a freeze.
    Thaw,
    /// Kill it without letting it execute another instruction.
    Kill,
    /// A restore will come: have ready what can be. Unknown to keepers of an earlier release, and only
    /// saves time.
    Prepare,
    /// From a container runtime that is restoring it, in CRIU's place: take a CRIU that it places. Descriptor: the
    /// container's network namespace, if the runtime has one. What follows on this connection is
    /// [`placing`](super::placing)'s. Unknown to keepers of an earlier release, who are never asked.
    Place(PlaceRequest),
    /// Leave a container that runs, with all its pages, to the container runtime that has made it, and end.
    Leave,
    /// Leave a container whose service has moved to the engine that has made it, and end: its init stays frozen, without its
    /// memory and alone, and never executes an instruction again. The engine keeps its network meanwhile.
    Vacate,
    /// Restore it and hold it. Descriptors: images directory, stored pages, and where pages have stayed at the
    /// source (`store::away`) a stream over which they come ([`supply`](crate::supply)).
    Restore(RestoreRequest),
    /// Let the held one execute.
    Resume,
    /// Kill what there is, and end.
    Quit,
}

/// What a container runtime has told its CRIU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceRequest {
    /// Root filesystem, mounted.
    pub root: String,
    /// Its mounts: names in an image, and what is mounted there.
    pub mounts: Vec<(String, String)>,
    /// Where CRIU will find the tmpfs for `/dev/shm`.
    pub shm: PathBuf,
}

/// What a dump needs beside its descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpRequest {
    /// What happens to TCP connections.
    pub connections: Connections,
    /// How long the service may stand still for what does not depend on its size, milliseconds: until
    /// every task is frozen and CRIU has it, and whenever CRIU does nothing. After that the checkpoint
    /// is given up.
    #[serde(default = "default_freeze_ms")]
    pub freeze_ms: u64,
    /// Who reads the service's private memory.
    #[serde(default)]
    pub memory: MemoryBy,
}

/// Who reads the private memory of a service that is dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBy {
    /// CRIU, which sends all of it over its page socket.
    #[default]
    Criu,
    /// Who has asked for the dump, from the moment at which CRIU opens its page socket: the service is
    /// frozen until it is thawed. CRIU sends only what is nobody's private memory.
    Agent,
}

/// What a freeze may take unless somebody says otherwise, milliseconds.
pub const FREEZE_MS: u64 = 5_000;

fn default_freeze_ms() -> u64 {
    FREEZE_MS
}

/// What happens to the established TCP connections of a service that moves. Dump and restore must
/// agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connections {
    /// They move along (CRIU's `--tcp-established`). Those that the service has not accepted yet
    /// can't (`--skip-in-flight`).
    Carry,
    /// The service finds them closed (`--tcp-close`).
    Close,
}

/// What a restore needs beside its descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// Bytes of stored pages.
    pub lazy_bytes: u64,
    /// Whether pages are installed by userfaultfd; else they are in page files.
    pub lazy: bool,
    /// What was done with TCP connections at the dump.
    pub connections: Connections,
}

/// Name of the image file that carries the index of stored pages.
pub const INDEX_NAME: &str = "ums-index";

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The state after the request.
    Done(Status),
    /// It could not be done; the state is as `status` says.
    Failed {
        /// Cause and remedy.
        reason: String,
        /// The state now.
        status: Status,
    },
}

/// What a keeper knows of its container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the protocol that the keeper speaks: [`PROTOCOL`] of its release.
    #[serde(default = "first_protocol")]
    pub protocol: u32,
    /// What the container is doing.
    pub phase: Phase,
    /// The keeper's process id.
    pub keeper_pid: i32,
    /// The descriptor of the network namespace in the keeper.
    pub netns_fd: i32,
    /// The container's init.
    pub init_pid: Option<i32>,
    /// Pages still to be installed.
    pub pages_missing: u64,
    /// Whether any of them is still at the source: the service depends on it.
    #[serde(default)]
    pub depends_on_source: bool,
    /// How long the service has run, or ran, while its source was needed, microseconds.
    #[serde(default)]
    pub at_risk_us: Option<u64>,
    /// Why the service was killed, if pages of it could not be had.
    #[serde(default)]
    pub pages_lost: Option<String>,
    /// When the freeze of the last dump began, nanoseconds of CLOCK_MONOTONIC.
    pub frozen_at_ns: Option<u64>,
    /// When the last dump was over, same clock.
    pub dumped_at_ns: Option<u64>,
    /// When the service was let go at the end of the last restore, same clock.
    pub resumed_at_ns: Option<u64>,
    /// How long the last restore took until the container was held, microseconds.
    pub restore_us: Option<u64>,
    /// Where the time went in the last dump from its freeze on, or in the last restore.
    #[serde(default)]
    pub spans: Vec<Span>,
    /// What the last restore could not set again.
    #[serde(default)]
    pub lost: Vec<Lost>,
    /// Whether a container runtime has made the container, and waits with it for the restore.
    #[serde(default)]
    pub placed: bool,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Everything but its processes is there.
    Created,
    /// It executes.
    Running,
    /// It is being checkpointed.
    Dumping,
    /// Its checkpoint is complete and it is frozen by the kernel.
    Frozen,
    /// It is being restored.
    Restoring,
    /// It is restored and has not executed an instruction.
    Held,
    /// Its init is gone.
    Dead {
        /// Exit code, or 128 plus the signal.
        code: i32,
    },
}

#[cfg(test)]
mod test {
    use super::*;

    /// What a keeper of the first version answers.
    const FIRST: &str = r#"{"Done":{"phase":"Running","keeper_pid":7,"netns_fd":5,"init_pid":9,
        "pages_missing":0,"frozen_at_ns":null,"dumped_at_ns":null,"resumed_at_ns":1,"restore_us":2}}"#;

    #[test]
    fn an_earlier_keeper_is_understood() {
        let Reply::Done(status) = serde_json::from_str(FIRST).unwrap() else {
            panic!("it is done");
        };
        assert_eq!((status.protocol, status.phase), (1, Phase::Running));
    }

    #[test]
    fn what_a_later_release_adds_is_passed_over() {
        let later = FIRST.replace(
            "\"phase\"",
            "\"mood\":{\"good\":true},\"protocol\":9,\"phase\"",
        );
        let Reply::Done(status) = serde_json::from_str(&later).unwrap() else {
            panic!("it is done");
        };
        assert_eq!((status.protocol, status.phase), (9, Phase::Running));
        let info = r#"{"stdio":["pipe:[1]"],"owners":[],"weather":"fine"}"#;
        let info: CheckpointInfo = serde_json::from_str(info).unwrap();
        assert_eq!(info.stdio, ["pipe:[1]"]);
    }
}
