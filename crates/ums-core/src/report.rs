//! What happened in a migration: the object that `ums migrate --json` prints.

use serde::{Deserialize, Serialize};

use crate::budget::Span;
use crate::facts::Loss;
use crate::id::{MigrationId, ServiceName, SystemName};
use crate::plan::Prediction;
use crate::step::Step;
use crate::technique::{Approach, Technique};

/// How a migration ended, or that it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is still under way.
    Running,
    /// The service runs at the destination and nowhere else.
    Completed,
    /// The service runs at the source as if nothing had been asked.
    Abandoned,
    /// The same, and it was refused before anything was touched.
    Refused,
    /// A person is needed; `error` says for what.
    Stuck,
}

/// Bytes moved, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bytes {
    /// Memory pages of the service that were carried or found to be zero.
    pub memory: u64,
    /// What went over the wire on the data path, as framed, before TLS.
    pub wire: u64,
    /// Content of files.
    pub filesystem: u64,
    /// What of the wire's bytes went over after the rounds, in the freeze but for its first moment.
    #[serde(default)]
    pub frozen: u64,
}

/// When a step ran, in milliseconds since the migration was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTiming {
    /// The paper's number.
    pub step: u8,
    /// Its name.
    pub name: String,
    /// Beginning.
    pub started_ms: u64,
    /// End; `None` while it runs or when it never ended.
    pub ended_ms: Option<u64>,
}

/// The truthful account of one migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// Which migration.
    pub migration_id: MigrationId,
    /// What moved.
    pub service: ServiceName,
    /// From where.
    pub source: SystemName,
    /// To where.
    pub destination: SystemName,
    /// How, once chosen.
    pub approach: Option<Approach>,
    /// How memory moved, once chosen.
    pub technique: Option<Technique>,
    /// How it ended.
    pub outcome: Outcome,
    /// From the request to the end, milliseconds.
    pub total_ms: u64,
    /// From the freeze to the first instruction at the destination, milliseconds; `None` when
    /// there was no switch, and where the source was rebooted meanwhile: then nobody knows.
    pub downtime_ms: Option<f64>,
    /// How long the service was frozen at the source until the switch or the thaw, milliseconds.
    pub freeze_ms: Option<f64>,
    /// Where the downtime went, in the order of the parts; they add up to it. Empty while it is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub downtime_parts: Vec<Span>,
    /// How long the service ran at the destination while pages of it were still at the source, milliseconds: the
    /// loss of either system or of the link would have been the loss of the service. `None` with techniques
    /// that leave none there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_risk_ms: Option<f64>,
    /// The steps that were begun.
    pub steps: Vec<StepTiming>,
    /// Bytes moved.
    pub bytes: Bytes,
    /// Rounds of dirty pages before the freeze.
    pub rounds: u32,
    /// Where the service answers now, `address:port` of its first published port.
    pub endpoint: Option<String>,
    /// Why it did not complete.
    pub error: Option<String>,
    /// What the move changes of the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<Loss>,
    /// What it was predicted to cost when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Prediction>,
}

/// So much has to go over before the rate of it says something of the link, bytes: each migration has
/// fixed costs.
const RATED_BYTES_MIN: u64 = 128 << 20;

impl MigrationReport {
    /// The rate of the whole transfer, from the data path's opening to the end of the image, bytes per second; `None`
    /// where it did not complete, or too little went over.
    pub fn bytes_per_second(&self) -> Option<u64> {
        let of = |step: Step| self.steps.iter().find(|it| it.step == step.number());
        let begin = of(Step::OpenDataPath)?.started_ms;
        let end = of(Step::ImageComplete)?.ended_ms?;
        let ms = end.checked_sub(begin).filter(|ms| *ms > 0)?;
        let is_rated = self.outcome == Outcome::Completed && self.bytes.wire >= RATED_BYTES_MIN;
        is_rated.then(|| (u128::from(self.bytes.wire) * 1000 / u128::from(ms)) as u64)
    }
}
