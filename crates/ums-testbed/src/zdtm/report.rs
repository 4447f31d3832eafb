//! What became of all tests.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::{Verdict, Way};

/// Longest reason in the table, characters; the JSON has all of it.
const REASON_LEN_MAX: usize = 300;

/// One test.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub test: String,
    /// What became of it in each way that it went.
    pub verdicts: BTreeMap<Way, Verdict>,
}

/// All tests.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// By name.
    pub rows: Vec<Row>,
    /// What the testbed left behind.
    pub leftovers: Vec<String>,
}

/// How many went one way with which end, of those that pass by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Passed.
    pub passed: usize,
    /// Refused before the freeze.
    pub refused: usize,
    /// Changed, and declared.
    pub declared: usize,
    /// Failed in the freeze.
    pub abandoned: usize,
    /// Damaged, or not there any more.
    pub failed: usize,
}

impl Row {
    pub(super) fn new(test: String) -> Self {
        let verdicts = BTreeMap::new();
        Self { test, verdicts }
    }

    pub(super) fn set(&mut self, way: Way, verdict: Verdict) {
        self.verdicts.insert(way, verdict);
    }

    /// As it is told when the test is over.
    pub(super) fn line(&self) -> String {
        let mut line = format!("{:<40}", self.test);
        for (way, verdict) in &self.verdicts {
            let _ = write!(line, " {} {:<9}", way.name(), verdict.word());
        }
        let controlled = self.passes_by_itself();
        let why = self
            .verdicts
            .iter()
            .filter(|(way, _)| controlled || **way == Way::Control);
        why.filter_map(|(_, verdict)| verdict.why())
            .next_back()
            .map_or(line.clone(), |why| format!("{line} {}", short(why)))
    }

    /// Whether it passes without a move.
    fn passes_by_itself(&self) -> bool {
        self.verdicts.get(&Way::Control) == Some(&Verdict::Passed)
    }

    /// Whether it passes in every way that it went with UMS.
    fn passes_moved(&self) -> bool {
        let ways = [Way::There, Way::ThereAndBack];
        let moved: Vec<&Verdict> = ways
            .iter()
            .filter_map(|way| self.verdicts.get(way))
            .collect();
        !moved.is_empty() && moved.iter().all(|verdict| **verdict == Verdict::Passed)
    }
}

impl Report {
    /// The tests that pass without a move.
    fn controlled(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.passes_by_itself())
    }

    /// How they went one way.
    pub fn count(&self, way: Way) -> Count {
        let mut count = Count::default();
        for row in self.controlled() {
            match row.verdicts.get(&way) {
                Some(Verdict::Passed) => count.passed += 1,
                Some(Verdict::Refused(_)) => count.refused += 1,
                Some(Verdict::Declared(_)) => count.declared += 1,
                Some(Verdict::Abandoned(_)) => count.abandoned += 1,
                Some(Verdict::Failed(_)) => count.failed += 1,
                Some(Verdict::LeftOut) | None => {}
            }
        }
        count
    }

    /// Tests that pass moved, in every way that they went, and those that pass without.
    pub fn ratio(&self) -> (usize, usize) {
        let moved = self.controlled().filter(|row| row.passes_moved());
        (moved.count(), self.controlled().count())
    }

    /// Whether every test that passes without a move was carried, refused or declared.
    pub fn holds(&self) -> bool {
        [Way::There, Way::ThereAndBack].iter().all(|way| {
            let count = self.count(*way);
            (count.abandoned, count.failed) == (0, 0)
        })
    }

    /// Sums, and every test that did not pass everywhere, with the reason.
    pub fn markdown(&self) -> String {
        let (moved, all) = self.ratio();
        let mut text = format!(
            "# CRIU's own tests, moved\n\n{moved} of {all} tests that pass without a move pass moved; \
             {} were tried.\n\n| way | pass | refused | declared | abandoned | fail |\n\
             | --- | --- | --- | --- | --- | --- |\n",
            self.rows.len()
        );
        for way in Way::ALL.into_iter().filter(|way| *way != Way::Control) {
            let count = self.count(way);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                way.name(),
                count.passed,
                count.refused,
                count.declared,
                count.abandoned,
                count.failed
            );
        }
        text.push_str("\n| test | way | what | why |\n| --- | --- | --- | --- |\n");
        for row in self.controlled() {
            for (way, verdict) in &row.verdicts {
                if let Some(why) = verdict.why() {
                    let (name, word) = (way.name(), verdict.word());
                    let _ = writeln!(text, "| {} | {name} | {word} | {} |", row.test, short(why));
                }
            }
        }
        let not = self.rows.iter().filter(|row| !row.passes_by_itself());
        let not: Vec<&str> = not.map(|row| row.test.as_str()).collect();
        let _ = writeln!(
            text,
            "\nNot counted, because they do not pass without a move: {}.",
            not.join(", ")
        );
        text
    }
}

/// On one line of a table.
fn short(why: &str) -> String {
    let line = why.replace('\n', " / ").replace('|', "\\|");
    match line.char_indices().nth(REASON_LEN_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(test: &str, verdicts: [Verdict; 3]) -> Row {
        let mut row = Row::new(test.to_owned());
        let ways = [Way::Control, Way::There, Way::ThereAndBack];
        for (way, verdict) in ways.into_iter().zip(verdicts) {
            row.set(way, verdict);
        }
        row
    }

    #[test]
    fn only_what_passes_without_a_move_counts() {
        let (pass, fail) = (Verdict::Passed, Verdict::Failed("no such thing".to_owned()));
        let refused = Verdict::Refused("a lease".to_owned());
        let mut report = Report::default();
        report
            .rows
            .push(row("a", [pass.clone(), pass.clone(), pass.clone()]));
        report
            .rows
            .push(row("b", [fail.clone(), Verdict::LeftOut, Verdict::LeftOut]));
        report
            .rows
            .push(row("c", [pass.clone(), refused.clone(), refused]));
        assert_eq!(report.ratio(), (1, 2));
        assert!(report.holds());
        assert!(report.markdown().contains("1 of 2"));
        assert!(
            report
                .markdown()
                .contains("| c | a-b | refused | a lease |")
        );
        report.rows.push(row("d", [pass.clone(), pass, fail]));
        assert_eq!(report.ratio(), (1, 3));
        assert!(!report.holds());
    }

    #[test]
    fn a_reason_is_one_short_line() {
        assert_eq!(short("one\ntwo | three"), "one / two \\| three");
        assert_eq!(short(&"ä".repeat(1000)).chars().count(), REASON_LEN_MAX + 1);
    }
}
