//! Services in every state that is listed in `ums_testbed::specimen` are moved there and
//! back, at once and after a while, and find it as it was.

mod common;

use common::{remove, systems};
use ums_testbed::specimen::{ALL, Specimen};
use ums_testbed::testbed::Testbed;

/// The link's rate where it does not matter, Mbit/s.
const RATE_MBIT: u32 = 1000;

/// There, back at once (its pages may not all be in), and once more with rounds in between.
fn moves(testbed: &Testbed, specimen: &Specimen) -> anyhow::Result<()> {
    let (a, b) = (&testbed.a, &testbed.b);
    specimen.start(testbed, a)?;
    specimen.migrate(testbed, a, b)?;
    specimen.migrate(testbed, b, a)?;
    specimen.goes_on(a)?;
    specimen.migrate(testbed, a, b)?;
    specimen.goes_on(b)?;
    specimen.migrate(testbed, b, a)?;
    specimen.goes_on(a)?;
    specimen.remove(a)
}

#[test]
fn every_specimen_is_the_same_after_moves() {
    let test = "every_specimen_is_the_same_after_moves";
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    let mut failed = Vec::new();
    for specimen in ALL {
        let moved = moves(&testbed, specimen);
        if let Err(error) = moved {
            failed.push(format!("{}: {error:#}", specimen.name));
            // It may be at either; the testbed takes along what can't be removed.
            let _ = specimen.remove(&testbed.a);
            let _ = specimen.remove(&testbed.b);
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    remove(testbed);
}
