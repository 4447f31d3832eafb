//! Time: the host's monotonic clock, which the agent's answers are in too, and the wall clock where
//! a reboot lies between.

use ums_core::saga::Request;

#[cfg(test)]
pub(crate) use crate::simulation::host::{fresh_uuid, monotonic_ns, unix_ms};
#[cfg(not(test))]
pub(crate) use host::{fresh_uuid, monotonic_ns, unix_ms};

/// What only the host can tell. Tests have a host of their own, whose time they let pass.
#[cfg(not(test))]
mod host {
    use std::time::{SystemTime, UNIX_EPOCH};

    use rustix::time::{ClockId, clock_gettime};

    /// Nanoseconds of CLOCK_MONOTONIC.
    pub(crate) fn monotonic_ns() -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds)
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn unix_ms() -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// An id that nobody has had.
    pub(crate) fn fresh_uuid() -> uuid::Uuid {
        uuid::Uuid::now_v7()
    }
}

/// Which boot the monotonic clock belongs to.
pub(crate) fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// Tells the time since a migration was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Stopwatch {
    asked_at_ns: u64,
    asked_at_ms: u64,
    same_boot: bool,
}

impl Stopwatch {
    pub(crate) fn of(request: &Request) -> Self {
        let (asked_at_ns, asked_at_ms) = (request.asked_at_ns, request.asked_at_ms);
        Self {
            asked_at_ns,
            asked_at_ms,
            same_boot: request.boot == boot(),
        }
    }

    /// Microseconds since it was asked for.
    pub(crate) fn now_us(&self) -> u64 {
        if self.same_boot {
            self.at_ns(monotonic_ns())
        } else {
            unix_ms()
                .saturating_sub(self.asked_at_ms)
                .saturating_mul(1000)
        }
    }

    /// The same, of a moment of this boot's monotonic clock.
    pub(crate) fn at_ns(&self, ns: u64) -> u64 {
        if self.same_boot {
            ns.saturating_sub(self.asked_at_ns) / 1000
        } else {
            let ago_us = monotonic_ns().saturating_sub(ns) / 1000;
            self.now_us().saturating_sub(ago_us)
        }
    }

    /// Whether the host has run without a reboot since it was asked for. Else spans over the reboot
    /// are differences of the wall clock, which may have been set meanwhile: good enough to show when
    /// a step was, not to tell how long a service stood still.
    pub(crate) fn is_unbroken(&self) -> bool {
        self.same_boot
    }
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;

    /// A migration that was asked for in a boot of this host.
    pub(crate) fn asked_now(boot: String) -> Request {
        Request {
            id: ums_core::id::MigrationId(uuid::Uuid::nil()),
            service: "web".parse().expect("a name"),
            source: "a".parse().expect("a name"),
            destination: "b".parse().expect("a name"),
            approach: None,
            technique: None,
            max_downtime_ms: None,
            accept_loss: false,
            engine: None,
            asked_at_ms: unix_ms().saturating_sub(5000),
            // Of an earlier boot, whose clock stood much higher.
            asked_at_ns: monotonic_ns() + 3_600_000_000_000,
            boot,
        }
    }

    #[test]
    fn after_a_reboot_moments_are_told_by_the_wall_clock_and_durations_not_at_all() {
        let watch = Stopwatch::of(&asked_now("another".to_owned()));
        assert!(!watch.is_unbroken());
        let (now, at) = (watch.now_us(), watch.at_ns(monotonic_ns()));
        assert!(at > 4_000_000 && at <= now + 1_000_000, "{at} {now}");
        assert!(Stopwatch::of(&asked_now(boot())).is_unbroken());
    }
}
