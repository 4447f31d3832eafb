//! How long a CRIU that says nothing is waited for while a service is frozen.
//!
//! How long a dump takes depends on the service and on whoever takes its pages. What does not depend
//! on them is that something goes on: CRIU computes, reads or writes. One that does none of it for some
//! seconds hangs, in the kernel or by itself, and the service must not wait for it.

use std::fs;
use std::time::{Duration, Instant};

/// Pause between two looks at what CRIU does, once it is silent. Most of its messages come sooner.
const LOOK: Duration = Duration::from_millis(100);
/// How long somebody else may keep CRIU waiting, beyond what CRIU itself may stand still. Whoever takes
/// its pages gives up sooner; this is for one that hangs too.
const EXCUSE: Duration = Duration::from_secs(60);
/// Who computes does so for at least one in so many parts of the time, on a busy machine too. Some waits
/// in the kernel wake up with each tick of its clock and wait on (for a file lease that is being broken,
/// `fs/locks.c`): that is no more than one in hundreds.
const COMPUTES_ONE_IN: u32 = 50;

/// Whether somebody else keeps CRIU waiting: pages of its that nobody takes.
pub type Excused = Box<dyn Fn() -> bool + Send>;

/// What is done to be patient with a CRIU.
pub struct Patience {
    within: Duration,
    /// The processes that work for it beside itself: those that it is restoring.
    helpers: Box<dyn Fn() -> Vec<i32> + Send>,
    excused: Excused,
}

impl Patience {
    /// Nothing may go on for this long.
    pub fn new(within: Duration) -> Self {
        Self {
            within,
            helpers: Box::new(Vec::new),
            excused: Box::new(|| false),
        }
    }

    /// These work for it.
    pub fn with_helpers(self, helpers: Box<dyn Fn() -> Vec<i32> + Send>) -> Self {
        Self { helpers, ..self }
    }

    /// This is not its fault.
    pub fn unless(self, excused: Excused) -> Self {
        Self { excused, ..self }
    }

    /// Waits until `ready` says so; gives up when CRIU, which is process `pid`, stands still for too
    /// long, or in any case at `end`. `ready` waits by itself for as long as it is told to.
    pub(super) fn wait(
        &self,
        pid: u32,
        end: Option<Instant>,
        mut ready: impl FnMut(Duration) -> std::io::Result<bool>,
    ) -> std::io::Result<Waited> {
        let mut still = Still::since(self.activity(pid), Instant::now());
        loop {
            if ready(LOOK)? {
                return Ok(Waited::Ready);
            }
            let excused = (self.excused)();
            let stands_still = still.look(self.activity(pid), Instant::now(), excused);
            let excuse = if excused { EXCUSE } else { Duration::ZERO };
            let is_late = end.is_some_and(|end| Instant::now() > end);
            if is_late || stands_still > self.within + excuse {
                return Ok(Waited::InVain);
            }
        }
    }

    /// What all of them have done.
    fn activity(&self, pid: u32) -> Activity {
        let mut all = (self.helpers)();
        all.push(pid as i32);
        all.into_iter()
            .map(Activity::of)
            .fold(Activity::default(), Activity::and)
    }
}

/// What processes have done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Activity {
    /// Time on a processor, nanoseconds.
    computed_ns: u64,
    /// Bytes read and written, and the calls for it.
    moved: u64,
}

/// Since when nothing goes on.
struct Still {
    seen: Activity,
    since: Instant,
}

impl Still {
    fn since(seen: Activity, since: Instant) -> Self {
        Self { seen, since }
    }

