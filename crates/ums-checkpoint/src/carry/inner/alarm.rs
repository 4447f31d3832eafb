//! Timers that send signals (`timer_create(2)`, `setitimer(2)`).
//!
//! CRIU writes down the time that is left, and sets that at the restore: they are late by the time in
//! between. Here a deadline is a reading of the service's monotonic clock.

use std::fs;
use std::io;

use nix::libc;
use serde::{Deserialize, Serialize};

use super::super::clock::{Clock, Offsets};
use crate::inside::Inside;

const NANOS: i64 = 1_000_000_000;
/// `TIMER_ABSTIME`: the deadline is a reading of the clock.
const ABSOLUTE: u64 = 1;
const ITIMER_REAL: u64 = 0;
/// How long a look at a timer takes at most, unless something comes in between; nanoseconds.
const AT_ONCE: i64 = 500_000;
const LOOKS: u32 = 8;
/// Most timers of a process that are set again: all that a user may have by default, and more.
const TIMERS_MAX: usize = 4096;

/// A timer that is armed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::carry) struct Alarm {
    /// Of timer_create(2), with the number of its clock; none for the one of setitimer(2).
    timer: Option<(i32, i32)>,
    /// When it expires next, nanoseconds.
    deadline: i64,
    /// Nanoseconds; 0 when it expires once.
    interval: i64,
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.timer {
            Some((id, _)) => write!(
                formatter,
                "timer {id} of timer_create(2) is late by the time of the move"
            ),
            None => write!(
                formatter,
                "the timer of setitimer(2) is late by the time of the move"
            ),
        }
    }
}

/// Those of a process.
pub(super) fn ask(pid: i32, offsets: Offsets, inside: &mut Inside) -> io::Result<Vec<Alarm>> {
    let mut found = Vec::new();
    let page = inside.page()?;
    found.extend(look(None, offsets, || {
        inside.call(libc::SYS_getitimer, &[ITIMER_REAL, page])?;
        Ok(pairs(inside.lent()?, 1000))
    })?);
    let text = fs::read_to_string(format!("/proc/{pid}/timers")).unwrap_or_default();
    for (id, clock) in timers(&text).into_iter().take(TIMERS_MAX) {
        found.extend(look(Some((id, clock)), offsets, || {
            inside.call(libc::SYS_timer_gettime, &[id as u64, page])?;
            Ok(pairs(inside.lent()?, 1))
        })?);
    }
    Ok(found)
}

/// A timer that is armed. It is asked again where a long time has passed meanwhile: its deadline may come
/// out that much late, never early.
fn look(
    timer: Option<(i32, i32)>,
    offsets: Offsets,
    mut ask: impl FnMut() -> io::Result<[i64; 2]>,
) -> io::Result<Option<Alarm>> {
    let now = || saturated(Clock::Monotonic.now(offsets));
    let mut best: Option<(i64, Option<Alarm>)> = None;
    for _ in 0..LOOKS {
        let before = now();
        let [interval, left] = ask()?;
        let after = now();
        let took = after - before;
        if best.as_ref().is_none_or(|(least, _)| took < *least) {
            let alarm = Alarm {
                timer,
                deadline: after.saturating_add(left),
                interval,
            };
            best = Some((took, (left > 0).then_some(alarm)));
        }
        if took < AT_ONCE || left == 0 {
            break;
        }
    }
    Ok(best.and_then(|(_, alarm)| alarm))
}

fn saturated(nanos: i128) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// Two times of seconds and parts, in nanoseconds.
fn pairs(bytes: [u8; 32], part: i64) -> [i64; 2] {
    let number = |at: usize| {
        let bytes = bytes[at..at + 8].try_into().unwrap_or_default();
        i64::from_ne_bytes(bytes)
    };
    let nanos = |at| {
        let seconds = number(at).saturating_mul(NANOS);
        seconds.saturating_add(number(at + 8).saturating_mul(part))
    };
    [nanos(0), nanos(16)]
}

fn bytes(times: [i64; 2], part: i64) -> [u8; 32] {
    let numbers = times.map(|time| [time / NANOS, time % NANOS / part]);
    let mut bytes = [0; 32];
    for (at, number) in numbers.iter().flatten().enumerate() {
        bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

/// Number and clock of the timers in `/proc/PID/timers` (proc_pid_timers(5)) whose clocks go on while the
/// service does not run.
fn timers(text: &str) -> Vec<(i32, i32)> {
    let mut found = Vec::new();
    let mut id = None;
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let number = || value.trim().parse::<i32>().ok();
        match name {
            "ID" => id = number(),
            "ClockID" => {
                let clock = number().filter(|clock| clock_of(*clock).is_some());
                found.extend(id.take().zip(clock));
            }
            _ => {}
        }
    }
    found
}

fn clock_of(number: i32) -> Option<Clock> {
    match number {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM | libc::CLOCK_TAI => {
            Some(Clock::Realtime)
        }
        libc::CLOCK_MONOTONIC => Some(Clock::Monotonic),
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => Some(Clock::Boottime),
        _ => None,
    }
}

impl Alarm {
    /// Sets it in a process that has it. One that is due expires at once.
    pub(super) fn set(&self, offsets: Offsets, inside: &mut Inside) -> io::Result<()> {
        // Nothing that takes a while is to come behind the look at the clock.
        inside.page()?;
        let left = i128::from(self.deadline) - Clock::Monotonic.now(offsets);
        let Some((id, clock)) = self.timer else {
            let left = saturated(left.max(1000));
            let at = inside.lend(&bytes([self.interval, left], 1000))?;
            return inside
                .call(libc::SYS_setitimer, &[ITIMER_REAL, at, 0])
                .map(drop);
        };
        let (flags, value) = match clock_of(clock) {
            // What was missed is counted, and the next one comes in step.
            Some(clock @ (Clock::Monotonic | Clock::Boottime)) => {
                (ABSOLUTE, clock.now(offsets) + left)
            }
            // A time that is relative to now is not touched by a change of the time of day.
            _ => (0, left),
        };
        let times = [self.interval, saturated(value.max(1))];
        let at = inside.lend(&bytes(times, 1))?;
        inside
            .call(libc::SYS_timer_settime, &[id as u64, flags, at, 0])
            .map(drop)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn timers_by_their_clocks() {
        let text = "ID: 0\nsignal: 10/0000000000000000\nnotify: signal/pid.7\nClockID: 1\n\
                    ID: 3\nsignal: 10/0\nnotify: none/tid.7\nClockID: -6\nID: 4\nClockID: 0\n";
        assert_eq!(timers(text), [(0, 1), (4, 0)]);
        assert_eq!(timers("ClockID: 1\nID: x\n"), []);
    }

    #[test]
    fn times_go_there_and_back() {
        for part in [1, 1000] {
            let times = [NANOS * 3 + 5_000, 1_000];
            assert_eq!(pairs(bytes(times, part), part), times);
        }
    }
}
