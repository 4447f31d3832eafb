//! What is aimed at, and how far it is reached. Pure.

use serde::{Deserialize, Serialize};

use super::results::Row;
use super::stats::{Spread, ratio};
use super::{Cell, DEFAULT, Sample, Technique};

/// An aim, and what was reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    /// What is aimed at.
    pub aim: String,
    /// The most, or with `at_least` the least, that it may be.
    pub bound: f64,
    /// Whether the bound is a lower one.
    pub at_least: bool,
    /// What was measured; `None` when it was not.
    pub measured: Option<Spread>,
}

impl Aim {
    /// At most so much.
    pub fn most(aim: impl Into<String>, bound: f64, measured: Option<Spread>) -> Self {
        let (aim, at_least) = (aim.into(), false);
        Self {
            aim,
            bound,
            at_least,
            measured,
        }
    }

    /// At least so much.
    pub fn least(aim: impl Into<String>, bound: f64, measured: Option<Spread>) -> Self {
        Self {
            at_least: true,
            ..Self::most(aim, bound, measured)
        }
    }

    /// Whether the median reaches it; `None` when it was not measured.
    pub fn is_reached(&self) -> Option<bool> {
        self.measured.map(|spread| match self.at_least {
            true => spread.median >= self.bound,
            false => spread.median <= self.bound,
        })
    }
}

/// The aims that rows alone can judge; the default technique unless another one is named.
pub fn of(rows: &[Row]) -> Vec<Aim> {
    let large = Cell::of(1024);
    let dirty = Cell {
        dirty_mib_s: 50,
        ..large
    };
    vec![
        beside_paper(rows, large, "idle 1 GiB", 100.0),
        beside_paper(rows, Cell::of(128), "128 MiB", 20.0),
        beside_paper(rows, dirty, "1 GiB dirtied at 50 MiB/s", 30.0),
        Aim::most(
            "downtime at idle 1 GiB, times our own at 0 MiB",
            1.5,
            over(
                downtime(rows, DEFAULT, large),
                downtime(rows, DEFAULT, Cell::of(0)),
            ),
        ),
        Aim::most(
            "total at 1 GiB random, less 0.5 s, times the wire floor",
            1.1,
            over(
                total(rows, DEFAULT, large).map(|spread| plus(spread, -500.0)),
                total(rows, Technique::WireFloor, large),
            ),
        ),
        Aim::most(
            "a client's longest gap beyond the downtime, ms, the widest of all circumstances",
            30.0,
            widest(rows, |row| {
                Some(row.client_gap_ms?.median - row.downtime_ms?.median)
            }),
        ),
        Aim::most(
            "99 % of answers after the move, times before it, the widest of all circumstances",
            2.0,
            widest(rows, |row| {
                Some(row.after_p99_ms?.median / row.before_p99_ms?.median)
            }),
        ),
        Aim::most("each process more, ms of downtime", 5.0, each_process(rows)),
        Aim::most(
            "downtime at 0 MiB, times CRIU's own dump and restore on one node",
            1.5,
            over(
                downtime(rows, DEFAULT, Cell::of(0)),
                downtime(rows, Technique::Criu, Cell::of(0)),
            ),
        ),
    ]
}

/// What the agent at the source takes for itself, whatever the size of the service.
pub fn agents_memory(samples: &[Sample]) -> Aim {
    let ours = samples.iter().filter(|sample| sample.technique == DEFAULT);
    let most = ours.filter_map(|sample| sample.agent_mib).reduce(f64::max);
    Aim::most(
        "source agent's memory, MiB, the most of all circumstances",
        64.0,
        Spread::of(most),
    )
}

fn beside_paper(rows: &[Row], cell: Cell, what: &str, times: f64) -> Aim {
    let measured = over(
        downtime(rows, DEFAULT, cell),
        downtime(rows, Technique::Paper, cell),
    );
    let aim = format!("downtime at {what}, share of the paper's way (1/{times})");
    Aim::most(aim, 1.0 / times, measured)
}

