//! What the journal of a migration records.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::budget::Span;
use crate::facts::Loss;
use crate::id::{MigrationId, ServiceName, SystemName};
use crate::plan::Prediction;
use crate::preflight::Refusal;
use crate::report::{Bytes, MigrationReport};
use crate::step::Step;
use crate::technique::{Approach, Technique};

/// What was asked for. Times of all further events are microseconds since it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The migration's id, fresh.
    pub id: MigrationId,
    /// What shall move.
    pub service: ServiceName,
    /// From where: this system.
    pub source: SystemName,
    /// To where.
    pub destination: SystemName,
    /// Forced approach.
    pub approach: Option<Approach>,
    /// Forced technique.
    pub technique: Option<Technique>,
    /// Longest downtime to accept, milliseconds.
    pub max_downtime_ms: Option<u64>,
    /// Whether what the move changes is accepted.
    #[serde(default)]
    pub accept_loss: bool,
    /// Who is to make the container at the destination, where somebody has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// When it was asked for, milliseconds since the Unix epoch.
    pub asked_at_ms: u64,
    /// The same moment, nanoseconds of CLOCK_MONOTONIC.
    pub asked_at_ns: u64,
    /// Which boot that clock belongs to: after another one it says nothing.
    pub boot: String,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The first line.
    Requested(Request),
    /// A step was begun: from now on it may have had an effect.
    StepStarted {
        /// Which.
        step: Step,
        /// When.
        at_us: u64,
    },
    /// A step is done.
    StepDone {
        /// Which.
        step: Step,
        /// When.
        at_us: u64,
        /// What later steps, or the report, need of it.
        output: Output,
    },
    /// A step failed before the commit. (After it, an attempt that failed is repeated and not
    /// recorded.)
    StepFailed {
        /// Which.
        step: Step,
        /// When.
        at_us: u64,
        /// Why.
        error: String,
        /// Whether it is certain that it had no effect, so that nothing has to be undone.
        without_effect: bool,
        /// What was refused, if that is the reason.
        refusals: Vec<Refusal>,
    },
    /// The migration is given up between steps: it was aborted, or the Coordinator was restarted.
    Abandoned {
        /// When.
        at_us: u64,
        /// Why.
        reason: String,
    },
    /// A compensation was begun.
    CompensationStarted {
        /// Of which step.
        step: Step,
        /// When.
        at_us: u64,
    },
    /// A compensation is done.
    CompensationDone {
        /// Of which step.
        step: Step,
        /// When.
        at_us: u64,
        /// Compensating [`Step::Checkpoint`]: since when the service had been frozen, if it was.
        frozen_since_us: Option<u64>,
    },
    /// A compensation failed, and is tried again.
    CompensationFailed {
        /// Of which step.
        step: Step,
        /// When.
        at_us: u64,
        /// Why.
        error: String,
    },
    /// A compensation that may be put off is.
    CompensationPutOff {
        /// Of which step.
        step: Step,
        /// When.
        at_us: u64,
        /// Why.
        error: String,
    },
    /// **The commit.** Step 13 begins with it, and there is one way back only: [`Event::TakenBack`].
    Committed {
        /// When.
        at_us: u64,
    },
    /// The source's own copy is the service after all, although it had committed. Durable before
    /// the copy is thawed.
    TakenBack {
        /// When.
        at_us: u64,
        /// What makes it right, or who answers for it.
        #[serde(rename = "ground")]
        by: TakenBackBy,
        /// In words.
        reason: String,
    },
    /// The destination says that it runs what this side has given up: two copies may execute.
    Conflict {
        /// The step whose compensation found out.
        step: Step,
        /// When.
        at_us: u64,
        /// What the destination says.
        error: String,
    },
    /// The last line but for a compensation that was put off.
    Finished {
        /// What happened.
        report: Box<MigrationReport>,
    },
}

/// By what a committed migration is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TakenBackBy {
    /// The destination's durable word that no instruction was executed there and none will be.
    Lost,
    /// The operator's decision, who was told the risk: the destination may execute it too.
    Operator,
}

/// What the facts of both ends allow, chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The approach.
    pub approach: Approach,
    /// The technique.
    pub technique: Technique,
    /// What it is predicted to cost.
    pub predicted: Prediction,
}

/// The version of the peer API that a journal does not name.
fn first_version() -> u32 {
    1
}

/// What a step hands on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Output {
    /// Nothing.
    None,
    /// Of [`Step::DetermineApproach`]: what the source alone can tell.
    Planned {
        /// The approach that the source would choose.
        approach: Approach,
        /// The technique that it would.
        technique: Technique,
        /// Where the service answers at the source.
        endpoint: Option<SocketAddr>,
        /// What the move changes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        losses: Vec<Loss>,
        /// What it is predicted to cost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predicted: Option<Prediction>,
    },
    /// Of [`Step::VerifyPeer`]: what follows from the facts of both ends.
    Verified {
        /// What the destination does not carry.
        losses: Vec<Loss>,
        /// What is done; an earlier release went by [`Self::Planned`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chosen: Option<Chosen>,
        /// Version of the peer API that was agreed on, which this migration goes on in.
        #[serde(default = "first_version")]
        version: u32,
    },
    /// Of [`Step::ConfirmContainer`].
    Created {
        /// Where the service will answer, for each published port.
        endpoints: Vec<SocketAddr>,
    },
    /// Of [`Step::ImageComplete`].
    Delivered {
        /// When the freeze began.
        frozen_at_us: u64,
        /// BLAKE3 over the stream.
        digest: String,
        /// What was moved.
        bytes: Bytes,
        /// Rounds before the freeze.
        rounds: u32,
        /// Parts of the freeze until then.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        spans: Vec<Span>,
    },
    /// Of [`Step::Commit`].
    Running {
        /// From the freeze to the first instruction at the destination, microseconds.
        downtime_us: Option<u64>,
        /// From the freeze to the moment at which the destination was told, microseconds.
        freeze_us: Option<u64>,
        /// Parts of the downtime since the delivery, on this side and between the two.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        spans: Vec<Span>,
    },
    /// Of [`Step::DeleteSource`].
    Closed {
        /// What could not be set again at the destination.
        losses: Vec<Loss>,
        /// Parts of the downtime that the destination has measured.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        spans: Vec<Span>,
        /// How long the service ran while pages of it were at the source, microseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_risk_us: Option<u64>,
    },
}
