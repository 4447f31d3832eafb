//! The Markdown report and its pictures, made of rows.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::aims::Aim;
use super::plan::{FIGURE_4, FIGURE_6};
use super::results::Row;
use super::stats::{Spread, ratio};
use super::svg::{Series, lines};
use super::{Absent, Cell, OURS, Technique, Workload};

/// Means of the measurements released with the paper (arXiv 2309.03168).
const PAPER: &str = include_str!("../../data/paper-figures.json");

/// A picture, by the name of its file.
pub type Picture = (&'static str, String);

/// The table of all rows.
pub fn table(rows: &[Row]) -> Result<String> {
    let mut text = "\n## All that was measured\n\nMilliseconds: median (its 90 % interval; least to greatest \
                    where there were fewer than five runs). Downtime: the longest time between two timestamps \
                    that the service itself wrote. Client's gap: the longest time without an answer, from 5 s before \
                    to 10 s after. Ratios have the spread of both.\n\n"
        .to_owned();
    text += "| workload | MiB | dirty MiB/s | processes | Gbit/s | way | runs | total | downtime | client's gap \
             | 99 % before | 99 % after | MB | downtime ÷ paper's way | total ÷ wire floor |\n";
    text += "| --- | ---: | ---: | ---: | ---: | --- | ---: | --- | --- | --- | --- | --- | ---: | --- | --- |\n";
    for row in rows {
        let Cell {
            workload,
            memory_mib,
            dirty_mib_s,
            processes,
            link_gbps,
        } = row.cell;
        let find = |technique| find(rows, technique, row.cell);
        let paper = find(Technique::Paper).and_then(|paper| paper.downtime_ms);
        let beside = row.downtime_ms.zip(paper).and_then(|(a, b)| ratio(a, b));
        let floor =
            find(Technique::WireFloor).and_then(|floor| ratio(row.total_ms, floor.total_ms));
        let workload = match workload {
            Workload::Hog => "random",
            Workload::Compressible => "compressible",
        };
        writeln!(
            text,
            "| {workload} | {memory_mib} | {dirty_mib_s} | {processes} | {link_gbps} | {} | {} | {} | {} | {} | {} \
             | {} | {:.1} | {} | {} |",
            row.technique.title(),
            row.runs,
            cell(Some(row.total_ms), 0),
            cell(row.downtime_ms, 1),
            cell(row.client_gap_ms, 1),
            cell(row.before_p99_ms, 2),
            cell(row.after_p99_ms, 2),
            row.wire_bytes.median / 1e6,
            cell(beside, 4),
            cell(floor, 2),
        )?;
    }
    Ok(text)
}

/// The ways that are not there.
pub fn absences(absent: &[Absent]) -> Result<String> {
    if absent.is_empty() {
        return Ok(String::new());
    }
    let mut text = "\n## Not measured\n\n".to_owned();
    for Absent {
        technique,
        cell,
        reason,
    } in absent
    {
        let (mib, dirty, processes) = (cell.memory_mib, cell.dirty_mib_s, cell.processes);
        writeln!(
            text,
            "- {} ({mib} MiB, {dirty} MiB/s, {processes} processes): {}",
            technique.title(),
            reason.trim().replace('\n', " ")
        )?;
    }
    Ok(text)
}

/// The table of aims.
pub fn aims(aims: &[Aim]) -> Result<String> {
    let mut text =
        "\n## Aims\n\n| aim | bound | measured | |\n| --- | ---: | --- | --- |\n".to_owned();
    for aim in aims {
        let digits = if aim.bound < 1.0 { 4 } else { 2 };
        let sign = if aim.at_least { "≥" } else { "≤" };
        let how_far = aim.measured.filter(|_| aim.bound > 0.0);
        let word = match (aim.is_reached(), how_far) {
            (Some(true), _) => "**reached**".to_owned(),
            (Some(false), Some(measured)) => {
                format!("missed: {:.2} times the bound", measured.median / aim.bound)
            }
            (Some(false), None) => "missed".to_owned(),
            (None, _) => "not measured".to_owned(),
        };
        let (bound, measured) = (aim.bound, cell(aim.measured, digits));
        writeln!(
            text,
            "| {} | {sign} {bound:.digits$} | {measured} | {word} |",
            aim.aim
        )?;
    }
    Ok(text)
}

/// The paper's figures beside ours: Markdown, and the pictures that it shows.
pub fn figures(rows: &[Row]) -> Result<(String, Vec<Picture>)> {
    let paper: Paper = serde_json::from_str(PAPER).context("the paper's figures")?;
    let mut text = format!(
        "\n## Beside the paper's figures\n\nThe paper's numbers are {}. Ours are of this machine.\n\n",
        paper.source
    );
    let sizes: Vec<Cell> = FIGURE_4.iter().map(|mib| Cell::of(*mib)).collect();
    let processes = FIGURE_6.map(|processes| Cell {
        processes,
        ..Cell::of(0)
    });
    let of_sizes = |levels: &Levels| {
        FIGURE_4
            .iter()
            .map(|mib| levels.at(&paper.fig4_total.memory_mib, *mib))
            .collect()
    };
    let of_processes = |levels: &Levels| {
        let known = &paper.fig6_processes.processes;
        FIGURE_6
            .iter()
            .map(|count| levels.at(known, u64::from(*count)))
            .collect()
    };
    let mut pictures = Vec::new();
    let mut show = |name: &'static str, caption: &str, picture: String| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "![{caption}]({name})\n");
        pictures.push((name, picture));
    };
    // A wire without anything to carry is no measure.
    let is_empty = |row: &Row| row.technique == Technique::WireFloor && row.cell.memory_mib == 0;
    let total = |row: &Row| (!is_empty(row)).then_some(row.total_ms.median / 1e3);
    let downtime = |row: &Row| row.downtime_ms.map(|spread| spread.median);
    let labels =
        |cells: &[Cell], label: fn(&Cell) -> String| cells.iter().map(label).collect::<Vec<_>>();
    let mib = labels(&sizes, |cell| cell.memory_mib.to_string());
    let count = labels(&processes, |cell| cell.processes.to_string());
    let mut series = ours(rows, &sizes, total);
    series.extend(theirs(&paper.fig4_total.levels, of_sizes));
    let axes = ("memory, MiB", "total, s");
    let caption = "Figure 4: total migration time against memory";
    show("figure-4.svg", caption, lines(caption, axes, &mib, &series));
    let series = ours(rows, &sizes, downtime);
    let axes = ("memory, MiB", "downtime, ms");
    let caption = "Downtime against memory";
    show("downtime.svg", caption, lines(caption, axes, &mib, &series));
    let mut series = ours(rows, &processes, total);
    series.extend(theirs(&paper.fig6_processes.levels, of_processes));
    let axes = ("processes", "total, s");
    let caption = "Figure 6: total migration time against processes";
    show(
        "figure-6.svg",
        caption,
        lines(caption, axes, &count, &series),
    );
    let five = &paper.fig5_yolov3_tiny;
    writeln!(
        text,
        "Figure 5 (YOLOv3-tiny, downtime in the paper): orchestrator level {:.2} s, service level {:.2} s, container \
         level {:.2} s. The same workload is not part of this benchmark.",
        five.orchestrator.downtime, five.service.downtime, five.container.downtime
    )?;
    Ok((text, pictures))
}

