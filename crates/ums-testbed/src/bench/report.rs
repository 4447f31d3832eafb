//! Medians, spreads and the tables that are made of them.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Sample, Way};

/// Means of the measurements released with the paper (arXiv 2309.03168).
const PAPER: &str = include_str!("../../data/paper-figures.json");

/// The middle and the ends of several measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values; `None` when there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self { median, min, max })
    }
}

/// All runs of one way at one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// How it was moved.
    pub way: Way,
    /// Random data, MiB.
    pub mib: u64,
    /// How many runs.
    pub runs: usize,
    /// Total, seconds.
    pub total_s: Spread,
    /// Gap in the service, seconds.
    pub gap_s: Option<Spread>,
    /// Median of the bytes.
    pub bytes: f64,
}

/// The aims, and what was reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    /// What is aimed at.
    pub aim: String,
    /// Whether it was reached; `None` when it was not measured.
    pub reached: Option<bool>,
    /// The numbers.
    pub detail: String,
}

/// Sums up samples, sizes ascending, ways in their order.
pub fn rows(samples: &[Sample]) -> Vec<Row> {
    let mut keys: Vec<(u64, Way)> = samples
        .iter()
        .map(|sample| (sample.mib, sample.way))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let row = |(mib, way)| {
        let of: Vec<&Sample> = samples
            .iter()
            .filter(|s| (s.mib, s.way) == (mib, way))
            .collect();
        Some(Row {
            way,
            mib,
            runs: of.len(),
            total_s: Spread::of(of.iter().map(|sample| sample.total_s))?,
            gap_s: Spread::of(of.iter().filter_map(|sample| sample.gap_s)),
            bytes: Spread::of(of.iter().map(|sample| sample.bytes as f64))?.median,
        })
    };
    keys.into_iter().filter_map(row).collect()
}

/// Judges the aims: total near the wire floor, downtime below the paper's way.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let find = |way, mib| rows.iter().find(|row| (row.way, row.mib) == (way, mib));
    let mut sizes: Vec<u64> = rows.iter().map(|row| row.mib).collect();
    sizes.dedup();
    let mut aims = Vec::new();
    for mib in sizes {
        let ours = find(Way::UmsStopAndCopy, mib);
        let gaps = ours
            .and_then(|row| row.gap_s)
            .zip(find(Way::PaperWay, mib).and_then(|row| row.gap_s));
        let share = if mib == 0 { 0.5 } else { 1.0 };
        aims.push(Aim {
            aim: format!("{mib} MiB: gap at most {share} of the paper's way"),
            reached: gaps.map(|(ours, paper)| ours.median <= share * paper.median),
            detail: gaps.map_or("not measured".to_owned(), |(ours, paper)| {
                format!("{:.3} s against {:.3} s", ours.median, paper.median)
            }),
        });
        if mib == 1024 {
            let totals = ours
                .zip(find(Way::WireFloor, mib))
                .map(|(a, b)| (a.total_s, b.total_s));
            let limit = |floor: Spread| 1.15 * floor.median + 0.7;
            aims.push(Aim {
                aim: "1024 MiB: total at most 1.15 of the wire floor plus 0.7 s".to_owned(),
                reached: totals.map(|(ours, floor)| ours.median <= limit(floor)),
                detail: totals.map_or("not measured".to_owned(), |(ours, floor)| {
                    format!("{:.3} s against {:.3} s", ours.median, limit(floor))
                }),
            });
        }
    }
    aims
}

/// The Markdown table.
pub fn markdown(rows: &[Row], aims: &[Aim], heading: &str) -> Result<String> {
    let mut text = format!("# Moving a memory hog\n\n{heading}\n\n");
    text += "Seconds: median (least–greatest). Gap: the longest time between two timestamps that the \
             service itself wrote. Ratios are of medians at the same size. \
             Paper's total: what the paper reports for its orchestrator, service and container \
             level.\n\n";
    text += "| MiB | way | runs | total | gap in the service | total ÷ wire floor | gap ÷ paper's way | MB | paper's total |\n";
    text += "| ---: | --- | ---: | --- | --- | ---: | ---: | ---: | --- |\n";
    let reported = paper()?.fig4_total;
    for row in rows {
        let find = |way| {
            rows.iter()
                .find(|other| (other.way, other.mib) == (way, row.mib))
        };
        let floor = find(Way::WireFloor).map(|floor| row.total_s.median / floor.total_s.median);
        let paper = find(Way::PaperWay)
            .and_then(|paper| paper.gap_s)
            .zip(row.gap_s);
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {:.1} | {} |",
            row.mib,
            row.way.title(),
            row.runs,
            cell(Some(row.total_s)),
            cell(row.gap_s),
            ratio(floor),
            ratio(paper.map(|(paper, ours)| ours.median / paper.median)),
            row.bytes / 1e6,
            reported
                .at(row.mib)
                .filter(|_| row.way != Way::WireFloor)
                .unwrap_or("–".to_owned())
        )?;
    }
    text += "\n## Aims\n\n";
    for Aim {
        aim,
        reached,
        detail,
    } in aims
    {
        let word = reached.map_or("not measured", |yes| if yes { "reached" } else { "missed" });
        writeln!(text, "- {aim}: {word} ({detail})")?;
    }
    text += &paper_table()?;
    Ok(text)
}

