//! The peer API: what Coordinators ask of each other, as JSON over HTTP/1.1 and mutual TLS 1.3.
//! Who asks is read from the certificate, never from a message.
//!
//! `{v}` is the version that both speak (`v1`, `v2`): agreed on with [`Hello`], which is asked for by the one path
//! that never changes, and kept for a migration in both journals, so that one goes on as it began when a program
//! is replaced meanwhile.
//!
//! | method and path | request | response | served by |
//! | --- | --- | --- | --- |
//! | `GET /peer/v1/hello?service=NAME` | | [`Hello`] | both |
//! | `POST /peer/{v}/migrations/{id}/reserve` | [`ReserveRequest`] | [`ReserveAnswer`] | destination |
//! | `POST /peer/{v}/migrations/{id}/renew` | `{}` | [`View`] the lease begins anew | destination |
//! | `POST /peer/{v}/migrations/{id}/create` | `{}` | [`CreateAnswer`] | destination |
//! | `POST /peer/{v}/migrations/{id}/restore` | [`RestoreRequest`] | [`RestoreAnswer`] | destination |
//! | `POST /peer/{v}/migrations/{id}/commit` | `{}` | [`CommitAnswer`]; 409 `lost`: never executed and never will be; `outcome-unknown`, 409 `discarded`: may have executed, and a person is needed | destination |
//! | `POST /peer/{v}/migrations/{id}/abort` | `{}` | `{}` nothing is left of it; 409 `committed` | destination |
//! | `POST /peer/{v}/migrations/{id}/losses` | `{}` | [`LossesAnswer`]; from v2 on | destination |
//! | `POST /peer/{v}/migrations/{id}/spans` | `{}` | [`SpansAnswer`]; from v2 on | destination |
//! | `POST /peer/{v}/migrations/{id}/pages` | `{}` | [`PagesAnswer`]; from v2 on, asked where pages have stayed at the source | destination |
//! | `POST /peer/{v}/migrations/{id}/close` | [`CloseRequest`]; `{}` in v1 | `{}` | destination |
//! | `GET /peer/{v}/migrations/{id}` | | [`View`]; 404 when unknown | destination |
//! | `GET /peer/{v}/decisions/{id}` | | [`DecisionAnswer`] | source |
//!
//! Every request may be repeated: an answer that was lost is given again. Unknown fields are
//! rejected on both sides, so a message means the same to both or is refused. What is said to a peer of an earlier
//! version is made for it: a field that only tells is left out ([`ReserveRequest::in_version`]), and a migration that
//! needs what the version has no word for is refused before anything is touched ([`version_for`]).

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use ums_core::budget::Span;
use ums_core::facts::{Loss, NodeFacts, ServiceFacts};
use ums_core::id::{ServiceName, SystemName};
use ums_core::preflight::Refusal;
use ums_core::report::Bytes;
use ums_core::technique::{Approach, Technique};

use crate::agent::TunnelEnd;

/// Versions of this API that this program speaks, the oldest first.
///
/// 1 is the first release's. 2 has pages that stay at the source, says what was chosen, and tells at the end where
/// the time went and what could not be set again.
pub const VERSIONS: [u32; 2] = [1, 2];

/// The newest version that both speak.
pub fn agreed(ours: &[u32], theirs: &[u32]) -> Option<u32> {
    let common = ours.iter().filter(|version| theirs.contains(version));
    common.max().copied()
}

/// The version that a migration by this technique needs.
pub fn version_for(technique: Technique) -> u32 {
    if technique.leaves_pages() { 2 } else { 1 }
}

/// Application protocol in the TLS handshake.
pub const ALPN: &[u8] = b"http/1.1";

/// The largest body of a request or an answer, bytes: facts and a Specification with a long
/// environment fit many times over.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Who answers, and what it is like there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    // Fields may be added here by later versions: it is what tells the versions.
    /// Versions it speaks.
    pub versions: Vec<u32>,
    /// The system.
    pub system: SystemName,
    /// Version of its program.
    pub program: String,
    /// Whether its policy lets the asking system send services to it.
    pub you_may_send: bool,
    /// Its node; `None` while its Migration Interface does not answer.
    pub facts: Option<NodeFacts>,
}

/// Asks for a reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// The node it comes from.
    pub source: NodeFacts,
    /// The service, with its Specification.
    pub service: ServiceFacts,
    /// At which level it moves. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approach: Option<Approach>,
    /// How its memory moves. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub technique: Option<Technique>,
}

impl ReserveRequest {
    /// The same for a peer with which this version was agreed on, without what it has no word for and can do
    /// without.
    pub fn in_version(self, version: u32) -> Self {
        match version {
            1 => Self {
                approach: None,
                technique: None,
                ..self
            },
            _ => self,
        }
    }

    /// Whether this is all that the version has words for.
    pub fn is_of(&self, version: u32) -> bool {
        version > 1 || (self.approach, self.technique) == (None, None)
    }
}

/// Whether a reservation was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveAnswer {
    /// Why not; empty when it was.
    pub refusals: Vec<Refusal>,
    /// How long it lives without a word from the source, milliseconds.
    pub lease_ms: u64,
}

