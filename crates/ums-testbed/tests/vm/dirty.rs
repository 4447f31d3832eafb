//! Dirty tracking on the kernels that hosts have: the test of `ums-checkpoint`, by each backend that there is.

use std::path::{Path, PathBuf};
use std::process::Command;

use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::pair::Temporary;

use crate::stock;

/// The test, as a program.
const PROGRAM_VARIABLE: &str = "UMS_VM_DIRTY";

/// Where the machines have it.
const HERE: &str = "/root/dirty";

/// The compiler that the test calls there: it gives what was compiled here.
const COMPILER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in -o) program=$2 ;; esac
    shift
done
exec cp "/root/dirty/${program##*/}" "$program"
"#;

/// A program and what it needs, in a directory that the machines get.
fn collected(dirty: &Path) -> Temporary {
    let directory = Temporary::create().expect("a directory");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ums-checkpoint/tests/dirty");
    for (program, source) in [("ums-rummage", "torture.c"), ("ums-states", "states.c")] {
        let mut compile = Command::new("cc");
        compile.args(["-O1", "-pthread", "-o"]);
        compile
            .arg(directory.path().join(program))
            .arg(sources.join(source));
        assert!(compile.status().expect("cc").success(), "{source}");
    }
    let mut strip = Command::new("strip");
    strip
        .arg("-o")
        .arg(directory.path().join("test"))
        .arg(dirty);
    assert!(strip.status().expect("strip").success());
    let compiler = directory.path().join("cc");
    std::fs::write(&compiler, COMPILER).expect("a file");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&compiler, executable).expect("its mode");
    directory
}

fn runs(machine: &Machine, directory: &Path, backends: &[&str]) {
    machine.put(&[directory], "/root").expect("it is there");
    let name = directory.file_name().expect("a name").display();
    let script = format!(
        "mv /root/{name} {HERE} && cd {HERE} && PATH={HERE}:$PATH ./test --test-threads 1 --nocapture"
    );
    let done = machine.run(&script).expect("it ends");
    let said = done.all();
    assert_eq!(done.code(), Some(0), "{}: {said}", machine.name());
    for backend in backends {
        let word = format!("{backend}: 6 runs in ");
        assert!(said.contains(&word), "{}: {said}", machine.name());
    }
}

#[test]
fn what_a_program_writes_is_found_by_each_backend_of_each_kernel() {
    let Some(pair) = stock("what_a_program_writes_is_found_by_each_backend_of_each_kernel") else {
        return;
    };
    let dirty = PathBuf::from(std::env::var_os(PROGRAM_VARIABLE).expect("`UMS_VM_DIRTY`"));
    let directory = collected(&dirty);
    std::thread::scope(|scope| {
        scope.spawn(|| runs(&pair.debian12, directory.path(), &["SoftDirty"]));
        let both = ["WriteProtect", "SoftDirty"];
        runs(&pair.debian13, directory.path(), &both);
    });
}
