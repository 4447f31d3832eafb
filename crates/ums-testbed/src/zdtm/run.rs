//! All tests, several at a time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;

use super::report::{Report, Row};
use super::service::{control, moved};
use super::{Suite, Test, Verdict, Way, plain};
use crate::testbed::{Settings, Testbed};
use crate::tools::Tools;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// CRIU's `test/zdtm`, built.
    pub zdtm: PathBuf,
    /// Parts of the names of the tests that are wanted; all where there is none.
    pub only: Vec<String>,
    /// Which ways; the control is always gone.
    pub ways: Vec<Way>,
    /// Tests at a time; a system sends four services at once, by default.
    pub at_a_time: usize,
    /// How often a test whose outcome depends on the moment goes each way.
    pub repeat: usize,
    /// Where `zdtm.json` and `zdtm.md` go.
    pub out: PathBuf,
}

/// Lets every test go every way and writes `zdtm.json` and `zdtm.md`; what is left behind is in the
/// report.
pub fn run(tools: &Tools, options: &Options) -> Result<Report> {
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot create {}", options.out.display()))?;
    let mut testbed = Testbed::create(tools, &Settings::default())?;
    let suite = Suite::find(tools, &options.zdtm, &testbed.directory(), |name| {
        options.wants(name)
    })?;
    testbed.start_coordinators()?;
    let report = Mutex::new(Report::default());
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(test) = suite.tests.get(number) else {
                return Ok(());
            };
            let row = one(&testbed, &suite, options, (number, test));
            eprintln!("{}", row.line());
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.rows.push(row);
            // Written after each: an hour must not be lost to a failure at the end.
            write(&report, &options.out)?;
        }
    };
    let ended = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.at_a_time.max(1))
            .map(|_| scope.spawn(work))
            .collect();
        let ends = workers.into_iter().map(|worker| {
            let joined = worker.join();
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        ends.collect::<Result<Vec<()>>>()
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.rows.sort_by(|one, other| one.test.cmp(&other.test));
    ended.and(write(&report, &options.out))?;
    report.leftovers = testbed.remove()?;
    Ok(report)
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

/// One test in all ways.
fn one(testbed: &Testbed, suite: &Suite, options: &Options, (number, test): (usize, &Test)) -> Row {
    let mut row = Row::new(test.name());
    let mut config = None;
    let name = |way: Way| format!("{}-{number}", way.name());
    let controlled = name(Way::Control);
    let verdict = control(suite, test, &controlled, &testbed.a, || {
        config = Some(plain::config(&testbed.a, &controlled)?);
        Ok(())
    });
    let passes = verdict == Verdict::Passed;
    row.set(Way::Control, verdict);
    for way in options.ways.iter().filter(|way| **way != Way::Control) {
        let verdict = match (passes, &config) {
            (true, Some(config)) => {
                repeated(testbed, (suite, test), *way, &name(*way), config, options)
            }
            _ => Verdict::LeftOut,
        };
        row.set(*way, verdict);
    }
    row
}

/// As often as the test asks for, until it does not pass.
fn repeated(
    testbed: &Testbed,
    (suite, test): (&Suite, &Test),
    way: Way,
    name: &str,
    config: &Value,
    options: &Options,
) -> Verdict {
    let times = match test.depends_on_the_moment() && way != Way::Plain {
        true => options.repeat.max(1),
        false => 1,
    };
    let once = || match way {
        Way::Plain => {
            let what = (test, name);
            plain::plain(testbed.tools(), suite, what, &testbed.a, config.clone())
        }
        _ => moved(testbed, suite, test, name, way == Way::ThereAndBack),
    };
    let mut verdicts = (0..times).map(|_| once());
    let not = verdicts.find(|verdict| *verdict != Verdict::Passed);
    not.unwrap_or(Verdict::Passed)
}

fn write(report: &Report, out: &Path) -> Result<()> {
    std::fs::write(out.join("zdtm.json"), serde_json::to_vec_pretty(report)?)?;
    Ok(std::fs::write(out.join("zdtm.md"), report.markdown())?)
}
