//! The tables of a complete run, as a part of `docs/fault-matrix.md`.

use std::fmt::Write;
use std::process::Command;

use ums_core::report::Outcome;
use ums_testbed::tools::{Tools, text};

use crate::cell::Ending;
use crate::fault::{FAULTS, Fault};
use crate::point::{POINTS, Point};
use crate::{Run, Tried};

/// What the part is enclosed by; the rest of the document is others'.
const BEGIN: &str = "<!-- real: begin (written by a test) -->\n";
const END: &str = "<!-- real: end -->\n";

/// What stands above the tables.
const HEAD: &str = "\
## With real systems

Written by `cargo xtask test --long --out docs`; do not edit this part. Each cell was tried with two real systems: a ledger
service under load moves from one to the other, the migration is stopped at the point for certain (an interceptor between a
Coordinator and its agent holds one request; CRIU is stopped; memory is seen to stream), the fault strikes, the
migration goes on, what a person or a supervisor would start again is started again. Then must hold:

1. **One instance.** The ledger appends a numbered tick with the time to a file of the system where it executes, every
   2 ms. A witness outside holds every such file open, also after a system has deleted it. Any two of them must be equal
   up to the end of the shorter one: two executions of one state would have written different times for the same
   number, and nothing done later could hide it. No clocks are compared and nothing is sampled; an execution that ended
   before its second line, within 2 ms, is not seen. At a destination nothing may be written before the commit. In the
   end one process executes, on the side that the outcome names.
2. **Nothing acknowledged is lost or there twice.** Every record that the client had an answer for is in the surviving
   file once, and the service's memory agrees with its file. The client's connection is the same all along; but where the
   link is cut for so long that the client itself gives up, or what was killed is the keeper of the surviving instance.
3. **Nothing is left behind.** Processes, namespaces, mounts, control groups, links, routes, firewall rules, files and
   the open descriptors of Coordinator and agent are those of a system where nothing ever broke; after `ums rm`, those
   of a bare one. The Frontman, which stays on purpose, is listed with its owner and its end.
4. **The report is true**, and so are `ums status` and the exit code.

*completed*: the service runs at the destination. *abandoned*: it runs at the source as if nothing had been asked.
*unwatched*: its keeper was what was killed, so its processes go on and UMS shows it as exited. *died*: the keeper was
killed while pages were missing, so the container was killed with it; what was acknowledged is in its volume. An empty
cell makes no sense. Where the outcome depends on a race, it is the one of this run.
";

/// The columns of each table.
const GROUPS: [(&str, &[usize]); 4] = [
    ("Programs killed", &[0, 1, 2, 3, 4, 5, 6, 7, 21, 22]),
    ("The link", &[8, 9, 10, 11, 12, 13, 14]),
    ("Messages and operator", &[15, 16, 17, 20]),
    ("Resources", &[18, 19]),
];

/// The document with this run in the place of an earlier one, or at its end.
pub(crate) fn with(document: &str, run: &Run) -> String {
    let part = format!("{BEGIN}{}{END}", of(run));
    let earlier = document.find(BEGIN).zip(document.find(END));
    match earlier {
        Some((begin, end)) if begin < end => {
            let (before, after) = (&document[..begin], &document[end + END.len()..]);
            format!("{before}{part}{after}")
        }
        _ => format!("{}\n{part}", document.trim_end().to_owned() + "\n"),
    }
}

fn of(run: &Run) -> String {
    let mut out = HEAD.to_owned();
    let survived = run
        .tried
        .iter()
        .filter(|tried| tried.ending.is_ok())
        .count();
    let (of, minutes) = (run.tried.len(), run.took.as_secs_f64() / 60.0);
    let _ = writeln!(
        out,
        "\n**{survived} of {of} cells** hold. Run of {}, {minutes:.0} minutes; {}.",
        said("date", &["-u", "+%Y-%m-%d"]),
        versions()
    );
    for (title, columns) in GROUPS {
        let faults: Vec<Fault> = columns.iter().map(|index| FAULTS[*index]).collect();
        let _ = writeln!(out, "\n### {title}\n");
        let names: Vec<_> = faults.iter().map(|fault| fault.name()).collect();
        let _ = writeln!(out, "| step | point | {} |", names.join(" | "));
        let _ = writeln!(out, "| --- | --- |{}", " --- |".repeat(faults.len()));
        for point in POINTS {
            let cells: Vec<_> = faults
                .iter()
                .map(|fault| cell(run, point, *fault))
                .collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(
                    out,
                    "| {} | {} | {} |",
                    point.step,
                    point.name,
                    cells.join(" | ")
                );
            }
        }
    }
    out
}

fn cell(run: &Run, point: Point, fault: Fault) -> String {
    let is = |tried: &&Tried| tried.cell.point == point && tried.cell.fault == fault;
    match run.tried.iter().find(is).map(|tried| &tried.ending) {
        None => String::new(),
        Some(Err(_)) => "**failed**".to_owned(),
        Some(Ok(Ending {
            outcome, remark, ..
        })) => {
            let word = match outcome {
                Outcome::Completed => "completed",
                Outcome::Abandoned => "abandoned",
                Outcome::Refused => "refused",
                Outcome::Running => "running",
                Outcome::Stuck => "stuck",
            };
            remark.map_or_else(|| word.to_owned(), |remark| format!("{word}, {remark}"))
        }
    }
}

fn versions() -> String {
    let Ok(tools) = Tools::find() else {
        return "versions unknown".to_owned();
    };
    let path = |path: std::path::PathBuf| path.display().to_string();
    let criu = said(&path(tools.bundled("criu")), &["--version"]);
    let criu = criu
        .lines()
        .next()
        .unwrap_or_default()
        .replace("Version: ", "CRIU ");
    let runc = said(&path(tools.bundled("runc")), &["--version"]);
    let runc = runc
        .lines()
        .next()
        .unwrap_or_default()
        .replace(" version", "");
    let ums = said(&path(tools.ums()), &["--version"]);
    format!("{ums}, {criu}, {runc}, Linux {}", said("uname", &["-r"]))
}

fn said(program: &str, arguments: &[&str]) -> String {
    text(Command::new(program).args(arguments)).unwrap_or_else(|_| format!("{program} unknown"))
}
