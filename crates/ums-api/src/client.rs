//! The client API: what the `ums` command, or a program in its place, asks of the Coordinator of its
//! own system, as JSON over HTTP/1.1 on the unix socket `<run_dir>/ums.sock`. The socket's owner and
//! mode are the authorization: who may open it may ask for everything here.
//!
//! A migration is asked for, then watched: `POST /v1/migrations` answers at once with its id, and
//! `GET /v1/migrations/{id}` tells how far it is. With `after` (a generation seen before) the answer
//! waits until something has changed, so a watcher needs no clock of its own.
//!
//! | method and path | request | response |
//! | --- | --- | --- |
//! | `GET /v1/hello` | | [`Hello`] |
//! | `GET /v1/services` | | `Vec<`[`ServiceView`]`>` |
//! | `POST /v1/services` | [`RunRequest`] | 201 [`Started`] |
//! | `GET /v1/services/{name}/image` | | [`Unpacking`] while `ums run` waits for an image; else 404 |
//! | `GET /v1/services/{name}` | | [`ServiceDetail`]; 404 when unknown |
//! | `DELETE /v1/services/{name}` | | `{}`; 409 while it migrates |
//! | `GET /v1/attendants` | | `Vec<`[`Attendant`]`>` |
//! | `GET /v1/peers` | | `Vec<`[`PeerView`]`>` |
//! | `POST /v1/plans` | [`PlanRequest`] | [`Plan`](ums_core::plan::Plan); nothing is changed on either system |
//! | `POST /v1/migrations` | [`MigrateRequest`] | 202 [`MigrationView`]; 404 service or peer unknown, 409 the service migrates already, 429 too many migrations at once |
//! | `GET /v1/migrations` | query [`HistoryQuery`] | `Vec<`[`MigrationView`]`>`, newest first |
//! | `GET /v1/migrations/{id}` | query [`WatchQuery`] | [`MigrationView`]; 404 when unknown |
//! | `POST /v1/migrations/{id}/abort` | [`AbortRequest`] | 202 [`MigrationView`]; 409 once it is committed or over |
//! | `GET /v1/migrations/{id}/resolve` | | [`ResolveView`] what is known here and what an operator may decide; 409 `not-needed` |
//! | `POST /v1/migrations/{id}/resolve` | [`ResolveRequest`] | 202 [`MigrationView`]; 409 when it is not needed, 400 when it is not confirmed |
//!
//! What the preflight refuses is not a problem document: the migration is accepted, ends as
//! *abandoned* before anything is frozen, and [`MigrationView::refusals`] says why.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use ums_core::facts::ServiceFacts;
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_core::preflight::{MigrateOptions, Refusal};
use ums_core::report::MigrationReport;
use ums_core::technique::{Approach, Technique};

pub use crate::agent::{
    Attendant, ImageSource, Login, RunRequest, ServiceStatus, ServiceView, Started, Unpacking,
};

/// File name of the socket in the Coordinator's run directory.
pub const SOCKET_NAME: &str = "ums.sock";

/// Version of this API; it changes when a client of the old one would be misled.
pub const API_VERSION: u32 = 1;

/// The largest request body that is read, bytes: a Specification with a long environment fits many
/// times over.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The largest response body, bytes: a history page of [`HISTORY_MAX`] reports fits.
pub const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest time that a watch waits for a change, milliseconds; a longer one is cut to it, so
/// that a connection to a vanished client is given up within it.
pub const WATCH_MS_MAX: u64 = 30_000;

/// The most migrations in one answer of the history.
pub const HISTORY_MAX: usize = 1000;

/// The longest reason given with an abort, bytes.
pub const REASON_BYTES_MAX: usize = 1024;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The system this Coordinator speaks for.
    pub system: SystemName,
    /// Version of its program.
    pub version: String,
    /// Version of this API ([`API_VERSION`] of the server).
    pub api: u32,
}

/// Asks for a service to be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The service, running on this system.
    pub service: ServiceName,
    /// The peer it shall run on.
    pub destination: SystemName,
    /// Forces an approach instead of the cheapest one that is feasible.
    #[serde(default)]
    pub approach: Option<Approach>,
    /// Forces a technique.
    #[serde(default)]
    pub technique: Option<Technique>,
    /// Refuse when a longer downtime is predicted, milliseconds.
    #[serde(default)]
    pub max_downtime_ms: Option<u64>,
    /// Go ahead although the move changes how the service behaves.
    #[serde(default)]
    pub accept_loss: bool,
    /// Who is to make the container at the destination: the name of an engine there, or `standalone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Of a plan: look how fast the service writes to its memory. With a longest downtime that is done anyway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub measure: bool,
}

