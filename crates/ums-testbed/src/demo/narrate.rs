//! What people see while it happens: always on standard error, so that standard output can hold
//! one JSON object and nothing else.

use ums_core::report::MigrationReport;

use super::Check;
use crate::client::Summary;
use crate::testbed::Testbed;

/// Width of the timeline's bars.
const BAR: u64 = 40;

/// Tells what happens.
#[derive(Debug, Default)]
pub struct Narrator;

impl Narrator {
    /// A part begins.
    pub fn title(&self, text: &str) {
        eprintln!("\n── {text}");
    }

    /// A line.
    pub fn say(&self, text: &str) {
        eprintln!("   {text}");
    }

    /// The timeline of the steps, and the numbers.
    pub fn report(&self, report: &MigrationReport) {
        let total = report.total_ms.max(1);
        for step in &report.steps {
            let ended = step
                .ended_ms
                .unwrap_or(report.total_ms)
                .max(step.started_ms);
            let from = (step.started_ms * BAR / total).min(BAR - 1);
            let to = (ended * BAR).div_ceil(total).clamp(from + 1, BAR);
            let bar = format!(
                "{}{}{}",
                "·".repeat(from as usize),
                "█".repeat((to - from) as usize),
                "·".repeat((BAR - to) as usize)
            );
            let took = ended - step.started_ms;
            eprintln!(
                "   {:>2} {:<19} {bar} {:>6} +{took} ms",
                step.step, step.name, step.started_ms
            );
        }
        let ms = |value: Option<f64>| value.map_or("–".to_owned(), |ms| format!("{ms:.1} ms"));
        let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let bytes = &report.bytes;
        eprintln!(
            "   downtime {}, frozen {}, total {} ms; memory {}, files {}, on the wire {}",
            ms(report.downtime_ms),
            ms(report.freeze_ms),
            report.total_ms,
            mb(bytes.memory),
            mb(bytes.filesystem),
            mb(bytes.wire)
        );
    }

    /// What the clients saw.
    pub fn clients(&self, clients: &[Summary]) {
        for client in clients {
            eprintln!(
                "   {:<14} {:>6} requests, {} failed, {} reconnects, longest gap {:.1} ms",
                client.name,
                client.requests,
                client.failed,
                client.reconnects,
                client.longest_gap_ms
            );
        }
    }

    /// What was checked.
    pub fn checks(&self, checks: &[Check]) {
        self.title("Checks");
        for check in checks {
            let mark = if check.ok { "ok    " } else { "FAILED" };
            eprintln!("   {mark} {} ({})", check.name, check.detail);
        }
    }

    /// What the Coordinators said, when something went wrong.
    pub fn logs(&self, testbed: &Testbed) {
        for system in [&testbed.a, &testbed.b] {
            self.title(&format!("The end of the log of system {}", system.name()));
            eprintln!("{}", system.said());
        }
    }
}
