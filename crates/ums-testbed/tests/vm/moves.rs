//! Services move between the releases.

use ums_core::report::MigrationReport;
use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::pair::Pair;

use crate::{moved, moved_by, redis, with_ums};

/// Keys of the Redis that moves, some hundred bytes each.
const KEYS: u32 = 20_000;

#[test]
fn redis_moves_from_debian_12_to_13_and_back_with_every_key() {
    let Some(pair) = with_ums("redis_moves_from_debian_12_to_13_and_back_with_every_key") else {
        return;
    };
    redis::start(&pair.debian12, KEYS);
    let before = redis::digest(&pair.debian12);
    moved(&pair, &pair.debian12, "redis");
    assert_eq!(redis::digest(&pair.debian13), before);
    // Clients of the old address are led to the new place.
    assert_eq!(redis::digest(&pair.debian12), before);
    moved(&pair, &pair.debian13, "redis");
    assert_eq!(redis::digest(&pair.debian12), before);
    assert_eq!(redis::asked(&pair.debian12, "set after moves"), "OK");
}

/// How often a client counts on while the service moves.
const COUNTS: u32 = 3000;

/// Moves Redis by a technique while a client counts; nothing of what it was told is missing.
fn moves_while_written(
    pair: &Pair,
    from: &Machine,
    counter: &str,
    technique: &str,
) -> MigrationReport {
    let to = from.release().other();
    let client = redis::counting(redis::HOME, counter, COUNTS);
    from.ok(&format!(
        "systemd-run --quiet --unit {counter} sh -c '{client}'"
    ))
    .expect("a client");
    let begun = format!(
        "test \"$({})\" -gt 10",
        redis::client(redis::HOME, &format!("get {counter}"))
    );
    from.until("a client that counts", 20, &begun)
        .expect("it counts");
    let report = moved_by(pair, from, "redis", &format!("--technique {technique}"));
    let words = serde_json::to_value(report.technique).expect("a word");
    assert_eq!(words, technique, "{report:#?}");
    let done = format!(
        "test \"$({})\" = {COUNTS}",
        redis::client(to, &format!("get {counter}"))
    );
    from.until("the last number", 60, &done)
        .expect("every number");
    report
}

/// There and back; what a technique has to show for itself is told by `shows`.
fn redis_moves_by(pair: &Pair, technique: &str, shows: impl Fn(&MigrationReport) -> bool) {
    redis::start(&pair.debian12, KEYS);
    let before = redis::digest(&pair.debian12);
    for (from, counter) in [(&pair.debian12, "there"), (&pair.debian13, "back")] {
        let report = moves_while_written(pair, from, counter, technique);
        assert!(shows(&report), "{report:#?}");
    }
    assert_eq!(redis::asked(&pair.debian12, "del there back"), "2");
    assert_eq!(redis::digest(&pair.debian12), before);
}

/// By soft-dirty bits there, and by write-protection back.
#[test]
fn redis_moves_by_pre_copy_in_both_directions_with_every_key() {
    if let Some(pair) = with_ums("redis_moves_by_pre_copy_in_both_directions_with_every_key") {
        redis_moves_by(&pair, "pre-copy", |report| report.rounds > 0);
    }
}

/// Its pages stay at the source until it runs at the destination, on both kernels.
#[test]
fn redis_moves_by_post_copy_in_both_directions_with_every_key() {
    if let Some(pair) = with_ums("redis_moves_by_post_copy_in_both_directions_with_every_key") {
        redis_moves_by(&pair, "post-copy", |report| report.at_risk_ms.is_some());
    }
}