impl MigrateRequest {
    /// What the preflight judges by.
    pub fn options(&self) -> MigrateOptions {
        MigrateOptions {
            max_downtime_ms: self.max_downtime_ms,
            technique: self.technique,
            approach: self.approach,
            accept_loss: self.accept_loss,
            engine: self.engine.clone(),
        }
    }
}

/// Asks what a migration would do; the same question, not acted upon.
pub type PlanRequest = MigrateRequest;

/// Asks for a migration to be given up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbortRequest {
    /// Why, for the report; at most [`REASON_BYTES_MAX`] bytes.
    #[serde(default)]
    pub reason: Option<String>,
}

/// What an operator may decide about a migration that was cut off at the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// At the source: its own frozen copy goes on, whatever became of the destination's.
    TakeBack,
    /// At the destination: the prepared copy is run, although the source can't be asked.
    Run,
    /// At the destination: what is there is ended and removed.
    Discard,
}

/// One choice, with what it does and what may come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The choice.
    pub choice: Resolution,
    /// What it does.
    pub effect: String,
    /// What may come of it at worst.
    pub risk: String,
}

/// What is known on this side of a migration that was cut off at the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveView {
    /// Which.
    pub migration_id: MigrationId,
    /// What was to move.
    pub service: ServiceName,
    /// From where.
    pub source: SystemName,
    /// To where.
    pub destination: SystemName,
    /// The system that answers.
    pub system: SystemName,
    /// What is known here, in words.
    pub known: String,
    /// For how long nothing more has been known, milliseconds.
    pub since_ms: u64,
    /// What the other side may be doing.
    pub other: String,
    /// What may be decided here.
    pub offers: Vec<Offer>,
}

/// Decides about a migration that was cut off at the commit. What it risks is told by
/// [`ResolveView`]; who asks has read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// What is decided.
    pub choice: Resolution,
    /// The second confirmation: the migration's id or its service's name.
    pub confirm: String,
}

/// Which migrations the history shall show.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    /// Only those of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// At most so many; [`HISTORY_MAX`] bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// When a watch shall answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchQuery {
    /// Answer when [`Progress::generation`] is greater than this; at once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Answer after so many milliseconds even if nothing has changed; [`WATCH_MS_MAX`] bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// A migration as it is now: the account so far, and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationView {
    /// What has happened. Final unless its outcome is `running`.
    pub report: MigrationReport,
    /// How far it is.
    pub progress: Progress,
    /// What the preflight of either system refused; empty when it refused nothing.
    pub refusals: Vec<Refusal>,
    /// When it was asked for, milliseconds since the Unix epoch by this system's clock.
    pub asked_at_ms: u64,
    /// Whether it is cut off at the commit, so that an operator of this system may decide with
    /// `ums resolve`.
    #[serde(default)]
    pub resolvable: bool,
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Grows by one at least with every change of the view.
    pub generation: u64,
    /// What is being done, in words for a person, such as `streaming memory`.
    pub phase: String,
    /// The step under way or the last one begun (the paper's number); `None` before the first.
    pub step: Option<u8>,
    /// Whether an abort was asked for and the steps are being compensated.
    pub aborting: bool,
    /// Moved so far on the data path, bytes.
    pub bytes: u64,
    /// Estimate of all that has to be moved, bytes; `None` while unknown.
    pub bytes_total: Option<u64>,
    /// Rate over the last second or so, bytes per second.
    pub bytes_per_second: u64,
    /// Since it was asked for, milliseconds.
    pub elapsed_ms: u64,
}

/// All that is known of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// As in the list.
    pub view: ServiceView,
    /// What its processes hold; `None` while it can't be inspected, because it arrives, has exited
    /// or is frozen.
    pub facts: Option<ServiceFacts>,
}

/// What a peer may do with this system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// It may send services here.
    Send,
    /// It may be sent services from here.
    Receive,
}

/// What became of the last attempt to reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerStatus {
    /// It answered, is who it should be and speaks our version.
    Ready,
    /// Nobody answered at its address.
    Unreachable,
    /// Somebody answered whose certificate is not the peer's.
    Untrusted,
    /// It speaks no version of the peer API that we speak.
    OtherVersion,
}

/// A peer as `ums peer list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// Its name, which its certificate must carry.
    pub name: SystemName,
    /// Where its Coordinator listens.
    pub address: SocketAddr,
    /// What it may do.
    pub allow: Vec<Permission>,
    /// Whether it can be used.
    pub status: PeerStatus,
    /// Version of its program, when it answered.
    pub version: Option<String>,
    /// Cause and remedy when it can't be used.
    pub detail: Option<String>,
}

/// Paths, so that client and server can't disagree.
pub mod paths {
    use ums_core::id::{MigrationId, ServiceName};

