//! Memory that processes share goes over before the freeze: what the freeze sends is what they have
//! written since, whoever wrote it and by which way.

mod common;

use common::{LINK_MBIT, remove, systems};
use ums_core::report::Outcome;
use ums_testbed::specimen::{Expected, Specimen};
use ums_testbed::tools::skipped;

/// Megabytes of each object.
const MIB: &str = "64";
/// What the freeze may send of it, and all else that it sends, bytes: its writers write some megabytes in the time
/// that a round takes.
const FROZEN_MAX: u64 = 24 << 20;

/// An object of a kind, with several writers who check every page.
fn sharing(kind: &'static [&'static str; 2]) -> Specimen {
    Specimen {
        name: "sharing",
        program: "sharing",
        source: include_str!("../specimens/sharing.c"),
        arguments: kind,
        memory: None,
        expected: Expected::Carried,
    }
}

#[test]
fn shared_memory_goes_over_before_the_freeze() {
    let test = "shared_memory_goes_over_before_the_freeze";
    let Some(testbed) = systems(test, LINK_MBIT) else {
        return;
    };
    let (a, b) = (&testbed.a, &testbed.b);
    for kind in [&["anonymous", MIB], &["segment", MIB], &["memfd", MIB]] {
        let specimen = sharing(kind);
        specimen.start(&testbed, a).expect("it starts");
        let plan = [
            "plan",
            specimen.name,
            "--to",
            "b",
            "--technique",
            "pre-copy",
        ];
        if !a.ums(&plan).expect("a plan").status.success() {
            skipped(test, "a kernel that tells which pages change (Linux 6.7)");
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let report = testbed.migrate(from, to, specimen.name, &["--technique", "pre-copy"]);
            let report = report.expect("a report");
            assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
            let bytes = report.bytes;
            eprintln!(
                "{}: {} rounds, {bytes:?}, frozen for {:?} ms: {:?}",
                kind[0], report.rounds, report.freeze_ms, report.downtime_parts
            );
            assert!(bytes.frozen < FROZEN_MAX, "{kind:?}: {bytes:?}");
            specimen.goes_on(to).expect("every page is right");
        }
        specimen.remove(a).expect("it is removed");
    }
    remove(testbed);
}
