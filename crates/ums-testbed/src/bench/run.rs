//! The order of the measurements.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::aims::{self, Aim};
use super::budget::{self, BudgetSample};
use super::clients::{self, ClientSample};
use super::paper_way::{self, SshServer};
use super::plan::Task;
use super::results::{self, Row};
use super::throughput::{self, ThroughputSample};
use super::{
    Absent, OURS, Sample, Technique, budget_report, clients_report, report, ums_way, wire_floor,
};
use crate::testbed::{Settings, Testbed};
use crate::tools::{Tools, tail};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// In each run.
    pub tasks: Vec<Task>,
    /// How often, at most.
    pub runs: u32,
    /// No run is begun that is not expected to end within this time.
    pub within: Duration,
    /// Whether it is measured what clients on open connections see, and where the downtime goes.
    pub closely: bool,
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

/// What was seen so far.
#[derive(Debug, Default)]
struct Seen {
    samples: Vec<Sample>,
    absent: Vec<Absent>,
    clients: Vec<ClientSample>,
    budget: Vec<BudgetSample>,
    throughput: Vec<ThroughputSample>,
}

/// Measures all ways in all circumstances, interleaved, so that whatever else the machine does meanwhile
/// falls on all of them alike, and writes `results.json`, `bench.json`, `bench.md` and its pictures.
pub fn run(tools: &Tools, options: &Options) -> Result<Outcome> {
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot create {}", options.out.display()))?;
    let mut testbed = Testbed::create(tools, &Settings::default())?;
    let ssh = SshServer::start(&testbed)?;
    testbed.start_coordinators()?;
    let began = Instant::now();
    let mut seen = Seen::default();
    for number in 1..=options.runs {
        for task in &options.tasks {
            one_task(&testbed, &ssh, (task, number), &mut seen)?;
            // Written after each: hours of measuring must not be lost to a failure at the end.
            write(options, &seen)?;
        }
        if options.closely {
            seen.budget.extend(budget::measure(&testbed, number)?);
            seen.clients.extend(clients::measure(&testbed, number)?);
            seen.throughput.push(throughput::measure(&testbed, number)?);
        }
        let elapsed = began.elapsed();
        if elapsed + elapsed / number > options.within {
            eprintln!("no time for another run after {number}");
            break;
        }
    }
    drop(ssh);
    let leftovers = testbed.remove()?;
    let (rows, aims, markdown) = write(options, &seen)?;
    Ok(Outcome {
        rows,
        aims,
        markdown,
        leftovers,
    })
}

fn one_task(
    testbed: &Testbed,
    ssh: &SshServer,
    (task, number): (&Task, u32),
    seen: &mut Seen,
) -> Result<()> {
    testbed.shape(task.cell.link_gbps * 1000)?;
    let mut bytes = task.cell.memory_mib << 20;
    for technique in &task.techniques {
        let is_absent = |absent: &Absent| {
            let everywhere = technique == &absent.technique && OURS.contains(technique);
            everywhere || (absent.technique, absent.cell) == (*technique, task.cell)
        };
        if seen.absent.iter().any(is_absent) {
            continue;
        }
        let measured = match technique {
            Technique::Paper | Technique::RuncLazy | Technique::Criu => {
                // A way of others that fails is told, and is no reason to end.
                let measured = paper_way::measure(testbed, ssh, *technique, task.cell, number);
                measured.map_err(|error| lacking(task, *technique, &error))
            }
            Technique::Podman => Err(lacking(task, *technique, &podman())),
            Technique::WireFloor => Ok(wire_floor::measure(testbed, task.cell, bytes, number)?),
            ours => ums_way::measure(testbed, *ours, task.cell, number)?,
        };
        match measured {
            Ok(sample) => {
                if *technique == Technique::Paper {
                    bytes = sample.wire_bytes;
                }
                told(&sample);
                seen.samples.push(sample);
            }
            Err(absent) => {
                eprintln!("{}: {}", technique.title(), absent.reason);
                seen.absent.push(absent);
            }
        }
    }
    Ok(())
}

fn lacking(task: &Task, technique: Technique, error: &anyhow::Error) -> Absent {
    Absent {
        technique,
        cell: task.cell,
        reason: format!("{error:#}"),
    }
}

/// Why podman is not measured.
fn podman() -> anyhow::Error {
    match crate::rootfs::program("podman") {
        Ok(_) => anyhow::anyhow!("it is installed, and nothing here drives it yet"),
        Err(_) => anyhow::anyhow!("it is not installed on this machine"),
    }
}

fn told(sample: &Sample) {
    let ms = |value: Option<f64>| value.map_or("–".to_owned(), |ms| format!("{ms:.1}"));
    eprintln!(
        "run {}: {:?}, {}: total {:.0} ms, downtime {}, client's gap {}, 99 % {} before, {} after",
        sample.run,
        sample.cell,
        sample.technique.title(),
        sample.total_ms,
        ms(sample.downtime_ms),
        ms(sample.client_gap_ms),
        ms(sample.before_p99_ms),
        ms(sample.after_p99_ms),
    );
}

fn write(options: &Options, seen: &Seen) -> Result<(Vec<Row>, Vec<Aim>, String)> {
    let rows = results::rows(&seen.samples);
    let mut all_aims = aims::of(&rows);
    all_aims.extend(clients_report::aims(&seen.clients));
    all_aims.push(throughput::aim(&seen.throughput));
    all_aims.push(aims::agents_memory(&seen.samples));
    let (figures, mut pictures) = report::figures(&rows)?;
    let mut markdown = format!(
        "# Moving services\n\nOne run of the benchmark, the ways interleaved. {}.\n",
        machine()
    );
    markdown += &report::aims(&all_aims)?;
    if options.closely {
        markdown += &budget_report::markdown(&seen.budget)?;
        pictures.push(budget_report::picture(&seen.budget));
    }
    markdown += &figures;
    markdown += &report::table(&rows)?;
    markdown += &report::absences(&seen.absent)?;
    if options.closely {
        markdown += &clients_report::markdown(&seen.clients)?;
    }
    let samples = json!({
        "machine": machine(), "paper": report::paper_figures()?, "samples": seen.samples,
        "absent": seen.absent, "aims": all_aims, "clients": seen.clients, "budget": seen.budget,
        "throughput": seen.throughput,
    });
    let results = serde_json::to_vec_pretty(&results::json(&rows))?;
    put(&options.out.join("results.json"), &results)?;
    put(
        &options.out.join("bench.json"),
        &serde_json::to_vec_pretty(&samples)?,
    )?;
    put(&options.out.join("bench.md"), markdown.as_bytes())?;
    for (name, picture) in &pictures {
        put(&options.out.join(name), picture.as_bytes())?;
    }
    Ok((rows, all_aims, markdown))
}

fn put(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
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
