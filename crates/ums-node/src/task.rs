//! Where work that blocks runs, and the clock that a migration's times are taken from.

use ums_api::problem::Problem;

use crate::problem;

/// Runs what blocks where it may. A panic in it is a problem, and the agent goes on.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(problem::panicked(&error)))
}

/// Nanoseconds of CLOCK_MONOTONIC, as the keeper counts them.
pub fn monotonic_ns() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
