//! The paper's three approaches, and how memory is moved.

use serde::{Deserialize, Serialize};

/// At which level of the system the migration works (UMS §III-C).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approach {
    /// Full control of both systems: their container runtime restores for them. The standalone
    /// driver works at this level: it is the orchestrator.
    OrchestratorLevel,
    /// Control of the service's image only.
    ServiceLevel,
    /// No control: the service is nested in an outer container.
    ContainerLevel,
}

/// When pages are moved, seen from the freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Technique {
    /// All pages move while the service is frozen (pre-copy with zero rounds).
    StopAndCopy,
    /// Rounds of dirty pages while it runs, the last ones in the freeze.
    PreCopy,
    /// Pages are fetched from the source after the switch.
    PostCopy,
    /// Rounds first, the remainder after the switch.
    Hybrid,
}

impl Technique {
    /// Whether pages stay at the source until the service runs at the destination.
    pub fn leaves_pages(self) -> bool {
        matches!(self, Self::PostCopy | Self::Hybrid)
    }
}
