//! Timers behind descriptors (timerfd_create(2)).
//!
//! CRIU writes down the time that is left, to whole seconds where a deadline was given as a reading of
//! a clock, and nothing where a periodic timer has expired and nobody has read it yet: restored, the
//! one fires early and the other never again (CRIU `criu/timerfd.c`, `criu/pie/restorer.c`). Here each
//! deadline is a reading of the service's own clock, or of the time of day, and is set as such.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdTimerFlags, timerfd_gettime, timerfd_settime};
use serde::{Deserialize, Serialize};

use ums_core::facts::LossKind;

use super::Lost;
use super::clock::{Clock, Offsets, nanos, timespec};
use super::descriptor::{Place, Reach};

/// `TFD_TIMER_ABSTIME`: the deadline was given as a reading of the clock.
const ABSOLUTE: u32 = 1;
/// How often a timer is looked at that expires between two looks.
const LOOKS: u32 = 8;
/// A timer due within this time is not set: a tick that falls between setting the deadline and setting
/// the number of ticks would be lost.
const TOO_CLOSE: i128 = 200_000;

/// A timer, as its owner's clock sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    place: Place,
    /// The kernel's number of the clock.
    clock: u32,
    /// Flags of the last timerfd_settime(2).
    flags: u32,
    /// Expirations that nobody has read.
    ticks: u64,
    /// The next expiration on the owner's clock, nanoseconds; none when it is disarmed. (A number of 64
    /// bits: JSON knows no longer ones.)
    deadline: Option<i64>,
    /// Nanoseconds; 0 when it fires once.
    interval: i64,
}

/// What `/proc/PID/fdinfo` tells of a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Info {
    clock: u32,
    ticks: u64,
    flags: u32,
    /// Nanoseconds left; 0 when it is disarmed, or has expired without having been read.
    left: i128,
}

fn parse(text: &str) -> Option<Info> {
    let mut info = Info::default();
    let mut known = false;
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match name.trim() {
            "clockid" => (info.clock, known) = (value.parse().ok()?, true),
            "ticks" => info.ticks = value.parse().ok()?,
            // "settime flags: 01", in octal.
            "settime flags" => info.flags = u32::from_str_radix(value, 8).ok()?,
            "it_value" => info.left = pair(value)?,
            _ => {}
        }
    }
    known.then_some(info)
}

/// `(seconds, nanoseconds)`.
fn pair(text: &str) -> Option<i128> {
    let (seconds, nanos) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(seconds.trim().parse::<i128>().ok()? * 1_000_000_000 + nanos.trim().parse::<i128>().ok()?)
}

/// By which clock a timer runs once it is armed. A time that is relative to now is not touched by a
/// change of the time of day (timerfd_create(2)).
fn clock(info: Info) -> Option<Clock> {
    match info.clock {
        0 | 8 if info.flags & ABSOLUTE != 0 => Some(Clock::Realtime),
        0 | 1 => Some(Clock::Monotonic),
        7..=9 => Some(Clock::Boottime),
        _ => None,
    }
}

fn info(timer: &OwnedFd) -> io::Result<Info> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", timer.as_raw_fd()))?;
    parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Looks at the timer of a frozen process.
///
/// A periodic one that has expired unread stands still until somebody reads it or asks for its time:
/// asking makes it count what it has missed, as its owner's reading would have.
pub(super) fn capture(timer: &OwnedFd, place: Place, offsets: Offsets) -> io::Result<Timer> {
    let mut looks = 0;
    loop {
        let time = timerfd_gettime(timer)?;
        let info = info(timer)?;
        let clock = clock(info).ok_or(io::ErrorKind::Unsupported)?;
        let (left, interval) = (nanos(time.it_value), nanos(time.it_interval));
        looks += 1;
        let expired_since = left != 0 && info.left == 0;
        if expired_since && looks < LOOKS {
            continue;
        }
        // Read after the time that is left: a deadline may come out microseconds late, never early.
        let deadline = clock.now(offsets) + info.left;
        return Ok(Timer {
            place,
            clock: info.clock,
            flags: info.flags,
            ticks: info.ticks,
            deadline: (left != 0).then_some(saturated(deadline)),
            interval: saturated(interval),
        });
    }
}

