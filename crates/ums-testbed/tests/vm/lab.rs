//! `cargo xtask lab --vm`: both systems are entered by the scripts that it writes.

use std::process::Command;

use ums_testbed::lab::MachineLab;
use ums_testbed::tools::skipped;
use ums_testbed::vm::pair::{self, Temporary};

#[test]
fn a_lab_of_two_machines_is_entered_by_name() {
    if let Some(lacking) = pair::lacking() {
        skipped("a_lab_of_two_machines_is_entered_by_name", &lacking);
        return;
    }
    let directory = Temporary::create().expect("a directory");
    let lab = MachineLab::start(directory.path()).expect("a lab");
    for (place, peer) in [("a", "debian13"), ("b", "debian12")] {
        let mut command = Command::new(directory.path().join(place));
        let done = command.args(["ums", "peer", "list"]).output();
        let done = done.expect("ssh");
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains(peer), "{done:?}");
    }
    drop(lab);
    let left = std::fs::read_dir(directory.path()).expect("a directory");
    assert_eq!(left.count(), 0);
}