fn find(rows: &[Row], technique: Technique, cell: Cell) -> Option<&Row> {
    rows.iter()
        .find(|row| (row.technique, row.cell) == (technique, cell))
}

fn downtime(rows: &[Row], technique: Technique, cell: Cell) -> Option<Spread> {
    find(rows, technique, cell)?.downtime_ms
}

fn total(rows: &[Row], technique: Technique, cell: Cell) -> Option<Spread> {
    Some(find(rows, technique, cell)?.total_ms)
}

fn over(one: Option<Spread>, other: Option<Spread>) -> Option<Spread> {
    ratio(one?, other?)
}

fn plus(spread: Spread, more: f64) -> Spread {
    Spread {
        median: spread.median + more,
        low: spread.low + more,
        high: spread.high + more,
        min: spread.min + more,
        max: spread.max + more,
    }
}

/// The greatest of these numbers of our default technique; its spread is that of the others.
fn widest(rows: &[Row], value: impl Fn(&Row) -> Option<f64>) -> Option<Spread> {
    let ours = rows.iter().filter(|row| row.technique == DEFAULT);
    let spread = Spread::of(ours.filter_map(value))?;
    Some(Spread {
        median: spread.max,
        ..spread
    })
}

/// What a process adds, from the fewest to the most that were measured without memory.
fn each_process(rows: &[Row]) -> Option<Spread> {
    let idle = |row: &&Row| {
        row.technique == DEFAULT
            && row.cell
                == Cell {
                    processes: row.cell.processes,
                    ..Cell::of(0)
                }
    };
    let few = rows
        .iter()
        .filter(idle)
        .min_by_key(|row| row.cell.processes)?;
    let many = rows
        .iter()
        .filter(idle)
        .max_by_key(|row| row.cell.processes)?;
    let more = many.cell.processes.checked_sub(few.cell.processes)?;
    let (few, many) = (few.downtime_ms?, many.downtime_ms?);
    let each = |many: f64, few: f64| (many - few) / f64::from(more);
    (more > 0).then(|| Spread {
        median: each(many.median, few.median),
        low: each(many.low, few.high),
        high: each(many.high, few.low),
        min: each(many.min, few.max),
        max: each(many.max, few.min),
    })
}

#[cfg(test)]
mod test {
    use super::super::results::rows;
    use super::super::results::test::sample;
    use super::*;

    fn named<'a>(aims: &'a [Aim], what: &str) -> &'a Aim {
        let mut of = aims.iter().filter(|aim| aim.aim.contains(what));
        of.next().expect("an aim")
    }

    #[test]
    fn a_missed_aim_is_missed_and_what_was_not_measured_is_not_judged() {
        let (small, large) = (Cell::of(128), Cell::of(1024));
        let samples = [
            sample(DEFAULT, small, 300.0, 60.0),
            sample(Technique::Paper, small, 2000.0, 1000.0),
            sample(DEFAULT, large, 9000.0, 80.0),
            sample(Technique::Paper, large, 12000.0, 12000.0),
        ];
        let aims = of(&rows(&samples));
        assert_eq!(named(&aims, "at 128 MiB").is_reached(), Some(false));
        assert_eq!(
            named(&aims, "at idle 1 GiB, share").is_reached(),
            Some(true)
        );
        assert_eq!(named(&aims, "dirtied").is_reached(), None);
        assert_eq!(named(&aims, "wire floor").is_reached(), None);
        assert_eq!(named(&aims, "longest gap").is_reached(), Some(true));
        assert_eq!(
            Aim::least("x", 0.9, Spread::of([0.8])).is_reached(),
            Some(false)
        );
    }

    #[test]
    fn a_process_more_costs_what_it_adds() {
        let with = |processes, downtime_ms| {
            let cell = Cell {
                processes,
                ..Cell::of(0)
            };
            sample(DEFAULT, cell, 300.0, downtime_ms)
        };
        let aims = of(&rows(&[with(1, 50.0), with(5, 58.0)]));
        let aim = named(&aims, "each process more");
        assert_eq!(aim.measured.map(|spread| spread.median), Some(2.0));
    }
}
