//! The documentation's walk-through, run in a lab.

use std::path::{Path, PathBuf};
use std::process::Command;

use ums_testbed::lab::{Lab, holder};
use ums_testbed::tools::{Tools, run, skipped};

/// `docs/walkthrough.md`.
fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/walkthrough.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The commands that it tells to type, as one script.
fn commands(document: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in document.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => {
                script.push_str(line);
                script.push('\n');
            }
            _ => {}
        }
    }
    script
}

/// A directory that goes with this value.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_walk_through_works_as_it_is_written() {
    let test = "the_walk_through_works_as_it_is_written";
    let tools = Tools::find().expect("this program's own path is known");
    if let Some(lacking) = tools.lacking() {
        skipped(test, &lacking);
        return;
    }
    let template = std::env::temp_dir().join("ums-walk-XXXXXX");
    let directory = Temporary(nix::unistd::mkdtemp(&template).expect("a directory"));
    let lab = directory.0.join("lab");
    let held = Lab::start(&tools, &lab).expect("a lab");
    assert_eq!(holder(&lab), i32::try_from(std::process::id()).ok());
    let twice = Lab::start(&tools, &lab)
        .expect_err("there is one")
        .to_string();
    assert!(twice.contains("up already"), "{twice}");

    let script = commands(&document());
    assert!(script.contains("ums migrate"), "the document has commands");
    // What `cargo xtask lab` does with its arguments.
    let enter = format!(
        "lab() {{ place=$1; shift; '{}'/\"$place\" \"$@\"; }}",
        lab.display()
    );
    let script = format!("set -eu\n{enter}\n{script}");
    let mut shell = Command::new("timeout");
    shell
        .args(["200", "bash", "-c", &script])
        .current_dir(&directory.0);
    let walked = run(&mut shell);
    walked.unwrap_or_else(|error| panic!("{error:#}\n{}", held.said()));

    assert_eq!(held.remove().expect("it is removed"), Vec::<String>::new());
    assert_eq!(holder(&lab), None);
}
