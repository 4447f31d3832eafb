//! The runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::fault::{Chance, Fault, Moment, Side, Strike, Which, Will};
use super::run::{End, Played, play};
use super::table;
use super::world::Mutant;

/// Seeds that a default test plays.
const SEEDS: u64 = 2000;
/// Seeds that a long one does.
const SEEDS_LONG: u64 = 100_000;

/// What happens first, so that another way is walked: the way back from each step that has one.
const WAYS: [(&str, Option<(&str, Fault)>); 5] = [
    ("", None),
    ("back from 7", Some(("a agent open after", Fault::Fail(1)))),
    (
        "back from 8",
        Some(("a agent frontman/hold after", Fault::Fail(1))),
    ),
    (
        "back from 10",
        Some(("a agent checkpoint after", Fault::Fail(1))),
    ),
    (
        "back from 12",
        Some(("b agent restore after", Fault::Fail(1))),
    ),
];

fn is_long() -> bool {
    std::env::var_os("UMS_TEST_LONG").is_some()
}

/// One cell: a way, and what strikes on it.
struct Cell {
    row: String,
    strikes: Vec<Strike>,
}

fn strike(place: &str, nth: u32, fault: Fault) -> Strike {
    let place = place.to_owned();
    let at = Moment { place, nth };
    Strike { at, fault }
}

/// Every moment of a way × every fault that can strike there.
fn cells(way: &str, first: Option<(&str, Fault)>) -> Vec<Cell> {
    let first: Vec<Strike> = first
        .iter()
        .map(|(place, fault)| strike(place, 1, *fault))
        .collect();
    let baseline = play(Will::Script(first.clone()), None);
    assert!(
        baseline.wrong.is_empty(),
        "{:#?}\n{}",
        baseline.wrong,
        baseline.trace.join("\n")
    );
    let steps = table::steps(&baseline.moments);
    let begin = match first.first() {
        Some(strike) => baseline
            .moments
            .iter()
            .position(|(_, moment)| *moment == strike.at),
        None => None,
    };
    let walked = &baseline.moments[begin.map_or(0, |at| at + 1)..];
    let mut cells = Vec::new();
    for (kind, moment) in walked {
        let row = match way {
            "" => format!("{:>2} {}", steps[moment].number(), steps[moment].name()),
            way => way.to_owned(),
        };
        for fault in kind.faults() {
            let mut strikes = first.clone();
            let at = moment.clone();
            strikes.push(Strike { at, fault });
            let row = row.clone();
            cells.push(Cell { row, strikes });
        }
    }
    cells
}

/// Plays on all processors: the index of each run, and what it was.
fn play_all<T: Send>(count: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= count {
                        return;
                    }
                    let result = job(index);
                    done.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(index, result);
                }
            });
        }
    });
    done.into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into_values()
        .collect()
}

/// What a failed run has to say.
fn account(title: &str, played: &Played) -> String {
    format!(
        "{title}: {:#?}\nstruck: {:#?}\n{}",
        played.wrong,
        played.struck,
        played.trace.join("\n")
    )
}

/// Panics with all failures in short, and the first at length.
fn assert_none(failures: Vec<(String, String)>) {
    if let Some((_, first)) = failures.first() {
        let titles: Vec<&str> = failures.iter().map(|(title, _)| title.as_str()).collect();
        panic!("{first}\n\n{} failed:\n{}", titles.len(), titles.join("\n"));
    }
}

