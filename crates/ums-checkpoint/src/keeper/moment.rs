//! The moment to freeze a service in: one in which it is in the middle of nothing that CRIU would refuse
//! and that is over in a moment ([`carry::passing`]).

use std::time::{Duration, Instant};

use crate::carry::{self, Moment};
use crate::cgroup::Cgroup;
use crate::freezer::Freezer;

/// How long such a moment is waited for while the service runs and its packets pass: a service that looks
/// at its queues once a second has done so. It costs nobody anything.
const SETTLE_WITHIN: Duration = Duration::from_millis(1200);
/// Pause between two looks.
const SETTLE_LOOK: Duration = Duration::from_millis(10);
/// How often it is frozen: what has come about since the last look is mostly over in the next moment.
const FREEZES_MAX: u32 = 5;
/// How long it runs, with its packets held, before it is frozen again. Each time is twice as long as the one before:
/// on a busy machine it has to get a turn.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// Waits, for a while, until a service that runs is in the middle of nothing.
pub(super) fn wait(cgroup: &Cgroup) {
    let end = Instant::now() + SETTLE_WITHIN;
    let is_busy = || {
        let found = carry::passing(&carry::processes(cgroup), Moment::Running);
        // What can't be looked at is told when it is frozen.
        found.is_ok_and(|found| !found.is_empty())
    };
    while is_busy() && Instant::now() < end {
        std::thread::sleep(SETTLE_LOOK);
    }
}

/// Freezes a service in such a moment. `begun` is called before each attempt.
///
/// # Errors
/// It does not freeze within `bound`, or there was no such moment: it says what was in the way. The
/// service may be frozen then.
pub(super) fn freeze(
    (freezer, cgroup): (&Freezer, &Cgroup),
    bound: Duration,
    mut begun: impl FnMut(),
) -> Result<(), String> {
    let end = Instant::now() + bound;
    // Each thaw from a freezer of version 1 may be seen by waits.
    let freezes = if freezer.is_unified() { FREEZES_MAX } else { 1 };
    let (mut left, mut pause) = (freezes, PAUSE_MIN);
    loop {
        begun();
        let frozen = freezer.freeze_without_vfork(end.saturating_duration_since(Instant::now()));
        frozen.map_err(|error| error.to_string())?;
        let found = carry::passing(&carry::processes(cgroup), Moment::Frozen);
        let found = found.map_err(|error| format!("its sockets can't be looked at: {error}"))?;
        left -= 1;
        let Some(first) = found.first() else {
            return Ok(());
        };
        if left == 0 || Instant::now() + pause > end {
            let others = match found.len() - 1 {
                0 => String::new(),
                others => format!(" (and {others} more)"),
            };
            return Err(format!(
                "the service was frozen {} times, and each time in the middle of something that can't \
                 move: {first}{others}; migrate again when that is over",
                freezes - left
            ));
        }
        tracing::debug!(first, "frozen at the wrong moment");
        freezer.thaw().map_err(|error| error.to_string())?;
        std::thread::sleep(pause);
        pause *= 2;
    }
}