fn cell(spread: Option<Spread>) -> String {
    spread.map_or("–".to_owned(), |s| {
        format!("{:.3} ({:.3}–{:.3})", s.median, s.min, s.max)
    })
}

fn ratio(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.2}"))
}

/// What is used of the paper's own measurements, on two virtual machines.
#[derive(Deserialize)]
struct Paper {
    source: String,
    fig4_total: Totals,
}

#[derive(Deserialize)]
struct Totals {
    memory_mib: Vec<u64>,
    orchestrator: Vec<f64>,
    service: Vec<f64>,
    container: Vec<f64>,
}

impl Totals {
    /// The three levels at this size.
    fn at(&self, mib: u64) -> Option<String> {
        let index = self.memory_mib.iter().position(|size| *size == mib)?;
        let levels = [&self.orchestrator, &self.service, &self.container];
        let levels = levels.map(|level| level.get(index).map(|seconds| format!("{seconds:.2}")));
        levels
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .map(|levels| levels.join(" / "))
    }
}

fn paper() -> Result<Paper> {
    serde_json::from_str(PAPER).context("the paper's figures")
}

/// The paper's figures as they were released.
pub fn paper_figures() -> Result<serde_json::Value> {
    serde_json::from_str(PAPER).context("the paper's figures")
}

/// The paper's totals at all of its sizes.
fn paper_table() -> Result<String> {
    let Paper {
        source,
        fig4_total: totals,
    } = paper()?;
    let mut text = format!(
        "\n## The paper's figures: total, seconds\n\nFrom {}.\n\n",
        source
    );
    text += "| MiB | orchestrator level | service level | container level |\n";
    text += "| ---: | ---: | ---: | ---: |\n";
    for mib in &totals.memory_mib {
        let levels = totals.at(*mib).context("the paper's figures have gaps")?;
        writeln!(text, "| {mib} | {} |", levels.replace(" / ", " | "))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(way: Way, mib: u64, total_s: f64, gap_s: Option<f64>) -> Sample {
        Sample {
            way,
            mib,
            run: 1,
            total_s,
            gap_s,
            downtime_s: None,
            bytes: 1,
            parts: Vec::new(),
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(
            Spread::of([3.0, 1.0, 2.0]),
            Some(Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            })
        );
        assert_eq!(
            Spread::of([1.0, 2.0]).map(|spread| spread.median),
            Some(1.5)
        );
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_missed_aim_is_called_missed_and_an_unmeasured_one_unmeasured() {
        let samples = [
            sample(Way::UmsStopAndCopy, 0, 1.0, Some(0.6)),
            sample(Way::PaperWay, 0, 1.0, Some(1.0)),
            sample(Way::PaperWay, 64, 1.0, Some(1.0)),
        ];
        let aims = aims(&rows(&samples));
        assert_eq!(
            aims.iter().map(|aim| aim.reached).collect::<Vec<_>>(),
            [Some(false), None]
        );
    }

    #[test]
    fn the_table_has_ours_and_the_papers_figures() {
        let rows = rows(&[
            sample(Way::WireFloor, 0, 2.0, None),
            sample(Way::PaperWay, 0, 3.0, Some(1.0)),
        ]);
        let text = markdown(&rows, &aims(&rows), "One run.").expect("a table");
        assert!(
            text.contains("| 0 | paper's way | 1 | 3.000 (3.000–3.000) | 1.000"),
            "{text}"
        );
        assert!(
            text.contains("| 1.50 |")
                && text.contains("| 5.62 / 4.20 / 8.42 |")
                && text.contains("| 1024 | 17.37 |"),
            "{text}"
        );
    }
}