#[test]
fn every_moment_times_every_fault() {
    let began = std::time::Instant::now();
    let cells: Vec<Cell> = WAYS
        .iter()
        .flat_map(|(way, first)| cells(way, *first))
        .collect();
    // Which cells are sampled must not depend on the machine.
    let every = if is_long() { 1 } else { CELLS_SAMPLED };
    let chosen: Vec<&Cell> = cells.iter().step_by(every).collect();
    let played = play_all(chosen.len(), |index| {
        let strikes = &chosen[index].strikes;
        let played = play(Will::Script(strikes.clone()), None);
        let last = strikes
            .last()
            .map(|it| format!("{} {}: {:?}", it.at.place, it.at.nth, it.fault));
        let title = format!("[{}] {}", chosen[index].row, last.unwrap_or_default());
        let wrong = (!played.wrong.is_empty() || played.end.is_none()).then(|| {
            (
                format!("{title} {:?}", played.wrong),
                account(&title, &played),
            )
        });
        (played.end, wrong)
    });
    let mut counts = table::Counts::new();
    let mut failures = Vec::new();
    for (cell, (end, wrong)) in chosen.iter().zip(played) {
        failures.extend(wrong);
        if let Some(end) = end {
            *counts
                .entry(cell.row.clone())
                .or_default()
                .entry(end)
                .or_default() += 1;
        }
    }
    println!(
        "{} of {} cells in {:?}\n{}",
        chosen.len(),
        cells.len(),
        began.elapsed(),
        table::section(&counts)
    );
    assert_none(failures);
    if every == 1 {
        table::check(&table::section(&counts));
    }
}

/// One in how many cells a default test plays.
const CELLS_SAMPLED: usize = 7;

/// How many pairs of faults a default test plays, and a long one.
const PAIRS: usize = 600;
const PAIRS_LONG: usize = 40_000;

