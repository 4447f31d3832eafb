//! `docs/what-moves.md` says what the table here says, and each of its rows names a test or a specimen
//! that there is.

mod engines;
mod local;
mod rare;
mod table;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use table::{Evidence, GROUPS, Outcome, Row};
use ums_testbed::specimen::{self, Expected};

const HEAD: &str = "\
# What moves

What a service may be in the middle of, and what becomes of it. Each row names what shows it: a test, or
a specimen (a service that checks its own state, in `crates/ums-testbed/specimens`), which is moved there
and back, at once and after a while. What is not listed has no test of its own here;
[the README](../README.md#limits) has the limits that are known.

- **carried**: the same after a move as before it.
- **refused**: the move ends before the freeze, says what stands in its way, and the service runs on.
- **given up**: nobody can know before the freeze; the move ends in it, says what stands in its way, and the
  service runs on.
- **declared**: carried, but not the same, as `ums plan` and the report say. Where the service may behave
  otherwise, the move is made with `--accept-loss` alone.
- **changed**: carried, but not the same, as the row says.

This file is made from `crates/ums-testbed/tests/what_moves/table.rs`: run its test with `UMS_WRITE_DOCS=1`.
";

fn rendered() -> String {
    let mut text = HEAD.to_owned();
    for (group, rows) in GROUPS {
        let _ = write!(
            text,
            "\n## {group}\n\n| state | outcome | how | shown by |\n| --- | --- | --- | --- |\n"
        );
        for Row {
            state,
            outcome,
            how,
            shown_by,
        } in *rows
        {
            let outcome = match outcome {
                Outcome::Carried => "carried",
                Outcome::Refused => "refused",
                Outcome::GivenUp => "given up",
                Outcome::Declared => "declared",
                Outcome::Changed => "changed",
            };
            let shown_by = match shown_by {
                Evidence::Test(name) => format!("`{name}`"),
                Evidence::Specimen(name) => format!("specimen `{name}`"),
            };
            let _ = writeln!(text, "| {state} | {outcome} | {how} | {shown_by} |");
        }
    }
    text
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All sources of the crates, one after the other.
fn sources(directory: &Path, text: &mut String) {
    let entries = std::fs::read_dir(directory).expect("a directory of sources");
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|end| end == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// Whether a function of this name is marked as a test.
fn is_test(name: &str, sources: &str) -> bool {
    let function = format!("fn {name}()");
    sources.match_indices(&function).any(|(at, _)| {
        let before = sources[..at]
            .trim_end()
            .trim_end_matches("async")
            .trim_end();
        before.ends_with(']') && before[before.rfind("#[").unwrap_or(0)..].contains("test")
    })
}

#[test]
fn the_document_says_what_the_table_says() {
    let path = project().join("docs/what-moves.md");
    let wanted = rendered();
    if std::env::var_os("UMS_WRITE_DOCS").is_some() {
        std::fs::write(&path, wanted).expect("docs/what-moves.md is writable");
        return;
    }
    let text = std::fs::read_to_string(&path).expect("docs/what-moves.md");
    assert!(
        text == wanted,
        "docs/what-moves.md is not current; run this test with UMS_WRITE_DOCS=1"
    );
}

#[test]
fn what_shows_a_row_exists() {
    let mut text = String::new();
    sources(&project().join("crates"), &mut text);
    let rows = GROUPS.iter().flat_map(|(_, rows)| *rows);
    let missing: Vec<&Row> = rows
        .filter(|row| match row.shown_by {
            Evidence::Test(name) => !is_test(name, &text),
            Evidence::Specimen(name) => specimen::ALL
                .iter()
                .all(|one| one.name != name || outcome_of(one.expected) != row.outcome),
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(!is_test("what_is_nowhere", &text));
}

fn outcome_of(expected: Expected) -> Outcome {
    match expected {
        Expected::Carried => Outcome::Carried,
        Expected::Refused(..) => Outcome::Refused,
        Expected::Abandoned(..) => Outcome::GivenUp,
        Expected::Declared(..) => Outcome::Declared,
    }
}

#[test]
fn every_specimen_has_a_row() {
    let rows = || GROUPS.iter().flat_map(|(_, rows)| *rows);
    for specimen in specimen::ALL {
        let shown = Evidence::Specimen(specimen.name);
        assert!(rows().any(|row| row.shown_by == shown), "{specimen:?}");
    }
}