    use super::{HistoryQuery, WatchQuery};

    /// `GET`: who answers.
    pub const HELLO: &str = "/v1/hello";
    /// `GET` lists services, `POST` runs one.
    pub const SERVICES: &str = "/v1/services";
    /// `GET` facts of this system's node.
    pub const FACTS: &str = "/v1/facts";
    /// `GET` lists what outlives migrations on purpose.
    pub const ATTENDANTS: &str = "/v1/attendants";
    /// `GET` lists peers.
    pub const PEERS: &str = "/v1/peers";
    /// `POST` makes a plan.
    pub const PLANS: &str = "/v1/plans";
    /// `POST` begins a migration, `GET` is the history.
    pub const MIGRATIONS: &str = "/v1/migrations";
    /// One service, as a route pattern.
    pub const SERVICE_ROUTE: &str = "/v1/services/{name}";
    /// How far a service's image is, as a route pattern.
    pub const IMAGE_ROUTE: &str = "/v1/services/{name}/image";
    /// One migration, as a route pattern.
    pub const MIGRATION_ROUTE: &str = "/v1/migrations/{id}";
    /// Abort of one migration, as a route pattern.
    pub const ABORT_ROUTE: &str = "/v1/migrations/{id}/abort";

    /// Decision about one migration, as a route pattern.
    pub const RESOLVE_ROUTE: &str = "/v1/migrations/{id}/resolve";

    /// `/v1/services/{name}`
    pub fn service(name: &ServiceName) -> String {
        format!("{SERVICES}/{name}")
    }

    /// `/v1/services/{name}/image`
    pub fn image(name: &ServiceName) -> String {
        format!("{SERVICES}/{name}/image")
    }

    /// `/v1/migrations/{id}`, with the query of a watch.
    pub fn migration(id: MigrationId, query: &WatchQuery) -> String {
        let after = query.after.map(|after| format!("after={after}"));
        let wait = query.wait_ms.map(|wait| format!("wait_ms={wait}"));
        with_query(format!("{MIGRATIONS}/{id}"), [after, wait])
    }

    /// `/v1/migrations/{id}/abort`
    pub fn abort(id: MigrationId) -> String {
        format!("{MIGRATIONS}/{id}/abort")
    }

    /// `/v1/migrations/{id}/resolve`
    pub fn resolve(id: MigrationId) -> String {
        format!("{MIGRATIONS}/{id}/resolve")
    }

    /// `/v1/migrations`, with the query of the history.
    pub fn history(query: &HistoryQuery) -> String {
        // A service's name is a DNS label: nothing in it needs escaping.
        let service = query
            .service
            .as_ref()
            .map(|service| format!("service={service}"));
        let limit = query.limit.map(|limit| format!("limit={limit}"));
        with_query(MIGRATIONS.to_owned(), [service, limit])
    }

    fn with_query(path: String, parts: [Option<String>; 2]) -> String {
        let query: Vec<String> = parts.into_iter().flatten().collect();
        if query.is_empty() {
            path
        } else {
            format!("{path}?{}", query.join("&"))
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn requests_reject_what_they_do_not_know() {
        let known = r#"{"service":"redis","destination":"b","max_downtime_ms":500}"#;
        let request: MigrateRequest = serde_json::from_str(known).expect("a known request");
        assert_eq!(request.max_downtime_ms, Some(500));
        let unknown = r#"{"service":"redis","destination":"b","downtime":500}"#;
        let error = serde_json::from_str::<MigrateRequest>(unknown).expect_err("an unknown field");
        assert!(
            error.to_string().contains("unknown field `downtime`"),
            "{error}"
        );
        assert!(serde_json::from_str::<AbortRequest>(r#"{"force":true}"#).is_err());
        let name = r#"{"service":"../etc","destination":"b"}"#;
        assert!(serde_json::from_str::<MigrateRequest>(name).is_err());
    }

    #[test]
    fn paths_carry_their_queries() {
        let id = "0190f0f0-0000-7000-8000-000000000001"
            .parse()
            .expect("an id");
        let watch = WatchQuery {
            after: Some(3),
            wait_ms: Some(1000),
        };
        assert_eq!(
            paths::migration(id, &watch),
            format!("/v1/migrations/{id}?after=3&wait_ms=1000")
        );
        assert_eq!(
            paths::migration(id, &WatchQuery::default()),
            format!("/v1/migrations/{id}")
        );
        let query = HistoryQuery {
            service: Some("redis".parse().expect("a name")),
            limit: None,
        };
        assert_eq!(paths::history(&query), "/v1/migrations?service=redis");
        assert_eq!(paths::history(&HistoryQuery::default()), "/v1/migrations");
    }
}
