//! The fault matrix, with real systems: every step of a migration × everything that can break, and
//! what must hold afterwards (`cell`). A sample by default, all with `cargo xtask test --long`, which
//! writes its part of `docs/fault-matrix.md` when it is told `--out docs`.
//!
//! `UMS_MATRIX` holds words that the names of the cells to be tried contain, separated by `|`; for
//! who follows one of them up. No table is written then.

#[path = "../common/mod.rs"]
mod common;

mod cell;
mod document;
mod fault;
mod point;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cell::{Arena, Cell, Ending};
use fault::{FAULTS, Fault, Way};
use point::{POINTS, Side};
use ums_testbed::tools::is_long;

/// Pairs of systems at work at once. More are slower: the kernel makes and removes network namespaces
/// one at a time for the whole machine, and each cell has a dozen.
const WORKERS: usize = 2;

/// Lines of each system's log that are shown with a cell that failed.
const LOG_LINES: usize = 12;

/// Cells that exercise each kind of fault once, in different steps.
const SAMPLE: [(&str, Fault); 16] = [
    ("facts asked for", Fault::Twice),
    ("container asked for", Fault::Late),
    ("container created", Fault::Coordinator(Side::Destination)),
    ("files copied", Fault::Agent(Side::Source)),
    ("before the freeze", Fault::Disk),
    ("frozen, memory streams", Fault::Criu),
    ("frozen, memory streams", Fault::Keeper(Side::Source)),
    ("frozen, memory streams", Fault::Memory),
    ("delivered", Fault::Coordinator(Side::Source)),
    ("restore asked for", Fault::Cut(Way::ToSource)),
    ("CRIU restores", Fault::Keeper(Side::Destination)),
    ("held", Fault::Cut(Way::ToDestination)),
    ("held", Fault::Abort),
    ("held", Fault::Frontman(Side::Source)),
    ("committed, not run", Fault::Agent(Side::Destination)),
    ("Frontman not told", Fault::Coordinators),
];

/// What became of one cell.
struct Tried {
    cell: Cell,
    ending: Result<Ending, String>,
}

/// What became of a run.
struct Run {
    tried: Vec<Tried>,
    took: Duration,
}

fn all_cells() -> Vec<Cell> {
    let all = POINTS
        .into_iter()
        .flat_map(|point| FAULTS.map(|fault| Cell { point, fault }));
    all.filter(|cell| cell.fault.fits(cell.point)).collect()
}

#[test]
fn a_sample_of_the_matrix() {
    let chosen = SAMPLE.map(|(name, fault)| {
        let point = POINTS.into_iter().find(|point| point.name == name);
        let point = point.expect("a point of this name");
        assert!(fault.fits(point), "{name}: {}", fault.name());
        Cell { point, fault }
    });
    if let Some(run) = tried("a_sample_of_the_matrix", &chosen) {
        run.must_have_survived();
    }
}

#[test]
fn the_whole_matrix() {
    if !is_long("the_whole_matrix") {
        return;
    }
    let filter = std::env::var("UMS_MATRIX").ok();
    let chosen = |cell: &Cell| match &filter {
        Some(words) => words.split('|').any(|words| cell.name().contains(words)),
        None => true,
    };
    let cells: Vec<_> = all_cells().into_iter().filter(chosen).collect();
    let Some(run) = tried("the_whole_matrix", &cells) else {
        return;
    };
    let out = std::env::var_os("UMS_FAULT_MATRIX").map(PathBuf::from);
    if let Some(path) = out.filter(|_| filter.is_none()) {
        let document = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, document::with(&document, &run)).expect("it is written");
    }
    run.must_have_survived();
}

/// Tries cells, in several pairs of systems at once: most of a cell is waiting.
fn tried(test: &str, cells: &[Cell]) -> Option<Run> {
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let work = || workers_share(test, cells, &next);
    let tried: Option<Vec<_>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS.min(cells.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let shares = workers
            .into_iter()
            .map(|worker| worker.join().expect("see above"));
        shares.collect::<Vec<_>>().into_iter().collect()
    });
    let tried = tried?.into_iter().flatten().collect();
    let took = begin.elapsed();
    Some(Run { tried, took })
}

/// Takes one cell after the other; each that fails is told, and the next begins with new systems.
fn workers_share(test: &str, cells: &[Cell], next: &AtomicUsize) -> Option<Vec<Tried>> {
    let mut arena = Arena::new(test)?;
    let mut tried = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(cell) = cells.get(number).copied() else {
            break;
        };
        let began = Instant::now();
        let ending = arena.run(cell).map_err(|error| format!("{error:#}"));
        let (number, of, took) = (number + 1, cells.len(), began.elapsed().as_secs_f64());
        eprintln!("{number}/{of} {took:5.1} s  {}: {ending:?}", cell.name());
        let failed = ending.is_err();
        tried.push(Tried { cell, ending });
        if failed {
            show_logs(&arena);
            arena = Arena::new(test)?;
        }
    }
    common::remove(arena.testbed);
    Some(tried)
}

fn show_logs(arena: &Arena) {
    for system in [&arena.testbed.a, &arena.testbed.b] {
        let said = system.said();
        let lines: Vec<&str> = said.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            eprintln!("    {}: {line}", system.name());
        }
    }
}

impl Run {
    fn must_have_survived(&self) {
        let failed = self.tried.iter().filter(|tried| tried.ending.is_err());
        let failed: Vec<_> = failed
            .map(|tried| format!("{}: {:?}", tried.cell.name(), tried.ending))
            .collect();
        let of = self.tried.len();
        assert!(
            failed.is_empty(),
            "{} of {of} cells: {failed:#?}",
            failed.len()
        );
    }
}
