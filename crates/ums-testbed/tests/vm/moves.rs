//! Services move between the releases.

use crate::{moved, redis, with_ums};

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
