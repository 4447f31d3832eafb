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

/// Whether somebody else keeps CRIU waiting: pages of its that nobody takes.
pub type Excused = Box<dyn Fn() -> bool>;

/// What is done to be patient with a CRIU.
pub struct Patience {
    within: Duration,
    /// The processes that work for it beside itself: those that it is restoring.
    helpers: Box<dyn Fn() -> Vec<i32>>,
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
    pub fn with_helpers(self, helpers: Box<dyn Fn() -> Vec<i32>>) -> Self {
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
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            if ready(LOOK)? {
                return Ok(Waited::Ready);
            }
            let now = self.activity(pid);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            let excuse = if (self.excused)() {
                EXCUSE
            } else {
                Duration::ZERO
            };
            let is_late = end.is_some_and(|end| Instant::now() > end);
            if is_late || since.elapsed() > self.within + excuse {
                return Ok(Waited::InVain);
            }
        }
    }

    /// A number that changes while any of them does anything.
    fn activity(&self, pid: u32) -> u64 {
        let mut all = (self.helpers)();
        all.push(pid as i32);
        all.into_iter().map(activity_of).fold(0, u64::wrapping_add)
    }
}

/// What a wait came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Ready,
    InVain,
}

/// Time on a processor (`/proc/PID/schedstat`, nanoseconds) and bytes read and written (`/proc/PID/io`).
fn activity_of(pid: i32) -> u64 {
    let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let numbers = |text: &str| -> u64 {
        text.split_whitespace()
            .filter_map(|word| word.parse::<u64>().ok())
            .fold(0, u64::wrapping_add)
    };
    let time = read("schedstat");
    let time = time.split_whitespace().next().unwrap_or_default();
    numbers(time).wrapping_add(numbers(&read("io")))
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
        let busy = "i=0; while [ $i -lt 12 ]; do i=$((i+1)); sleep 0.1; done";
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
}