/// The container stands, and data may be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateAnswer {
    /// Port of the data path, at the peer's address.
    pub data_port: u16,
    /// One-time permit.
    pub permit: String,
    /// Whether the image has to be sent.
    pub image_needed: bool,
    /// Where the service will answer, for each published port.
    pub endpoints: Vec<SocketAddr>,
    /// The end of a tunnel for established connections, if the destination takes part in one.
    #[serde(default)]
    pub tunnel: Option<TunnelEnd>,
    /// How long the destination took, microseconds, so that the source can tell its own time from
    /// the network's.
    pub processing_us: u64,
}

/// All is delivered: restore it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// BLAKE3 over the stream, as the source's agent knows it.
    pub digest: String,
}

/// *Prepared*: restored, held, and durably so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreAnswer {
    /// Digest of the stream it was restored from.
    pub digest: String,
    /// How long the destination took, microseconds.
    pub processing_us: u64,
}

/// The service executes at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitAnswer {
    /// How long the destination took for this answer, microseconds.
    pub processing_us: u64,
    /// How long the service had been executing when this answer was sent, microseconds. A repeated
    /// answer says more, so the moment of the first instruction is known whichever answer arrives.
    pub running_for_us: u64,
}

/// What the destination could not set again of a service that executes there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossesAnswer {
    /// Each once.
    pub losses: Vec<Loss>,
}

/// Where the downtime went, as far as the destination was at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpansAnswer {
    /// In their order.
    pub spans: Vec<Span>,
}

/// How far the memory of a service is that executes already, while pages of it stay at the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesAnswer {
    /// Pages that are still to come.
    pub missing: u64,
    /// How long the service has run, or ran, while the source was needed, microseconds.
    pub at_risk_us: Option<u64>,
    /// Why the service is gone there, if it is: pages can't be had, or nobody holds it any more.
    pub lost: Option<String>,
}

/// How far the destination is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// Name of the receiver's state.
    pub state: String,
}

/// What the source has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// It has committed: run the service.
    Committed,
    /// It has not and never will: discard. Also the answer for an id it does not know.
    Abandoned,
    /// It may do either: wait.
    Undecided,
}

/// Answers the question for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionAnswer {
    /// The decision.
    pub decision: Decision,
}

/// `close`: what the source measured, for the destination's history. In version 1 it is [`Empty`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseRequest {
    /// How long the service did not execute anywhere, microseconds; `None` where that is not known.
    #[serde(default)]
    pub downtime_us: Option<u64>,
    /// How long it was frozen at the source, microseconds; `None` where that is not known.
    #[serde(default)]
    pub freeze_us: Option<u64>,
    /// What was moved.
    #[serde(default)]
    pub bytes: Bytes,
}

/// The query of a hello. A peer of an earlier release passes over it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HelloQuery {
    /// The service that may come: where it would be put, facts may be other ones than the node's.
    #[serde(default)]
    pub service: Option<ServiceName>,
}

/// A request without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// Paths, so that both sides agree.
pub mod paths {
    use ums_core::id::{MigrationId, ServiceName};

    /// `GET`: who answers.
    pub const HELLO: &str = "/peer/v1/hello";

    /// The same, of where a service of this name would arrive ([`HelloQuery`](super::HelloQuery)).
    pub fn hello(service: Option<&ServiceName>) -> String {
        service.map_or_else(
            || HELLO.to_owned(),
            |service| format!("{HELLO}?service={service}"),
        )
    }

    /// One operation of a migration, as a route pattern.
    pub const OPERATION_ROUTE: &str = "/peer/{version}/migrations/{id}/{operation}";
    /// One migration, as a route pattern.
    pub const MIGRATION_ROUTE: &str = "/peer/{version}/migrations/{id}";
    /// A decision, as a route pattern.
    pub const DECISION_ROUTE: &str = "/peer/{version}/decisions/{id}";

    /// The version that a path's second part names, if this program speaks it.
    pub fn version(part: &str) -> Option<u32> {
        let named = |version: &u32| part == format!("v{version}");
        super::VERSIONS.into_iter().find(named)
    }

    /// `/peer/v{version}/migrations/{id}/{operation}`
    pub fn operation(version: u32, id: MigrationId, operation: &str) -> String {
        format!("/peer/v{version}/migrations/{id}/{operation}")
    }

    /// `/peer/v{version}/migrations/{id}`
    pub fn migration(version: u32, id: MigrationId) -> String {
        format!("/peer/v{version}/migrations/{id}")
    }

    /// `/peer/v{version}/decisions/{id}`
    pub fn decision(version: u32, id: MigrationId) -> String {
        format!("/peer/v{version}/decisions/{id}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_both_speak_is_agreed_on() {
        for (theirs, version) in [
            (&[1][..], Some(1)),
            (&[2, 1], Some(2)),
            (&[1, 2, 3], Some(2)),
            (&[3], None),
            (&[], None),
        ] {
            assert_eq!(agreed(&VERSIONS, theirs), version, "{theirs:?}");
        }
    }

    #[test]
    fn a_path_names_a_version_that_is_spoken_or_none() {
        assert_eq!(paths::version("v1"), Some(1));
        assert_eq!(paths::version("v2"), Some(2));
        for part in ["v0", "v3", "2", "v", "v02", "V2"] {
            assert_eq!(paths::version(part), None, "{part}");
        }
    }
}
