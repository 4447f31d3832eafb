//! Dirty tracking on this kernel: what was copied in rounds while a program does with its memory all that
//! it can, and at last when it stands still, is what its memory holds, page by page.

mod model;
mod program;
mod states;

use std::time::Instant;

use ums_checkpoint::dirty::{self, Backend, Moment, Seen};

use model::Copies;
use program::Program;

/// Rounds while it runs.
const ROUNDS: usize = 6;

/// What a tracker that is wrong would tell.
type Wrong = fn(&mut Seen, &Copies);

/// One run: what was copied differs in so many pages from what there is.
fn run(backend: Backend, seed: u64, wrong: Option<Wrong>) -> usize {
    let program = Program::torture(seed);
    let mut tracker = program.tracker(backend);
    let mut copies = Copies::default();
    for _ in 0..ROUNDS {
        copies.take(&mut *tracker, &program, Moment::Running, wrong);
        program.wait_for_work();
    }
    // A stop by a signal ends epoll_wait(2) with EINTR (signal(7)): what comes after it is not our doing.
    assert_eq!(program.damages(), "", "{backend:?}, seed {seed}");
    program.stop();
    copies.take(&mut *tracker, &program, Moment::Frozen, wrong);
    let differences = copies.differences(&program);
    let processes = program.processes();
    tracker.disarm(&processes);
    program.check_nothing_is_left();
    program.go_on();
    program.wait_for_work();
    let damages = program.damages();
    let pages = damages.lines().filter(|line| line.contains("page"));
    assert_eq!(
        pages.collect::<Vec<_>>(),
        Vec::<&str>::new(),
        "{backend:?}, seed {seed}"
    );
    if wrong.is_none() {
        assert_eq!(
            differences,
            Vec::<String>::new(),
            "{backend:?}, seed {seed}"
        );
    }
    differences.len()
}

/// The backends that this kernel has; a test that can't run says so.
fn backends() -> Vec<Backend> {
    let features = dirty::features();
    let mut here = Vec::new();
    if features.write_protect {
        here.push(Backend::WriteProtect);
    }
    if features.soft_dirty {
        here.push(Backend::SoftDirty);
    }
    if here.is_empty() {
        eprintln!("SKIPPED: this kernel tracks nothing");
    }
    here
}

/// Whether this kernel has write-protection, for what it alone does to a process.
fn can() -> bool {
    let can = dirty::features().write_protect;
    if !can {
        eprintln!("SKIPPED: this kernel has no asynchronous write-protection");
    }
    can
}

#[test]
fn copies_are_what_the_memory_holds() {
    let runs = match std::env::var_os("UMS_TEST_LONG") {
        Some(_) => 2000,
        None => 6,
    };
    for backend in backends() {
        let begin = Instant::now();
        for seed in 0..runs {
            run(backend, seed * 2 + 1, None);
        }
        eprintln!("{backend:?}: {runs} runs in {:?}", begin.elapsed());
    }
}

/// The comparison finds what is wrong: a tracker that lacks one of its rules fails.
#[test]
fn a_rule_that_is_missing_is_found() {
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
    for backend in backends() {
        for (rule, wrong) in rules {
            let found = (0..5).any(|seed| run(backend, seed * 2 + 1, Some(wrong)) > 0);
            assert!(found, "{backend:?}: nobody misses `{rule}`");
        }
    }
}
