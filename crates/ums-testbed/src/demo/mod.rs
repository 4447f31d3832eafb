//! The demonstration: two services move between two systems and back, while their clients go on.

mod check;
mod narrate;
mod scene;

use anyhow::Result;
use serde::Serialize;
use ums_core::report::MigrationReport;

pub use check::Check;
pub use narrate::Narrator;

use crate::client::Summary;
use crate::testbed::{Settings, Testbed};
use crate::tools::Tools;

/// What the demonstration showed; what `ums-demo --json` prints.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Whether every check passed.
    pub ok: bool,
    /// The migrations, in order.
    pub migrations: Vec<MigrationReport>,
    /// What the clients saw.
    pub clients: Vec<Summary>,
    /// What was checked.
    pub checks: Vec<Check>,
}

/// Shows everything, cleans up, and judges. An error on the way is a failed check: what was
/// found until then is told all the same.
pub fn run(tools: &Tools, plan: &Settings, keys: u64, narrator: &Narrator) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = show(tools, plan, keys, narrator, &mut outcome) {
        let detail = format!("{error:#}");
        outcome.checks.push(Check {
            name: "everything could be shown".to_owned(),
            ok: false,
            detail,
        });
    }
    outcome.ok = !outcome.checks.is_empty() && outcome.checks.iter().all(|check| check.ok);
    narrator.checks(&outcome.checks);
    outcome
}

fn show(
    tools: &Tools,
    plan: &Settings,
    keys: u64,
    narrator: &Narrator,
    outcome: &mut Outcome,
) -> Result<()> {
    narrator.title("Two systems on a link of their own");
    let mut testbed = Testbed::create(tools, plan)?;
    let played = scene::play(&mut testbed, keys, narrator, outcome);
    if played.is_err() {
        narrator.logs(&testbed);
    }
    let left = testbed.remove();
    played?;
    let left = left?;
    let detail = if left.is_empty() {
        "no process, namespace, mount, link, cgroup, packet filter rule or file".to_owned()
    } else {
        left.join("; ")
    };
    outcome.checks.push(Check {
        name: "nothing is left behind".to_owned(),
        ok: left.is_empty(),
        detail,
    });
    Ok(())
}
