//! The host's clock and its fresh ids, as a test sees them: time is tokio's, which stands still
//! until everything waits, and ids are numbered.

use std::cell::Cell;

use tokio::time::Instant;
use uuid::Uuid;

/// What the clocks show when a run begins: some time after the boot, and after the epoch.
const BEGAN_NS: u64 = 1_000_000_000_000;
const BEGAN_UNIX_MS: u64 = 1_800_000_000_000;

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static IDS: Cell<u128> = const { Cell::new(0) };
}

/// A run begins now, on this thread.
pub(super) fn begin() {
    BEGAN.set(Some(Instant::now()));
    IDS.set(0);
}

/// Nanoseconds since the run began.
pub(super) fn elapsed_ns() -> u64 {
    let began = BEGAN.get().unwrap_or_else(Instant::now);
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic_ns() -> u64 {
    BEGAN_NS + elapsed_ns()
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    BEGAN_UNIX_MS + elapsed_ns() / 1_000_000
}

/// An id that nobody has had.
pub(crate) fn fresh_uuid() -> Uuid {
    let number = IDS.get() + 1;
    IDS.set(number);
    Uuid::from_u128(number)
}
