//! The table of where the downtime goes, and its picture.

use std::fmt::Write;

use anyhow::Result;
use ums_core::budget::{Part, Place};

use super::budget::BudgetSample;
use super::report::Picture;
use super::stats::Spread;
use super::svg::{Bar, bars};

/// Parts that have a colour of their own in the picture.
const SHOWN: usize = 7;

/// The Markdown section: for each part its median on the way there and on the way back.
pub fn markdown(samples: &[BudgetSample]) -> Result<String> {
    let mut text = "\n## Where the downtime goes\n\nA service without memory, milliseconds, medians of the moves \
                    there and of those back. Parts are durations on the clock of whoever spent them.\n\n\
                    ![Where the downtime goes](budget.svg)\n\n"
        .to_owned();
    let ways = ways(samples);
    let heads: Vec<String> = ways.iter().map(|to| format!(" to {to} |")).collect();
    let rules: String = ways.iter().map(|_| " ---: |").collect();
    writeln!(
        text,
        "| part | where |{}\n| --- | --- |{rules}",
        heads.concat()
    )?;
    for part in parts(samples) {
        let mut cells = String::new();
        for to in &ways {
            let cell = median(samples, to, part);
            write!(
                cells,
                " {} |",
                cell.map_or("–".to_owned(), |ms| format!("{ms:.1}"))
            )?;
        }
        writeln!(text, "| {} | {} |{cells}", part.name(), place(part.place()))?;
    }
    let mut cells = String::new();
    for to in &ways {
        let of = samples.iter().filter(|sample| sample.to == *to);
        let spread = Spread::of(of.map(|sample| sample.downtime_ms));
        let cell = spread.map(|s| format!("{:.1} ({:.1}–{:.1})", s.median, s.min, s.max));
        write!(cells, " {} |", cell.unwrap_or("–".to_owned()))?;
    }
    writeln!(text, "| **downtime** | |{cells}")?;
    Ok(text)
}

/// The same as bars: the largest parts by their names, the others as one.
pub fn picture(samples: &[BudgetSample]) -> Picture {
    let (parts, ways) = (parts(samples), ways(samples));
    let of = |to: &str, part: &Part| median(samples, to, *part).unwrap_or(0.0);
    let widest = |part: &Part| ways.iter().map(|to| of(to, part)).fold(0.0, f64::max);
    let mut by_size = parts.clone();
    by_size.sort_by(|one, other| widest(other).total_cmp(&widest(one)));
    by_size.truncate(SHOWN);
    let (shown, others): (Vec<Part>, Vec<Part>) =
        parts.into_iter().partition(|part| by_size.contains(part));
    let together = format!("{} others", others.len());
    let mut names: Vec<&str> = shown.iter().map(|part| part.name()).collect();
    names.push(&together);
    let bar = |to: &String| Bar {
        parts: shown
            .iter()
            .map(|part| of(to, part))
            .chain([others.iter().map(|part| of(to, part)).sum()])
            .collect(),
        name: format!("to {to}"),
    };
    let all: Vec<Bar> = ways.iter().map(bar).collect();
    let title = "Where the downtime of a service without memory goes";
    let picture = bars(title, ("", "downtime, ms"), &names, &all);
    ("budget.svg", picture)
}

/// Where the service went, the way there first.
fn ways(samples: &[BudgetSample]) -> Vec<String> {
    let mut ways: Vec<String> = Vec::new();
    for sample in samples {
        if !ways.contains(&sample.to) {
            ways.push(sample.to.clone());
        }
    }
    ways
}

/// The parts that were seen, in their order.
fn parts(samples: &[BudgetSample]) -> Vec<Part> {
    let mut parts: Vec<Part> = samples
        .iter()
        .flat_map(|sample| sample.parts.iter().map(|span| span.part))
        .collect();
    parts.sort_unstable();
    parts.dedup();
    parts
}

/// How long a part takes on one way, milliseconds.
fn median(samples: &[BudgetSample], to: &str, part: Part) -> Option<f64> {
    let of = samples.iter().filter(|sample| sample.to == to);
    let spans = of.flat_map(|sample| sample.parts.iter().filter(|span| span.part == part));
    Some(Spread::of(spans.map(|span| span.us as f64 / 1000.0))?.median)
}

fn place(place: Place) -> &'static str {
    match place {
        Place::Source => "source",
        Place::Link => "between",
        Place::Destination => "destination",
    }
}

#[cfg(test)]
mod test {
    use ums_core::budget::Span;

    use super::*;

    fn sample(to: &str, run: u32, us: u64) -> BudgetSample {
        let part = |part, us| Span { part, us };
        BudgetSample {
            run,
            to: to.to_owned(),
            downtime_ms: 40.0,
            parts: vec![part(Part::Dump, us), part(Part::Between, 500)],
        }
    }

    #[test]
    fn each_part_has_a_line_and_each_way_a_column() {
        let samples = [
            sample("b", 1, 10_000),
            sample("a", 1, 20_000),
            sample("b", 2, 12_000),
        ];
        let text = markdown(&samples).expect("a table");
        for line in [
            "| part | where | to b | to a |",
            "| dump | source | 11.0 | 20.0 |",
            "| between | between | 0.5 | 0.5 |",
            "| **downtime** | | 40.0 (40.0–40.0) | 40.0 (40.0–40.0) |",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
