//! Memory that processes share, between kernels that tell in different ways which pages change.

use std::path::Path;
use std::process::Command;

use ums_testbed::specimen::Found;
use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::pair::{SERVICES, Temporary};

use crate::{moved_by, said, with_ums};

/// Megabytes of each object.
const MIB: u32 = 8;

/// Several writers, each of which checks every page (`specimens/sharing.c`): a directory with the program.
fn program() -> Temporary {
    let directory = Temporary::create().expect("a directory");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("specimens");
    let mut compile = Command::new("cc");
    compile.args(["-std=gnu11", "-O1", "-pthread", "-static", "-o"]);
    compile.arg(directory.path().join("sharing"));
    let done = compile.arg(sources.join("sharing.c")).status();
    assert!(done.expect("cc").success());
    directory
}

/// Waits until all that a service shares was compared twice more.
fn goes_on(machine: &Machine, kind: &str) {
    let log = format!("/var/lib/ums/services/{kind}/upper/specimen.log");
    let ticks = format!("grep -c '^tick' {log}");
    let now = machine.until("a first look at all pages", 30, &ticks);
    let now = now.unwrap_or_else(|error| panic!("{kind}: {error:#}\n{}", said(machine)));
    let now: usize = now.trim().parse().expect("a number");
    let later = format!("test $({ticks}) -ge {} || grep -q '^BAD' {log}", now + 2);
    machine
        .until("two more looks", 30, &later)
        .unwrap_or_else(|error| panic!("{kind}: {error:#}\n{}", said(machine)));
    let found = Found::read(&(machine.ok(&format!("cat {log}")).expect("its log") + "\n"));
    assert!(found.bad.is_empty(), "{kind}: {found:#?}");
}

#[test]
fn shared_memory_moves_in_rounds_in_both_directions() {
    let Some(pair) = with_ums("shared_memory_moves_in_rounds_in_both_directions") else {
        return;
    };
    let (directory, here) = (program(), &pair.debian12);
    here.put(&[&directory.path().join("sharing")], "/root")
        .expect("it is there");
    here.ok(&format!(
        "cp -a {SERVICES}/redis /root/sharing-root && cp /root/sharing /root/sharing-root/bin/"
    ))
    .expect("a root filesystem");
    for kind in ["anonymous", "segment", "memfd"] {
        let run =
            format!("ums run {kind} --rootfs /root/sharing-root -- /bin/sharing {kind} {MIB}");
        here.ok(&run)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", said(here)));
        goes_on(here, kind);
        for (from, to) in [(here, &pair.debian13), (&pair.debian13, here)] {
            let report = moved_by(&pair, from, kind, "--technique pre-copy");
            assert!(report.rounds > 0, "{report:#?}");
            goes_on(to, kind);
        }
        here.ok(&format!("ums rm {kind}")).expect("removed");
    }
}
