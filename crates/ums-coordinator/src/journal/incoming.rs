//! What the destination keeps of an arriving service.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use ums_api::peer::{CloseRequest, CreateAnswer};
use ums_core::budget::Span;
use ums_core::facts::{Loss, ServiceFacts};
use ums_core::id::{ServiceName, SystemName};
use ums_core::receiver::State;
use ums_core::technique::{Approach, Technique};

/// One incoming migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incoming {
    /// How far it is.
    pub(crate) state: State,
    /// Who sends.
    pub(crate) source: SystemName,
    /// What arrives; `None` for one that was aborted before it was known.
    pub(crate) service: Option<ServiceFacts>,
    /// When the reservation was made, milliseconds since the Unix epoch.
    pub(crate) asked_at_ms: u64,
    /// When it came to an end or began to run, same clock.
    pub(crate) ended_at_ms: Option<u64>,
    /// What was answered to *create*.
    pub(crate) created: Option<CreateAnswer>,
    /// When its first instruction was executed: nanoseconds of CLOCK_MONOTONIC, and the boot.
    pub(crate) running_since: Option<(u64, String)>,
    /// Whether nothing is left to do for the agent: discarded, or settled.
    pub(crate) cleaned: bool,
    /// Why it was given up, or who had it run.
    pub(crate) reason: Option<String>,
    /// The operator had it run, and what the source has decided is not known yet.
    #[serde(default)]
    pub(crate) forced: bool,
    /// Why nobody knows whether it executes here.
    #[serde(default)]
    pub(crate) stuck: Option<String>,
    /// What tells that the source has given up what is committed here: two copies may execute.
    #[serde(default)]
    pub(crate) conflict: Option<String>,
    /// What could not be set again here, once the service runs.
    #[serde(default)]
    pub(crate) losses: Vec<Loss>,
    /// Parts of the downtime that were spent here.
    #[serde(default)]
    pub(crate) spans: Vec<Span>,
    /// Version of the peer API that the source reserved in.
    #[serde(default = "first_version")]
    pub(crate) version: u32,
    /// At which level it moves; version 1 does not say.
    #[serde(default)]
    pub(crate) approach: Option<Approach>,
    /// How its memory moves; version 1 does not say.
    #[serde(default)]
    pub(crate) technique: Option<Technique>,
    /// What the source has measured, once it has said so at the end.
    #[serde(default)]
    pub(crate) account: Option<CloseRequest>,
}

/// What was reserved before there were others.
fn first_version() -> u32 {
    1
}

impl Incoming {
    /// Whether nothing is left to do, so that it may be forgotten some day.
    pub(crate) fn is_over(&self) -> bool {
        let ended = matches!(self.state, State::Running | State::Closed);
        self.cleaned && !self.forced && (ended || self.state.is_given_up())
    }

    /// Whether this is the service that arrives.
    pub(crate) fn is_of(&self, name: &ServiceName) -> bool {
        let service = self.service.as_ref();
        service.is_some_and(|service| service.specification.name == *name)
    }

    /// Where it answers, or will.
    pub(crate) fn endpoints(&self) -> &[SocketAddr] {
        self.created
            .as_ref()
            .map_or(&[], |created| &created.endpoints)
    }
}
