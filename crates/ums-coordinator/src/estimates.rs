//! What a prediction reckons with: how fast the last migration to the same peer went, and how the service writes to
//! its memory, where somebody wants to know.

use ums_core::id::{ServiceName, SystemName};
use ums_core::preflight::{Estimates, LINK_BYTES_PER_SECOND_ASSUMED};

use crate::journal::{Journal, JournalError};
use crate::shared::Shared;

/// The most migrations that are looked through for one to the same peer.
const LOOKED_AT_MAX: usize = 16;

/// What is known, and why the writing is not, where it was to be measured.
pub(crate) struct Known {
    pub(crate) estimates: Estimates,
    pub(crate) unmeasured: Option<String>,
}

/// Asks the journal, and the agent where `measure` is set.
pub(crate) async fn of(
    shared: &Shared,
    service: &ServiceName,
    destination: &SystemName,
    measure: bool,
) -> Known {
    let to = destination.clone();
    let rate = shared.journal(move |journal| last_rate(journal, &to)).await;
    let rate = rate.unwrap_or_else(|error| {
        // Who needs the journal next will say so.
        tracing::debug!(%error, "earlier migrations are not known");
        None
    });
    let (mut writing, mut unmeasured) = (None, None);
    if measure {
        match shared.agents.of(service).writing(service).await {
            Ok(measured) => writing = Some(measured),
            Err(error) => unmeasured = Some(error.to_string()),
        }
    }
    Known {
        estimates: Estimates {
            link_bytes_per_second: rate.unwrap_or(LINK_BYTES_PER_SECOND_ASSUMED),
            writing,
        },
        unmeasured,
    }
}

/// The rate of the newest migration to a peer that was large enough to tell.
fn last_rate(journal: &Journal, to: &SystemName) -> Result<Option<u64>, JournalError> {
    for (id, _, _) in journal.outgoing()?.into_iter().rev().take(LOOKED_AT_MAX) {
        let Some((saga, _)) = journal.saga(id)? else {
            continue;
        };
        let report = saga.report(0, None);
        if report.destination == *to
            && let Some(rate) = report.bytes_per_second()
        {
            return Ok(Some(rate));
        }
    }
    Ok(None)
}
