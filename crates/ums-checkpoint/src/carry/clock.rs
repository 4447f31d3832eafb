//! The service's own clocks: in its time namespace they go on over a move, on whatever host it is.

use std::fs;
use std::io;

use rustix::time::{ClockId, Timespec, clock_gettime};

const NANOS: i128 = 1_000_000_000;

/// How far the service's clocks are ahead of this host's, nanoseconds (time_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Offsets {
    monotonic: i128,
    boottime: i128,
}

impl Offsets {
    /// Those of a process. A kernel without time namespaces has none.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        match fs::read_to_string(format!("/proc/{pid}/timens_offsets")) {
            Ok(text) => parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }
}

/// Lines of a clock's name or number, seconds and nanoseconds.
fn parse(text: &str) -> Option<Offsets> {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [clock, seconds, nanos] = words[..] else {
            return None;
        };
        let offset = seconds.parse::<i128>().ok()? * NANOS + nanos.parse::<i128>().ok()?;
        match clock {
            "monotonic" => offsets.monotonic = offset,
            "boottime" => offsets.boottime = offset,
            _ => {}
        }
    }
    Some(offsets)
}

/// The clocks that a timer can run by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// The time of day, the same everywhere.
    Realtime,
    /// CLOCK_MONOTONIC of the service.
    Monotonic,
    /// CLOCK_BOOTTIME of the service.
    Boottime,
}

impl Clock {
    /// What the service reads on it now, nanoseconds.
    pub(super) fn now(self, offsets: Offsets) -> i128 {
        let (id, offset) = match self {
            Self::Realtime => (ClockId::Realtime, 0),
            Self::Monotonic => (ClockId::Monotonic, offsets.monotonic),
            Self::Boottime => (ClockId::Boottime, offsets.boottime),
        };
        nanos(clock_gettime(id)) + offset
    }

    /// A reading of the service's clock as a reading of this host's.
    pub(super) fn to_host(self, reading: i128, offsets: Offsets) -> i128 {
        match self {
            Self::Realtime => reading,
            Self::Monotonic => reading - offsets.monotonic,
            Self::Boottime => reading - offsets.boottime,
        }
    }
}

/// In nanoseconds.
pub(super) fn nanos(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * NANOS + i128::from(time.tv_nsec)
}

/// From nanoseconds; at least 1, because a timer that is set to 0 is disarmed.
pub(super) fn timespec(nanos: i128) -> Timespec {
    let nanos = nanos.clamp(1, i128::from(i64::MAX));
    Timespec {
        tv_sec: (nanos / NANOS) as i64,
        tv_nsec: (nanos % NANOS) as i64,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn offsets_by_name() {
        let offsets = parse("monotonic        -3  500000000\nboottime   7 0\n").unwrap();
        assert_eq!(offsets.monotonic, -2_500_000_000);
        assert_eq!(offsets.boottime, 7_000_000_000);
        assert_eq!(parse("monotonic x 0"), None);
        assert!(Offsets::of(std::process::id() as i32).is_ok());
    }

    #[test]
    fn a_reading_goes_to_the_host_and_back() {
        let offsets = parse("monotonic 100 1\nboottime 5 0").unwrap();
        for clock in [Clock::Realtime, Clock::Monotonic, Clock::Boottime] {
            let here = clock.to_host(clock.now(offsets), offsets);
            let now = clock.now(Offsets::default());
            assert!((0..NANOS).contains(&(now - here)), "{clock:?}");
        }
        assert_eq!(nanos(timespec(-5)), 1);
        assert_eq!(nanos(timespec(3 * NANOS + 7)), 3 * NANOS + 7);
    }
}