/// All ways that were measured in one of these circumstances.
fn ours(rows: &[Row], cells: &[Cell], value: impl Fn(&Row) -> Option<f64>) -> Vec<Series> {
    let others = [
        Technique::Paper,
        Technique::RuncLazy,
        Technique::Podman,
        Technique::Criu,
        Technique::WireFloor,
    ];
    let series = |technique: &Technique| {
        let values = cells
            .iter()
            .map(|cell| value(find(rows, *technique, *cell)?));
        Series {
            name: technique.title().to_owned(),
            values: values.collect(),
            dashed: !OURS.contains(technique),
        }
    };
    let all = OURS.iter().chain(&others).map(series);
    all.filter(|one| one.values.iter().any(Option::is_some))
        .collect()
}

fn theirs(levels: &Levels3, values: impl Fn(&Levels) -> Vec<Option<f64>>) -> Vec<Series> {
    let named = [
        ("orchestrator", &levels.orchestrator),
        ("service", &levels.service),
        ("container", &levels.container),
    ];
    named
        .map(|(name, level)| Series {
            name: format!("paper, {name} level"),
            values: values(level),
            dashed: true,
        })
        .into()
}

fn find(rows: &[Row], technique: Technique, cell: Cell) -> Option<&Row> {
    rows.iter()
        .find(|row| (row.technique, row.cell) == (technique, cell))
}

