//! States in which a process is tracked, or said not to be, and in each of which it goes on as it was.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use ums_checkpoint::dirty::{Backend, Moment, Seen, Tracker, Untracked, WriteProtect};

use crate::can;
use crate::model::Copies;
use crate::program::{Program, compiled, is_stopped, wait};

/// The program in one of its states.
fn state(name: &str) -> Program {
    static STATES: OnceLock<PathBuf> = OnceLock::new();
    let program = STATES.get_or_init(|| compiled("ums-states", include_str!("states.c")));
    let mut command = Command::new(program);
    command.arg(name);
    let mut program = Program::of(command);
    program.wait_until_ready();
    program
}

/// Tracks and lets go of it a few times; returns what the last look of each time has seen.
fn seen(program: &Program, times: usize) -> Vec<Seen> {
    let mut last = Vec::new();
    for _ in 0..times {
        let mut tracker = program.tracker(Backend::WriteProtect);
        let mut copies = Copies::default();
        copies.take(&mut *tracker, program, Moment::Running, None);
        let p = program.processes();
        last = tracker.look(&p, Moment::Running).unwrap();
        tracker.disarm(&program.processes());
    }
    program.check_nothing_is_left();
    last
}

fn reason(seen: &[Seen]) -> Option<Untracked> {
    assert_eq!(seen.len(), 1, "{seen:?}");
    if let Some(reason) = seen[0].untracked {
        assert_eq!(
            seen[0].written, seen[0].held,
            "all of it is written: {reason}"
        );
        return Some(reason);
    }
    None
}

/// Threads in each call that a stop interrupts, with a long time-out each and with none.
#[test]
fn no_wait_ends() {
    if !can() {
        return;
    }
    let program = state("waits");
    let seen = seen(&program, 20);
    assert!(seen.len() > 10, "{seen:?}");
    assert!(seen.iter().all(|seen| seen.untracked.is_none()), "{seen:?}");
    assert_eq!(program.damages(), "");
}

#[test]
fn what_is_stopped_is_tracked_and_stays_stopped() {
    if !can() {
        return;
    }
    let program = state("counts");
    program.stop();
    let seen = seen(&program, 3);
    assert_eq!(reason(&seen), None);
    assert!(seen[0].written.is_empty(), "{seen:?}");
    wait("it is stopped", || is_stopped(program.pid()));
    program.go_on();
    program.wait_for_work();
}

/// The filter kills whoever calls userfaultfd(2), and whoever calls close(2).
#[test]
fn a_seccomp_filter_is_suspended() {
    if !can() {
        return;
    }
    let program = state("filtered");
    assert_eq!(reason(&seen(&program, 3)), None);
    program.wait_for_work();
}

#[test]
fn a_handler_of_the_breakpoint_signal_is_not_lost() {
    if !can() {
        return;
    }
    let program = state("breakpoint");
    assert_eq!(reason(&seen(&program, 10)), None);
    program.wait_for_work();
    assert_eq!(program.damages(), "");
}

/// A thread may be about to take one when it is stopped.
#[test]
fn no_signal_is_lost() {
    if !can() {
        return;
    }
    let program = state("signals");
    assert_eq!(reason(&seen(&program, 300)), None);
    program.wait_for_work();
    assert_eq!(program.damages(), "");
}

/// A mapping that grows while it is registered would be registered in part, and would be two to the kernel then,
/// which mremap(2) does not move.
#[test]
fn a_mapping_that_grows_goes_on_growing() {
    if !can() {
        return;
    }
    let program = state("grows");
    let mut tracker = program.tracker(Backend::WriteProtect);
    for _ in 0..50 {
        tracker.look(&program.processes(), Moment::Running).unwrap();
        program.wait_for_work();
    }
    assert_eq!(program.damages(), "");
}

#[test]
fn a_mapping_with_another_userfaultfd_is_written_always() {
    if !can() {
        return;
    }
    let program = state("registered");
    let mut tracker = program.tracker(Backend::WriteProtect);
    for _ in 0..3 {
        let seen = tracker.look(&program.processes(), Moment::Running).unwrap();
        let written = seen[0].written.bytes();
        assert!(written >= 64 * 4096, "its 64 pages are: {written} bytes");
        assert_eq!(seen[0].untracked, None);
    }
}

#[test]
fn who_reads_directly_is_not_tracked() {
    if !can() {
        return;
    }
    let program = state("direct");
    let seen = seen(&program, 2);
    assert_eq!(reason(&seen), Some(Untracked::DirectReads));
}

#[test]
fn who_is_traced_is_not_tracked() {
    if !can() {
        return;
    }
    let program = state("traced");
    let mut tracker = program.tracker(Backend::WriteProtect);
    let seen = tracker.look(&program.processes(), Moment::Running).unwrap();
    let traced = seen
        .iter()
        .filter(|seen| seen.untracked == Some(Untracked::Traced));
    assert_eq!(traced.count(), 1, "{seen:?}");
}

/// A child of vfork(2) has the memory of its parent, and takes nothing from it.
#[test]
fn two_with_one_memory_are_not_tracked() {
    if !can() {
        return;
    }
    let program = state("vfork");
    wait("there is a child", || program.processes().len() == 2);
    let mut tracker = program.tracker(Backend::WriteProtect);
    let seen = tracker.look(&program.processes(), Moment::Running).unwrap();
    assert_eq!(seen.len(), 2);
    let sharing = |seen: &Seen| seen.untracked == Some(Untracked::SharesMemory);
    assert!(seen.iter().all(sharing), "{seen:?}");
}

/// The holder is killed: the kernel takes everything back.
#[test]
fn nothing_is_left_when_the_holder_is_killed() {
    if !can() {
        return;
    }
    let program = state("counts");
    let own = std::env::current_exe().unwrap();
    let mut holder = Command::new(own)
        .args(["--exact", "states::holder", "--nocapture"])
        .env(HELD, program.pid().to_string())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let held = lines.map_while(Result::ok).any(|line| line.contains(HOLDS));
    assert!(held, "the holder holds it");
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", program.pid())).unwrap();
    assert!(smaps.contains(" uw"), "it is tracked");
    holder.kill().unwrap();
    holder.wait().unwrap();
    program.check_nothing_is_left();
    program.wait_for_work();
}

const HELD: &str = "UMS_TEST_HELD";
const HOLDS: &str = "holds it";

/// Not a test of its own: the process that is killed in the one above.
#[test]
fn holder() {
    let Ok(pid) = std::env::var(HELD) else {
        return;
    };
    let pid = pid.parse().unwrap();
    let process = ums_checkpoint::carry::Process { pid, inner: pid };
    let mut tracker = WriteProtect::default();
    let seen = tracker.look(&[process], Moment::Running).unwrap();
    assert_eq!(reason(&seen), None);
    println!("{HOLDS}");
    loop {
        std::thread::park();
    }
}
