//! The order of the measurements.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::budget::{self, BudgetSample};
use super::budget_report;
use super::clients::{self, ClientSample};
use super::clients_report;
use super::paper_way::{self, SshServer};
use super::report::{self, Aim, Row};
use super::{Sample, Way, ums_way, wire_floor};
use crate::testbed::{Settings, Testbed};
use crate::tools::{Tools, tail};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Sizes of the hog, MiB.
    pub sizes: Vec<u64>,
    /// How often.
    pub runs: u32,
    /// Which ways; the wire floor is told its bytes by the paper's way.
    pub ways: Vec<Way>,
    /// Whether clients on open connections are measured.
    pub clients: bool,
    /// Whether it is measured where the downtime goes.
    pub budget: bool,
    /// Rate of the link, Mbit/s.
    pub rate_mbit: u32,
    /// Where the results go.
    pub out: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The sums.
    pub rows: Vec<Row>,
    /// The aims.
    pub aims: Vec<Aim>,
    /// The Markdown.
    pub markdown: String,
    /// What was left behind.
    pub leftovers: Vec<String>,
}

/// What was seen beside the ways.
#[derive(Debug, Default)]
struct Seen {
    clients: Vec<ClientSample>,
    budget: Vec<BudgetSample>,
}

/// Measures all ways at all sizes, interleaved, so that whatever else the machine does meanwhile
/// falls on all of them alike, and writes `bench.json` and `bench.md`.
pub fn run(tools: &Tools, options: &Options) -> Result<Outcome> {
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot create {}", options.out.display()))?;
    let mut testbed = Testbed::create(
        tools,
        &Settings {
            rate_mbit: Some(options.rate_mbit),
        },
    )?;
    let wants = |way| options.ways.contains(&way);
    let ssh = wants(Way::PaperWay).then(|| SshServer::start(&testbed));
    let ssh = ssh.transpose()?;
    if wants(Way::UmsStopAndCopy) || options.clients || options.budget {
        testbed.start_coordinators()?;
    }
    let (mut samples, mut seen) = (Vec::new(), Seen::default());
    for number in 1..=options.runs {
        for &mib in &options.sizes {
            if wants(Way::UmsStopAndCopy) {
                samples.push(told(ums_way::measure(&testbed, mib, number)?));
            }
            let mut bytes = mib << 20;
            if let Some(ssh) = &ssh {
                let sample = told(paper_way::measure(&testbed, ssh, mib, number)?);
                bytes = sample.bytes;
                samples.push(sample);
            }
            if wants(Way::WireFloor) {
                samples.push(told(wire_floor::measure(&testbed, mib, bytes, number)?));
            }
            // Written after each: hours of measuring must not be lost to a failure at the end.
            write(options, &samples, &seen)?;
        }
        if options.budget {
            seen.budget.extend(budget::measure(&testbed, number)?);
            write(options, &samples, &seen)?;
        }
        if options.clients {
            seen.clients.extend(clients::measure(&testbed, number)?);
            write(options, &samples, &seen)?;
        }
    }
    drop(ssh);
    let leftovers = testbed.remove()?;
    let (rows, aims, markdown) = write(options, &samples, &seen)?;
    Ok(Outcome {
        rows,
        aims,
        markdown,
        leftovers,
    })
}

fn told(sample: Sample) -> Sample {
    let gap = sample
        .gap_s
        .map_or(String::new(), |gap| format!(", gap {gap:.3} s"));
    let parts: Vec<String> = sample
        .parts
        .iter()
        .map(|(n, s)| format!("{n} {s:.3}"))
        .collect();
    eprintln!(
        "run {}: {:>4} MiB, {:<18} total {:.3} s{gap}  {}",
        sample.run,
        sample.mib,
        sample.way.title(),
        sample.total_s,
        parts.join(", ")
    );
    sample
}

fn write(
    options: &Options,
    samples: &[Sample],
    seen: &Seen,
) -> Result<(Vec<Row>, Vec<Aim>, String)> {
    let rows = report::rows(samples);
    let mut aims = report::aims(&rows);
    aims.extend(options.clients.then(|| clients_report::aim(&seen.clients)));
    let heading = format!(
        "One run of the benchmark, the ways interleaved, over a link shaped to {} Mbit/s. {}.",
        options.rate_mbit,
        machine()
    );
    let mut markdown = report::markdown(&rows, &aims, &heading)?;
    if options.clients {
        markdown += &clients_report::markdown(&seen.clients)?;
    }
    if options.budget {
        markdown += &budget_report::markdown(&seen.budget)?;
    }
    let whole = json!({
        "rate_mbit": options.rate_mbit, "machine": machine(),
        "paper": report::paper_figures()?, "samples": samples, "rows": rows, "aims": aims,
        "clients": seen.clients, "budget": seen.budget,
    });
    let (json_path, table) = (options.out.join("bench.json"), options.out.join("bench.md"));
    std::fs::write(&json_path, serde_json::to_vec_pretty(&whole)?)
        .with_context(|| format!("cannot write {}", json_path.display()))?;
    std::fs::write(&table, &markdown)
        .with_context(|| format!("cannot write {}", table.display()))?;
    Ok((rows, aims, markdown))
}

/// What the numbers were measured on.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let build = if cfg!(debug_assertions) {
        "unoptimised build"
    } else {
        "release build"
    };
    format!("{cores} cores, Linux {}, {build}", tail(&kernel).trim())
}