fn cell(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or(
        "–".to_owned(),
        |Spread {
             median, low, high, ..
         }| { format!("{median:.digits$} ({low:.digits$}–{high:.digits$})") },
    )
}

/// What is used of the paper's own measurements, on two virtual machines.
#[derive(Deserialize)]
struct Paper {
    source: String,
    fig4_total: Figure4,
    fig5_yolov3_tiny: Figure5,
    fig6_processes: Figure6,
}

#[derive(Deserialize)]
struct Figure4 {
    memory_mib: Vec<u64>,
    #[serde(flatten)]
    levels: Levels3,
}

#[derive(Deserialize)]
struct Figure6 {
    processes: Vec<u64>,
    #[serde(flatten)]
    levels: Levels3,
}

#[derive(Deserialize)]
struct Levels3 {
    orchestrator: Levels,
    service: Levels,
    container: Levels,
}

/// Values of one level.
#[derive(Deserialize)]
struct Levels(Vec<f64>);

impl Levels {
    fn at(&self, known: &[u64], wanted: u64) -> Option<f64> {
        let index = known.iter().position(|one| *one == wanted)?;
        self.0.get(index).copied()
    }
}

#[derive(Deserialize)]
struct Figure5 {
    orchestrator: Downtime,
    service: Downtime,
    container: Downtime,
}

#[derive(Deserialize)]
struct Downtime {
    downtime: f64,
}

/// The paper's figures as they were released.
pub fn paper_figures() -> Result<serde_json::Value> {
    serde_json::from_str(PAPER).context("the paper's figures")
}

#[cfg(test)]
mod test {
    use super::super::results::rows;
    use super::super::results::test::sample;
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_way_and_its_ratios() {
        let cell = Cell::of(0);
        let samples = [
            sample(Technique::PreCopy, cell, 300.0, 50.0),
            sample(Technique::Paper, cell, 600.0, 500.0),
            sample(Technique::WireFloor, cell, 100.0, 1.0),
        ];
        let text = table(&rows(&samples)).unwrap();
        let line = "| random | 0 | 0 | 1 | 1 | UMS pre-copy | 1 | 300 (300–300) | 50.0 (50.0–50.0)";
        assert!(text.contains(line), "{text}");
        assert!(
            text.contains("| 0.1000 (0.1000–0.1000) | 3.00 (3.00–3.00) |"),
            "{text}"
        );
    }

    #[test]
    fn figures_have_the_papers_and_ours() {
        let rows = rows(&[sample(Technique::PreCopy, Cell::of(64), 300.0, 50.0)]);
        let (text, pictures) = figures(&rows).unwrap();
        assert!(
            text.contains("figure-4.svg") && text.contains("43.90 s"),
            "{text}"
        );
        let (_, figure) = &pictures[0];
        assert!(figure.contains("paper, service level") && figure.contains("UMS pre-copy"));
        assert!(!figure.contains("podman"));
    }

    #[test]
    fn how_far_an_aim_is_missed_is_told() {
        let all = [
            Aim::most("much", 2.0, Spread::of([3.0])),
            Aim::most("little", 2.0, Spread::of([1.0])),
            Aim::most("nothing", 2.0, None),
        ];
        let text = aims(&all).unwrap();
        for line in [
            "| much | ≤ 2.00 | 3.00 (3.00–3.00) | missed: 1.50 times the bound |",
            "| little | ≤ 2.00 | 1.00 (1.00–1.00) | **reached** |",
            "| nothing | ≤ 2.00 | – | not measured |",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