/// Two faults in one migration, drawn evenly from all pairs of them. The first can change what
/// happens so that the moment of the second never comes.
#[test]
fn pairs_of_faults() {
    let began = std::time::Instant::now();
    let strikes: Vec<Strike> = cells("", None)
        .into_iter()
        .flat_map(|cell| cell.strikes)
        .collect();
    let all = strikes.len() * strikes.len();
    let count = if is_long() { PAIRS_LONG } else { PAIRS };
    let played = play_all(count, |index| {
        // Steps near the golden section of all: evenly spread, whatever the count.
        let drawn = index.wrapping_mul(all / 1000 * 618 + 1) % all;
        let pair = [drawn / strikes.len(), drawn % strikes.len()].map(|at| strikes[at].clone());
        let [one, other] = &pair;
        let title = format!("{one:?}, {other:?}");
        let played = play(Will::Script(pair.to_vec()), None);
        let both = played.struck.len() == 2;
        let wrong = (!played.wrong.is_empty() || played.end.is_none()).then(|| {
            (
                format!("{title} {:?}", played.wrong),
                account(&title, &played),
            )
        });
        (both, wrong)
    });
    let both = played.iter().filter(|(both, _)| *both).count();
    println!(
        "{count} of {all} pairs, both struck in {both}, {:?}",
        began.elapsed()
    );
    assert_none(played.into_iter().filter_map(|(_, wrong)| wrong).collect());
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match (number("UMS_SIM_SEED"), number("UMS_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => 0..count,
        (None, None) if is_long() => 0..SEEDS_LONG,
        (None, None) => 0..SEEDS,
    }
}

fn of_seed(seed: u64) -> Played {
    play(Will::Chance(Chance::new(seed)), None)
}

#[test]
fn random_faults() {
    let began = std::time::Instant::now();
    let seeds: Vec<u64> = seeds().collect();
    let played = play_all(seeds.len(), |index| {
        let (seed, played) = (seeds[index], of_seed(seeds[index]));
        if seeds.len() == 1 {
            println!("{}", played.trace.join("\n"));
        }
        let title = format!("UMS_SIM_SEED={seed}");
        let wrong = (!played.wrong.is_empty() || played.end.is_none()).then(|| {
            (
                format!("{title} {:?}", played.wrong),
                account(&title, &played),
            )
        });
        (played.end, played.struck.len(), wrong)
    });
    let mut ends = BTreeMap::<Option<End>, usize>::new();
    let mut faults = 0;
    let mut failures = Vec::new();
    for (end, struck, wrong) in played {
        *ends.entry(end).or_default() += 1;
        faults += struck;
        failures.extend(wrong);
    }
    println!(
        "{} seeds, {faults} faults in {:?}: {ends:?}",
        seeds.len(),
        began.elapsed()
    );
    assert_none(failures);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..8 {
        assert_eq!(of_seed(seed).trace, of_seed(seed).trace, "seed {seed}");
    }
}

/// Plays these faults: nothing must be wrong.
fn holds(strikes: &[Strike]) {
    let played = play(Will::Script(strikes.to_vec()), None);
    assert!(
        played.wrong.is_empty() && played.end.is_some(),
        "{}",
        account("", &played)
    );
    assert_eq!(
        played.struck.len(),
        strikes.len(),
        "{}",
        account("not all struck", &played)
    );
}

/// Found by seed 12: it was shown as under way until the Coordinator was restarted.
#[test]
fn a_request_that_was_written_though_an_error_says_otherwise_is_given_up() {
    holds(&[
        strike("a journal", 1, Fault::Doubtful),
        strike("a journal", 2, Fault::Refused),
    ]);
}

/// Found by seed 356: an agent that was restarted after it ran the service knew nothing of it.
#[test]
fn a_service_that_runs_is_found_running_after_its_agent_was_restarted() {
    let agents = Fault::Agent(Which::Both);
    holds(&[
        strike("b journal", 5, Fault::Refused),
        strike("a commit answered", 1, agents),
    ]);
}

/// Found by pairs of faults: a service that ran, was lost before anybody had heard that it ran, and
/// whose record said that it had arrived, was neither taken for one that ran nor could be discarded.
#[test]
fn a_service_that_is_lost_before_its_run_is_answered_has_run() {
    let lost = Fault::Keeper(Side::B);
    holds(&[
        strike("b agent run after", 1, Fault::Fail(3)),
        strike("b agent migration after", 2, lost),
    ]);
    holds(&[
        strike("b agent run after", 1, Fault::Coordinator(Which::B)),
        strike("b agent publish before", 1, lost),
    ]);
}

/// An agent that has been told to leave nothing of a migration makes nothing of it later either, not
/// even if it had never heard of it.
#[test]
fn a_create_that_comes_after_the_discard_leaves_nothing() {
    holds(&[strike("b agent create before", 1, Fault::Late)]);
}

/// Plays a broken protocol with one fault: what must be found wrong.
fn caught(mutant: Mutant, place: &str, fault: Fault, words: &str) {
    let script = |mutant| play(Will::Script(vec![strike(place, 1, fault)]), mutant);
    let sound = script(None);
    assert!(sound.wrong.is_empty(), "{}", account("unbroken", &sound));
    let broken = script(Some(mutant));
    let found = broken.wrong.iter().any(|wrong| wrong.contains(words));
    assert!(found, "{}", account("not caught", &broken));
}

#[test]
fn a_commit_that_is_sent_before_it_is_durable_is_caught() {
    let fault = Fault::Coordinator(Which::A);
    let mutant = Mutant::CommitsBeforeItIsDurable;
    caught(mutant, "a commit answered", fault, "two instances execute");
}

#[test]
fn a_prepared_that_is_answered_before_it_is_durable_is_caught() {
    let fault = Fault::Coordinator(Which::B);
    let mutant = Mutant::PreparesBeforeItIsDurable;
    caught(mutant, "a commit asked", fault, "does not end");
}

#[test]
fn a_thaw_after_the_commit_is_caught() {
    let mutant = Mutant::ThawsAfterTheCommit;
    caught(
        mutant,
        "a commit asked",
        Fault::Lose,
        "two instances execute",
    );
}

#[test]
fn a_run_before_the_commit_is_caught() {
    let mutant = Mutant::RunsAtRestore;
    let fault = Fault::Fail(1);
    caught(mutant, "b agent restore after", fault, "executes with");
}
