//! UMS on stock Debian 12 and 13, in virtual machines, from its package: run by `cargo xtask test --vm`.
//!
//! Each test begins with the machines as they were saved after their installation.

mod confinement;
mod dirty;
mod host;
mod lab;
mod moves;
mod package;
mod reboot;
mod redis;
mod shared;

use ums_core::report::{MigrationReport, Outcome};
use ums_testbed::tools::skipped;
use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::pair::{self, Pair};

/// Machines with UMS, or `None` after saying that the test is left out.
fn with_ums(test: &str) -> Option<Pair> {
    if let Some(lacking) = pair::lacking() {
        skipped(test, &lacking);
        return None;
    }
    Some(Pair::with_ums().expect("two machines with UMS"))
}

/// Stock machines, or `None` after saying that the test is left out.
fn stock(test: &str) -> Option<Pair> {
    if let Some(lacking) = pair::lacking() {
        skipped(test, &lacking);
        return None;
    }
    Some(Pair::stock().expect("two stock machines"))
}

/// What the Coordinator and the agent had to say of late.
fn said(machine: &Machine) -> String {
    let script = "journalctl -u ums --no-pager -n 40; tail -n 60 /var/lib/ums/agent.log";
    let said = machine.run(script).map(|said| said.all());
    let said = said.unwrap_or_else(|error| format!("{error:#}"));
    format!("--- {}\n{said}", machine.name())
}

/// Moves a service to the other machine, with these options; the report.
fn migrate(pair: &Pair, from: &Machine, service: &str, options: &str) -> MigrationReport {
    let to = from.release().other().name();
    let command = format!("ums migrate {service} --to {to} --json {options}");
    let done = from.run(&command).expect("the machine answers");
    serde_json::from_str(&done.output).unwrap_or_else(|error| {
        let [source, destination] = pair.machines().map(said);
        panic!(
            "no report ({error}): {}\n{source}\n{destination}",
            done.all()
        )
    })
}

/// The same, where it has to be completed.
fn moved(pair: &Pair, from: &Machine, service: &str) -> MigrationReport {
    moved_by(pair, from, service, "")
}

/// The same, with options.
fn moved_by(pair: &Pair, from: &Machine, service: &str, options: &str) -> MigrationReport {
    let report = migrate(pair, from, service, options);
    if report.outcome != Outcome::Completed {
        let [source, destination] = pair.machines().map(said);
        panic!("{report:#?}\n{source}\n{destination}");
    }
    report
}