fn saturated(nanos: i128) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// Sets the timers of restored processes, which have not run yet.
pub(super) fn apply(timers: &[Timer], reach: &Reach, offsets: Offsets) -> Vec<Lost> {
    let set = |timer: &Timer| {
        let result = reach
            .get(timer.place)
            .and_then(|copy| timer.set(&copy, offsets));
        let error = result.err()?;
        let detail = format!("the timer behind descriptor {}: {error}", timer.place.fd);
        Some(Lost::new(LossKind::Timer, timer.place.pid, detail))
    };
    timers.iter().filter_map(set).collect()
}

impl Timer {
    fn set(&self, timer: &OwnedFd, offsets: Offsets) -> io::Result<()> {
        let info = Info {
            clock: self.clock,
            flags: self.flags,
            ..Info::default()
        };
        let clock = clock(info).ok_or(io::ErrorKind::Unsupported)?;
        let mut ticks = self.ticks;
        let mut value = timespec(0);
        value.tv_nsec = 0;
        if let Some(deadline) = self.deadline {
            let now = || clock.now(offsets);
            let wait = i128::from(deadline) - now();
            if (0..TOO_CLOSE).contains(&wait) {
                std::thread::sleep(Duration::from_nanos(wait as u64 + 1));
            }
            let (missed, next) = forward(i128::from(deadline), i128::from(self.interval), now());
            ticks = ticks.saturating_add(missed);
            value = match self.flags & ABSOLUTE {
                0 => timespec(next - now()),
                _ => timespec(clock.to_host(next, offsets)),
            };
        }
        let interval = i128::from(self.interval);
        let time = Itimerspec {
            it_interval: rustix::time::Timespec {
                tv_sec: (interval / 1_000_000_000) as i64,
                tv_nsec: (interval % 1_000_000_000) as i64,
            },
            it_value: value,
        };
        let flags = TimerfdTimerFlags::from_bits_retain(self.flags);
        timerfd_settime(timer, flags, &time)?;
        match ticks {
            0 => Ok(()),
            ticks => ioctl::set_ticks(timer, ticks),
        }
    }
}

/// How often a periodic timer has expired by now, and when it expires next. One that fires once is left
/// as it is: set to what has passed, it fires at once.
fn forward(deadline: i128, interval: i128, now: i128) -> (u64, i128) {
    if interval <= 0 || deadline > now {
        return (0, deadline);
    }
    let missed = (now - deadline) / interval + 1;
    let next = deadline + missed * interval;
    (u64::try_from(missed).unwrap_or(u64::MAX), next)
}