    /// For how long nothing has gone on at `at`, when `now` is what was done until then. Who waits for
    /// somebody that takes pages (`excused`) wakes up only when some were taken: to hand on the next ones
    /// (splice(2)) takes hardly any time, and counts as nothing that was moved.
    fn look(&mut self, now: Activity, at: Instant, excused: bool) -> Duration {
        let still = at.saturating_duration_since(self.since);
        // Some of them may have ended: then less was done by the others.
        let computed = now.computed_ns.checked_sub(self.seen.computed_ns);
        let computes = computed.is_none_or(|computed| {
            let enough = Duration::from_nanos(computed) * COMPUTES_ONE_IN >= still;
            computed > 0 && (excused || enough)
        });
        if !computes && now.moved == self.seen.moved {
            return still;
        }
        *self = Self::since(now, at);
        Duration::ZERO
    }
}

/// What a wait came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Ready,
    InVain,
}

impl Activity {
    /// Of one process (`/proc/PID/schedstat`, `/proc/PID/io`).
    fn of(pid: i32) -> Self {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let numbers = |text: &str| -> Vec<u64> {
            text.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        };
        let computed = numbers(&read("schedstat"));
        let moved = numbers(&read("io"));
        Self {
            computed_ns: computed.first().copied().unwrap_or_default(),
            moved: moved.into_iter().fold(0, u64::wrapping_add),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            computed_ns: self.computed_ns.wrapping_add(other.computed_ns),
            moved: self.moved.wrapping_add(other.moved),
        }
    }
}

#[cfg(test)]
mod test {
    use std::process::Command;

    use super::*;

    fn wait_for(script: &str, patience: &Patience, end: Option<Instant>) -> Waited {
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = child.id();
        let waited = patience.wait(pid, end, |look| {
            std::thread::sleep(look);
            Ok(child.try_wait()?.is_some())
        });
        let _ = child.kill();
        let _ = child.wait();
        waited.unwrap()
    }

    #[test]
    fn who_does_something_is_waited_for_and_who_stands_still_is_not() {
        let patience = Patience::new(Duration::from_millis(400));
        // Ended by another one after a while, or by itself where that does not come about.
        let busy = "( sleep 1; kill $$ ) & i=0; while [ $i -lt 99999999 ]; do i=$((i+1)); done";
        assert_eq!(wait_for(busy, &patience, None), Waited::Ready);
        assert_eq!(wait_for("exec sleep 100", &patience, None), Waited::InVain);
        let excused = Patience::new(Duration::from_millis(400)).unless(Box::new(|| true));
        let soon = Instant::now() + Duration::from_millis(900);
        assert_eq!(
            wait_for("exec sleep 100", &excused, Some(soon)),
            Waited::InVain
        );
        assert!(soon < Instant::now(), "the excuse counted until the end");
    }

    #[test]
    fn who_only_wakes_up_stands_still() {
        let begin = Instant::now();
        let after = |millis: u64| begin + Duration::from_millis(millis);
        let done = |micros: u64, moved: u64| Activity {
            computed_ns: micros * 1000,
            moved,
        };
        let mut still = Still::since(done(700, 9), begin);
        let second = Duration::from_secs(1);
        assert_eq!(still.look(done(1900, 9), after(1000), false), second);
        assert_eq!(still.look(done(3100, 9), after(2000), false), 2 * second);
        // It computes, or moves something, or some of them have ended.
        assert_eq!(
            still.look(done(50_000, 9), after(2100), false),
            Duration::ZERO
        );
        assert_eq!(still.look(done(50_100, 9), after(3100), false), second);
        assert_eq!(
            still.look(done(50_100, 10), after(3200), false),
            Duration::ZERO
        );
        assert_eq!(still.look(done(50, 10), after(3300), false), Duration::ZERO);
        assert_eq!(still.look(done(50, 10), after(3300), false), Duration::ZERO);
        assert_eq!(still.look(done(50, 10), after(4300), false), second);
        // Pages that somebody takes slowly are no time at all.
        let pages = still.look(done(51, 10), after(4400), true);
        assert_eq!(pages, Duration::ZERO);
        assert_eq!(still.look(done(51, 10), after(5400), true), second);
    }
}
