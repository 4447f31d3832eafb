//! A machine is reset in the middle of a migration, as by a power cut. Afterwards there is one instance
//! of the service, or the loss of it is told.

use std::time::Duration;

use serde_json::Value;
use ums_testbed::tools::wait_for;
use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::pair::{Pair, peer_is_ready};
use ums_testbed::vm::patience;

use crate::{redis, said, with_ums};

/// Keys of the Redis that is being moved: tens of MiB, which take long over the link.
const KEYS: u32 = 100_000;

/// Rate of the link: a migration is met with in the middle of each of its steps.
const LINK: &str = "20mbit";

/// The step that streams the memory of the frozen service.
const MEMORY: u64 = 8;

/// The step that copies files while the service runs.
const FILES: u64 = 7;

/// Begins to move Redis over a slow link, and waits until a step is under way, and in that of memory until
/// the service is frozen.
fn meet(pair: &Pair, step: u64) {
    for machine in pair.machines() {
        let link = "$(ip -o addr show to 192.0.2.0/24 | cut -d' ' -f2)";
        let shape =
            format!("tc qdisc add dev {link} root tbf rate {LINK} burst 64kb latency 100ms");
        machine.ok(&shape).expect("a slow link");
    }
    let source = &pair.debian12;
    redis::start(source, KEYS);
    source
        .ok("systemd-run --quiet --unit move ums migrate redis --to debian13 --json")
        .expect("it is asked for");
    let reached = wait_for("the step", patience(60), || {
        std::thread::sleep(Duration::from_millis(100));
        let view = newest(source)?;
        let over = view["report"]["outcome"] != "running";
        assert!(!over, "too late: {view:#}\n{}", said(source));
        let reached = view["progress"]["step"].as_u64() >= Some(step);
        (reached && (step < MEMORY || is_frozen(source))).then_some(())
    });
    reached.unwrap_or_else(|error| panic!("{error:#}\n{}", said(source)));
}

/// Whether the kernel says so of the service.
fn is_frozen(machine: &Machine) -> bool {
    let script = "grep -qs 'frozen 1' $(find /sys/fs/cgroup -path '*redis*' -name cgroup.events)";
    machine.run(script).is_ok_and(|said| said.status.success())
}

/// The newest migration that a system knows of.
fn newest(machine: &Machine) -> Option<Value> {
    let said = machine.run("ums status redis --json").ok()?;
    let status: Value = serde_json::from_str(&said.output).ok()?;
    let view = status["migration"].clone();
    view.is_object().then_some(view)
}

/// Processes of Redis that the machine has.
fn instances(machine: &Machine) -> usize {
    let found = machine.run("pgrep -xc redis-server").expect("an answer");
    found.output.trim().parse().expect("a number")
}

/// Waits until the migration is over at the machine that has it, for both to see each other.
fn settled(machine: &Machine) -> Value {
    peer_is_ready(machine).unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)));
    let over = wait_for("the migration's end", patience(60), || {
        newest(machine).filter(|view| view["report"]["outcome"] != "running")
    });
    over.unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)))
}

fn a_destination_is_reset_in(step: u64, test: &str) {
    let Some(mut pair) = with_ums(test) else {
        return;
    };
    meet(&pair, step);
    pair.debian13.reset().expect("it boots again");
    let view = settled(&pair.debian12);
    assert_eq!(view["report"]["outcome"], "abandoned", "{view:#}");
    assert!(view["report"]["error"].is_string(), "{view:#}");
    assert_eq!(redis::asked(&pair.debian12, "dbsize"), KEYS.to_string());
    assert_eq!(instances(&pair.debian12), 1);
    assert_eq!(instances(&pair.debian13), 0);
    let nothing = "test \"$(ums list --json)\" = '[]' || { ums list; false; }";
    pair.debian13
        .until("nothing of it at the destination", 30, nothing)
        .unwrap_or_else(|error| {
            panic!("{error:#}\n{}", said(&pair.debian13));
        });
}

#[test]
fn a_destination_that_is_reset_while_files_are_copied_leaves_the_service_at_the_source() {
    let test =
        "a_destination_that_is_reset_while_files_are_copied_leaves_the_service_at_the_source";
    a_destination_is_reset_in(FILES, test);
}

#[test]
fn a_destination_that_is_reset_in_the_freeze_leaves_the_service_at_the_source() {
    let test = "a_destination_that_is_reset_in_the_freeze_leaves_the_service_at_the_source";
    a_destination_is_reset_in(MEMORY, test);
}

#[test]
fn a_source_that_is_reset_in_the_freeze_tells_that_the_service_is_lost() {
    let test = "a_source_that_is_reset_in_the_freeze_tells_that_the_service_is_lost";
    let Some(mut pair) = with_ums(test) else {
        return;
    };
    meet(&pair, MEMORY);
    pair.debian12.reset().expect("it boots again");
    let view = settled(&pair.debian12);
    assert_eq!(view["report"]["outcome"], "abandoned", "{view:#}");
    // Services don't come back after a reboot of their node: it is there, and does not run.
    let (there, elsewhere) = (instances(&pair.debian12), instances(&pair.debian13));
    assert_eq!((there, elsewhere), (0, 0), "{view:#}");
    pair.debian12
        .until(
            "the truth about it",
            20,
            "ums list | tee /dev/stderr | grep redis | grep exited",
        )
        .unwrap_or_else(|error| panic!("{error:#}\n{}", said(&pair.debian12)));
    let nothing = "test \"$(ums list --json)\" = '[]' || { ums list; false; }";
    pair.debian13
        .until("nothing of it at the destination", 30, nothing)
        .unwrap_or_else(|error| {
            panic!("{error:#}\n{}", said(&pair.debian13));
        });
    // Its files are there, and it can be removed.
    pair.debian12
        .ok("test -d /var/lib/ums/services/redis && ums rm redis")
        .expect("removed");
}
