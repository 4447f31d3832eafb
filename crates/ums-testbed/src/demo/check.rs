//! What must hold, and whether it did.

use serde::Serialize;
use ums_core::report::{MigrationReport, Outcome};

use crate::client::Summary;
use crate::client::counter::Counted;

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What must hold.
    pub name: String,
    /// Whether it does.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

/// The migration must have completed, with all of its steps.
pub(super) fn migration(report: &MigrationReport) -> Check {
    let ended = report
        .steps
        .iter()
        .filter(|step| step.ended_ms.is_some())
        .count();
    let completed = report.outcome == Outcome::Completed;
    let all = ended == ums_core::step::Step::ALL.len();
    let name = format!(
        "{} moved from {} to {}",
        report.service, report.source, report.destination
    );
    let error = report
        .error
        .as_deref()
        .map(|error| format!(": {error}"))
        .unwrap_or_default();
    let detail = format!("{:?}, {ended} steps{error}", report.outcome).to_lowercase();
    Check {
        name,
        ok: completed && all && report.downtime_ms.is_some(),
        detail,
    }
}

/// Every key must be as it was set.
pub(super) fn keys(place: &str, count: u64, wrong: u64) -> Check {
    let name = format!("every key is right on {place}");
    Check {
        name,
        ok: wrong == 0,
        detail: format!("{count} compared, {wrong} wrong"),
    }
}

/// No acknowledged increment may be lost, and none applied twice.
pub(super) fn counter(counted: &Counted) -> Check {
    let Counted {
        summary,
        lost,
        doubled,
        value,
    } = counted;
    let name = "no acknowledged increment was lost or applied twice".to_owned();
    let ok = *lost == 0 && *doubled == 0 && summary.failed == 0 && summary.requests > 0;
    let detail = format!(
        "{} increments, the counter is {value}; {lost} lost, {doubled} doubled, {} unanswered",
        summary.requests, summary.failed
    );
    Check {
        name,
        ok: ok && *value == summary.requests,
        detail,
    }
}

/// No request may have failed.
pub(super) fn requests(summary: &Summary) -> Check {
    let name = format!("no request of {} failed", summary.name);
    let detail = format!("{} requests, {} failed", summary.requests, summary.failed);
    Check {
        name,
        ok: summary.failed == 0 && summary.requests > 0,
        detail,
    }
}

/// Every connection that was open before a move must be open after it.
pub(super) fn connections(summary: &Summary) -> Check {
    let reconnects = summary.reconnects;
    Check {
        name: format!("every connection of {} stayed open", summary.name),
        ok: reconnects == 0 && summary.requests > 0,
        detail: format!("{reconnects} reconnects"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(requests: u64, value: u64, lost: u64) -> Counted {
        let summary = Summary {
            requests,
            ..Summary::default()
        };
        Counted {
            summary,
            lost,
            doubled: 0,
            value,
        }
    }

    #[test]
    fn a_lost_increment_and_an_idle_client_fail_the_check() {
        assert!(counter(&counted(5, 5, 0)).ok);
        assert!(!counter(&counted(5, 4, 1)).ok);
        assert!(!counter(&counted(5, 6, 0)).ok);
        assert!(!counter(&counted(0, 0, 0)).ok);
        assert!(
            !requests(&Summary::default()).ok,
            "a client that made no request shows nothing"
        );
    }

    #[test]
    fn a_client_that_had_to_come_again_fails_the_check() {
        let summary = |requests, reconnects| Summary {
            requests,
            reconnects,
            ..Summary::default()
        };
        assert!(connections(&summary(1, 0)).ok);
        assert!(!connections(&summary(1, 1)).ok);
        assert!(!connections(&summary(0, 0)).ok, "it never was there");
    }
}
