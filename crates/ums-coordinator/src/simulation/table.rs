//! The account of the exhaustive runs, as a section of a document.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use ums_core::step::Step;

use super::fault::{Kind, Moment};
use super::run::End;

/// What encloses the section.
const BEGIN: &str = "<!-- simulated: begin (written by a test, see above) -->";
const END: &str = "<!-- simulated: end -->";

/// The step that each place belongs to: the first that matches.
const PLACES: [(&str, Step); 26] = [
    ("a agent services", Step::DetermineApproach),
    ("a agent facts", Step::DetermineApproach),
    ("a agent service", Step::DetermineApproach),
    ("a hello", Step::VerifyPeer),
    ("a reserve", Step::SendSpecification),
    ("a create asked", Step::RequestContainer),
    ("b agent create", Step::CreateContainer),
    ("b agent connect-network", Step::CreateContainer),
    ("a create answered", Step::ConfirmContainer),
    ("a agent open", Step::OpenDataPath),
    ("a agent connect", Step::OpenDataPath),
    ("a agent files", Step::OpenDataPath),
    ("a agent transfer before", Step::Transfer),
    ("a agent transfer after", Step::ImageComplete),
    ("a agent checkpoint after", Step::ImageComplete),
    ("a agent block", Step::Checkpoint),
    ("a agent frontman/hold", Step::Checkpoint),
    ("a agent checkpoint", Step::Checkpoint),
    ("a agent freeze", Step::Checkpoint),
    ("a restore asked", Step::RequestRestore),
    ("a restore", Step::Restore),
    ("b agent restore", Step::Restore),
    ("b agent criu", Step::Restore),
    ("a agent frontman/lead", Step::Announce),
    ("a agent delete-source", Step::DeleteSource),
    ("a close", Step::DeleteSource),
];

/// Which step each of these moments belongs to. What has no step of its own (a write, a question
/// that more than one asks) belongs to the one before.
pub(super) fn steps(moments: &[(Kind, Moment)]) -> BTreeMap<Moment, Step> {
    let mut steps = BTreeMap::new();
    let mut step = Step::DetermineApproach;
    for (_, moment) in moments {
        let place = moment.place.as_str();
        if place.starts_with("a commit") || place.starts_with("b agent run") {
            step = Step::Commit;
        } else if let Some((_, of)) = PLACES.iter().find(|(prefix, _)| place.starts_with(prefix)) {
            step = *of;
        }
        steps.insert(moment.clone(), step);
    }
    steps
}

/// How the cells of each row ended.
pub(super) type Counts = BTreeMap<String, BTreeMap<End, usize>>;

const COLUMNS: [(End, &str); 6] = [
    (End::Completed, "at the destination"),
    (End::Abandoned, "at the source"),
    (
        End::CompletedThenLost,
        "at the destination, then ended by the fault",
    ),
    (End::AbandonedAndLost, "ended by the fault at the source"),
    (
        End::Resolved,
        "lost when it was let run, said so, and taken back by a person",
    ),
    (End::NotAdmitted, "not begun"),
];

/// The section.
pub(super) fn section(counts: &Counts) -> String {
    let total: usize = counts.values().flat_map(BTreeMap::values).sum();
    let mut text = format!(
        "{BEGIN}\n\n{total} cells, none with a violation. Where the service is in the end:\n\n| step |"
    );
    for (_, title) in COLUMNS {
        let _ = write!(text, " {title} |");
    }
    text.push_str("\n| --- |");
    text.push_str(&" --- |".repeat(COLUMNS.len()));
    text.push('\n');
    for (row, ends) in counts {
        let _ = write!(text, "| {row} |");
        for (end, _) in COLUMNS {
            match ends.get(&end) {
                Some(count) => drop(write!(text, " {count} |")),
                None => text.push_str(" |"),
            }
        }
        text.push('\n');
    }
    text.push('\n');
    text.push_str(END);
    text
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/fault-matrix.md")
}

/// Compares the section with the document's, or with `UMS_WRITE_DOCS=1` writes it there.
pub(super) fn check(section: &str) {
    let path = document();
    let text = std::fs::read_to_string(&path).expect("docs/fault-matrix.md");
    let (before, rest) = text.split_once(BEGIN).expect("the section's begin");
    let (_, after) = rest.split_once(END).expect("the section's end");
    let wanted = format!("{before}{section}{after}");
    if std::env::var_os("UMS_WRITE_DOCS").is_some() {
        std::fs::write(&path, wanted).expect("docs/fault-matrix.md is writable");
    } else {
        assert!(
            text == wanted,
            "docs/fault-matrix.md is not current; run this test with UMS_WRITE_DOCS=1"
        );
    }
}
