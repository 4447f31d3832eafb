//! Dirty tracking on this kernel: what was copied in rounds while a program does with its memory all that
//! it can, and at last when it stands still, is what its memory holds, page by page.

mod model;
mod program;
mod states;

use std::time::Instant;

use ums_checkpoint::dirty::{self, Backend, Moment, Seen, Tracker, WriteProtect};

use model::Copies;
use program::Program;

/// Rounds while it runs.
const ROUNDS: usize = 6;

/// What a tracker that is wrong would tell.
type Wrong = fn(&mut Seen, &Copies);

/// One run: what was copied differs in so many pages from what there is.
fn run(seed: u64, wrong: Option<Wrong>) -> usize {
    let program = Program::torture(seed);
    let mut tracker = WriteProtect::default();
    let mut copies = Copies::default();
    for _ in 0..ROUNDS {
        copies.take(&mut tracker, &program, Moment::Running, wrong);
        program.wait_for_work();
    }
    // A stop by a signal ends epoll_wait(2) with EINTR (signal(7)): what comes after it is not our doing.
    assert_eq!(program.damages(), "", "seed {seed}");
    program.stop();
    copies.take(&mut tracker, &program, Moment::Frozen, wrong);
    let differences = copies.differences(&program);
    let processes = program.processes();
    tracker.disarm(&processes);
    program.check_nothing_is_left();
    program.go_on();
    program.wait_for_work();
    let damages = program.damages();
    let pages = damages.lines().filter(|line| line.contains("page"));
    assert_eq!(pages.collect::<Vec<_>>(), Vec::<&str>::new(), "seed {seed}");
    if wrong.is_none() {
        assert_eq!(differences, Vec::<String>::new(), "seed {seed}");
    }
    differences.len()
}

/// Whether this kernel can; a test that can't run says so.
fn can() -> bool {
    let backend = dirty::choose(dirty::features());
    if backend != Backend::WriteProtect {
        eprintln!("SKIPPED: this kernel tracks by {backend:?}");
    }
    backend == Backend::WriteProtect
}

#[test]
fn copies_are_what_the_memory_holds() {
    if !can() {
        return;
    }
    let runs = match std::env::var_os("UMS_TEST_LONG") {
        Some(_) => 2000,
        None => 6,
    };
    let begin = Instant::now();
    for seed in 0..runs {
        run(seed * 2 + 1, None);
    }
    eprintln!("{runs} runs in {:?}", begin.elapsed());
}

/// The comparison finds what is wrong: a tracker that lacks one of its rules fails.
#[test]
fn a_rule_that_is_missing_is_found() {
    if !can() {
        return;
    }
    let rules: [(&str, Wrong); 4] = [
        ("what is new is written", |seen, copies| {
            seen.written = copies.known(seen.process.pid, &seen.written);
        }),
        ("what was dropped is dropped", |seen, copies| {
            seen.held.extend(copies.held(seen.process.pid).iter());
        }),
        ("a new process is written", |seen, copies| {
            if copies.is_new(seen.process.pid) {
                seen.written = dirty::Ranges::default();
            }
        }),
        ("what was written is written", |seen, copies| {
            if !copies.is_new(seen.process.pid) {
                seen.written = dirty::Ranges::default();
            }
        }),
    ];
    for (rule, wrong) in rules {
        let found = (0..5).any(|seed| run(seed * 2 + 1, Some(wrong)) > 0);
        assert!(found, "nobody misses `{rule}`");
    }
}