#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
mod ioctl {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};

    // TFD_IOC_SET_TICKS (Linux `timerfd.h`).
    nix::ioctl_write_ptr!(timerfd_set_ticks, b'T', 0, u64);

    /// Sets the number of expirations that wait to be read.
    pub(super) fn set_ticks(timer: &OwnedFd, ticks: u64) -> io::Result<()> {
        // SAFETY: the kernel reads the 64-bit number that the pointer leads to, during the call only.
        unsafe { timerfd_set_ticks(timer.as_raw_fd(), &raw const ticks) }?;
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    use super::*;

    const PLACE: Place = Place::behind(1, 3);
    const MS: i128 = 1_000_000;

    fn timer(clock: TimerfdClockId) -> OwnedFd {
        timerfd_create(clock, TimerfdFlags::NONBLOCK).unwrap()
    }

    fn arm(timer: &OwnedFd, flags: TimerfdTimerFlags, value: i128, interval: i128) {
        let mut time = Itimerspec {
            it_interval: timespec(interval.max(1)),
            it_value: timespec(value),
        };
        if interval == 0 {
            time.it_interval.tv_nsec = 0;
        }
        timerfd_settime(timer, flags, &time).unwrap();
    }

    fn wait_for_tick(timer: &OwnedFd) {
        let event = nix::poll::PollFlags::POLLIN;
        let mut wanted = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(timer),
            event,
        )];
        assert_eq!(nix::poll::poll(&mut wanted, 10_000_u16), Ok(1));
    }

    fn read(timer: &OwnedFd) -> u64 {
        let mut number = [0; 8];
        rustix::io::read(timer, &mut number).unwrap();
        u64::from_ne_bytes(number)
    }

    #[test]
    fn fdinfo_is_understood() {
        let text = "pos:\t0\nflags:\t02004002\nmnt_id:\t15\nino:\t1\nclockid: 0\nticks: 3\n\
                    settime flags: 03\nit_value: (1, 500000000)\nit_interval: (2, 0)\n";
        let info = parse(text).unwrap();
        assert_eq!((info.clock, info.ticks, info.flags), (0, 3, 3));
        assert_eq!(info.left, 1_500_000_000);
        assert_eq!(clock(info), Some(Clock::Realtime));
        assert_eq!(parse("pos:\t0\n"), None);
        assert_eq!(parse("clockid: 1\nit_value: 3\n"), None);
    }

    #[test]
    fn periods_are_counted() {
        assert_eq!(forward(100, 10, 99), (0, 100));
        assert_eq!(forward(100, 10, 100), (1, 110));
        assert_eq!(forward(100, 10, 125), (3, 130));
        assert_eq!(forward(100, 0, 125), (0, 100));
    }

    /// A periodic timer that nobody reads is the one that CRIU restores disarmed.
    #[test]
    fn one_that_has_expired_unread_goes_on_in_step() {
        let source = timer(TimerfdClockId::Monotonic);
        arm(&source, TimerfdTimerFlags::empty(), 3 * MS, 3_600_000 * MS);
        wait_for_tick(&source);
        let offsets = Offsets::default();
        let seen = capture(&source, PLACE, offsets).unwrap();
        assert_eq!(seen.ticks, 1);

        let restored = timer(TimerfdClockId::Monotonic);
        seen.set(&restored, offsets).unwrap();
        let again = capture(&restored, PLACE, offsets).unwrap();
        assert_eq!((again.ticks, again.interval), (1, seen.interval));
        let late = again.deadline.unwrap() - seen.deadline.unwrap();
        assert!((0..1_000_000_000).contains(&late), "{late}");
        assert_eq!(read(&restored), 1);
    }

    /// CRIU restores the seconds of the deadline, and this fires at once.
    #[test]
    fn a_deadline_is_a_reading_of_the_clock() {
        for (id, kind) in [
            (TimerfdClockId::Realtime, Clock::Realtime),
            (TimerfdClockId::Monotonic, Clock::Monotonic),
            (TimerfdClockId::Boottime, Clock::Boottime),
        ] {
            let offsets = Offsets::default();
            let source = timer(id);
            let deadline = kind.now(offsets) + 3_600_000 * MS + 123_456_789;
            arm(&source, TimerfdTimerFlags::ABSTIME, deadline, 0);
            let seen = capture(&source, PLACE, offsets).unwrap();
            let restored = timer(id);
            seen.set(&restored, offsets).unwrap();
            let again = capture(&restored, PLACE, offsets).unwrap();
            assert_eq!((again.flags, again.ticks), (ABSOLUTE, 0));
            let late = i128::from(again.deadline.unwrap()) - deadline;
            assert!((0..1000 * MS).contains(&late), "{late}");
        }
    }

    #[test]
    fn what_came_due_on_the_way_is_counted_and_fires() {
        let offsets = Offsets::default();
        let now = saturated(Clock::Monotonic.now(offsets));
        let mut seen = Timer {
            place: PLACE,
            clock: 1,
            flags: 0,
            ticks: 2,
            deadline: Some(now - 25_000_000_000),
            interval: 10_000_000_000,
        };
        let restored = timer(TimerfdClockId::Monotonic);
        seen.set(&restored, offsets).unwrap();
        assert_eq!(read(&restored), 5, "two that nobody had read, three since");
        (seen.interval, seen.ticks) = (0, 0);
        seen.set(&restored, offsets).unwrap();
        wait_for_tick(&restored);
        assert_eq!(read(&restored), 1);
    }

    #[test]
    fn a_disarmed_one_stays_so_and_its_tick_is_kept() {
        let offsets = Offsets::default();
        let source = timer(TimerfdClockId::Monotonic);
        arm(&source, TimerfdTimerFlags::empty(), MS, 0);
        wait_for_tick(&source);
        let seen = capture(&source, PLACE, offsets).unwrap();
        assert_eq!((seen.ticks, seen.deadline), (1, None));
        let restored = timer(TimerfdClockId::Monotonic);
        seen.set(&restored, offsets).unwrap();
        assert_eq!(capture(&restored, PLACE, offsets).unwrap(), seen);
        assert_eq!(read(&restored), 1);
    }
}
