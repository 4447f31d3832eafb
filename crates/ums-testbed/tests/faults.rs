//! What breaks while a service moves: agents, CRIU, keepers, the link, the disk, the service itself.
//! Before the commit each of them ends with the service running where it was, and nothing left at
//! the destination.

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{
    LARGE_MIB, Moving, PATIENCE, SLOW_MBIT, agent, exit, hog_is_only_at, hog_stayed, is_only_at,
    process, remains, remove, services, stop_criu, strike, systems, systems_with_hog,
};
use ums_core::report::Outcome;
use ums_testbed::ledger;
use ums_testbed::testbed::{PEER_LINK, Testbed};
use ums_testbed::tools::{run, wait_for};
use ums_testbed::workload::{LEDGER_PORT, start_ledger};

/// Memory of which some has certainly arrived, and more has not.
const PART_BYTES: u64 = 8 << 20;

/// A migration that is copying memory out of the frozen hog.
fn in_transfer(test: &str) -> Option<(Testbed, Moving)> {
    let testbed = systems_with_hog(test, SLOW_MBIT, LARGE_MIB)?;
    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    moving.wait_for_memory(&testbed.a, PART_BYTES);
    Some((testbed, moving))
}

#[test]
fn the_agent_of_the_source_is_killed_in_the_transfer() {
    let test = "the_agent_of_the_source_is_killed_in_the_transfer";
    let Some((testbed, moving)) = in_transfer(test) else {
        return;
    };
    strike(agent(&testbed.a));
    moving.end().must_be_abandoned(&["agent"]);
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn the_agent_of_the_destination_is_killed_in_the_transfer() {
    let test = "the_agent_of_the_destination_is_killed_in_the_transfer";
    let Some((testbed, moving)) = in_transfer(test) else {
        return;
    };
    strike(agent(&testbed.b));
    moving
        .end()
        .must_be_abandoned(&["data path", "destination"]);
    hog_stayed(&testbed);
    remove(testbed);
}

/// The freezer of the control group that a process is in, and what freezes it.
fn freezer(pid: i32) -> (PathBuf, &'static str) {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    let path = |start: &str| {
        groups
            .lines()
            .find_map(|line| Some(line.split_once(start)?.1.to_owned()))
    };
    let unified = path("0::/").expect("a group of version 2");
    for root in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
        let file = Path::new(root).join(&unified).join("cgroup.freeze");
        if file.exists() {
            return (file, "1");
        }
    }
    let group = path(":freezer:/").expect("a freezer");
    let file = Path::new("/sys/fs/cgroup/freezer")
        .join(group)
        .join("freezer.state");
    (file, "FROZEN")
}

/// As an agent does that is killed while it looks at the memory of a service.
#[test]
fn a_service_that_nobody_moves_does_not_stay_frozen() {
    let test = "a_service_that_nobody_moves_does_not_stay_frozen";
    let Some(testbed) = systems_with_hog(test, SLOW_MBIT, 1) else {
        return;
    };
    let (file, frozen) = freezer(process(&testbed.a, &["/bin/ums-hog"]));
    std::fs::write(&file, frozen).expect("it is frozen");
    strike(agent(&testbed.a));
    hog_stayed(&testbed);
    remove(testbed);
}

/// CRIU reads shared memory alone, so that is what the service has.
#[test]
fn criu_is_killed_while_it_dumps() {
    let Some(testbed) = systems("criu_is_killed_while_it_dumps", SLOW_MBIT) else {
        return;
    };
    start_ledger(&testbed, &testbed.a, LARGE_MIB).expect("the ledger runs");
    let moving = Moving::start(&testbed.a, &testbed.b, "ledger");
    moving.wait_for_memory(&testbed.a, PART_BYTES);
    strike(process(&testbed.a, &["criu", "swrk"]));
    let ended = moving.end();
    ended.must_be_abandoned(&["CRIU"]);
    // The keeper has thawed it by itself; how long that took at most is told all the same.
    let freeze_ms = ended.report.freeze_ms.expect("how long it was frozen");
    assert!(
        freeze_ms > 0.0 && freeze_ms <= ended.report.total_ms as f64,
        "{ended:?}"
    );
    let address = SocketAddr::from((testbed.a.ip(), LEDGER_PORT));
    let verified = testbed.world.in_network(|| ledger::verify(address));
    assert_eq!(verified.expect("it answers").wrong, None);
    is_only_at(&testbed, &testbed.a, "ledger", "/bin/ums-ledger");
    remove(testbed);
}

#[test]
fn the_keeper_of_the_destination_is_killed_in_the_transfer() {
    let test = "the_keeper_of_the_destination_is_killed_in_the_transfer";
    let Some((testbed, moving)) = in_transfer(test) else {
        return;
    };
    strike(process(&testbed.b, &["ums-agent", "keeper"]));
    moving.end().must_be_abandoned(&["keeper"]);
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn the_keeper_of_the_destination_is_killed_while_it_restores() {
    let test = "the_keeper_of_the_destination_is_killed_while_it_restores";
    let Some(testbed) = systems_with_hog(test, SLOW_MBIT, 8) else {
        return;
    };
    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    // Where nobody dumps, CRIU restores. It stops, or the commit might be faster than the blow.
    stop_criu(&testbed.b, "hog");
    strike(process(&testbed.b, &["ums-agent", "keeper"]));
    moving.end().must_be_abandoned(&["keeper"]);
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn the_service_exits_in_the_middle() {
    let test = "the_service_exits_in_the_middle";
    let Some(testbed) = systems_with_hog(test, SLOW_MBIT, LARGE_MIB) else {
        return;
    };
    // While files are copied it runs, and may end.
    let hog = process(&testbed.a, &["/bin/ums-hog"]);
    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    moving.wait_for_step(&testbed.a, 7);
    strike(hog);
    let ended = moving.end();
    ended.must_be_abandoned(&["hog", "exited"]);
    let gone = wait_for("an empty destination", PATIENCE, || {
        remains(&testbed.b, "hog").is_empty().then_some(())
    });
    gone.unwrap_or_else(|error| panic!("{error}: {:#?}", remains(&testbed.b, "hog")));
    let at_source = services(&testbed.a).expect("the agent answers");
    assert_eq!(at_source[0]["status"], "exited", "{at_source:?}");
    // Its gate is open: what is left of it can be removed.
    testbed.a.ums_ok(&["rm", "hog"]).expect("it is removed");
    remove(testbed);
}

#[test]
fn the_link_breaks_in_the_transfer() {
    let Some((testbed, moving)) = in_transfer("the_link_breaks_in_the_transfer") else {
        return;
    };
    let set = |state: &str| {
        let mut ip = testbed.a.exec("ip");
        run(ip.args(["link", "set", PEER_LINK, state])).expect("the link obeys");
    };
    set("down");
    let broken = Instant::now();
    let ended = moving.end();
    ended.must_be_abandoned(&["data path"]);
    assert!(
        broken.elapsed() < Duration::from_secs(45),
        "noticed after {:?}",
        broken.elapsed()
    );
    // The service does not wait for the destination to be told.
    common::no_frontman(&testbed.a);
    let list = services(&testbed.a).expect("the agent answers");
    assert_eq!(list[0]["status"], "running", "{list:?}");
    set("up");
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn an_abort_in_the_transfer_is_heeded() {
    let Some((testbed, moving)) = in_transfer("an_abort_in_the_transfer_is_heeded") else {
        return;
    };
    let list = testbed.a.ums_ok(&["list"]).expect("a list");
    assert!(
        list.contains("frozen") && !list.contains("running"),
        "{list}"
    );
    let abort = ["abort", "hog", "--reason", "changed my mind"];
    testbed.a.ums_ok(&abort).expect("the abort is accepted");
    let ended = moving.end();
    ended.must_be_abandoned(&["aborted on request", "changed my mind"]);
    let sent = ended.report.bytes.memory;
    assert!(sent < LARGE_MIB << 20, "all of it was sent first: {sent}");
    hog_stayed(&testbed);
    let again = testbed.a.ums(&abort).expect("`ums abort` runs");
    assert_eq!(again.status.code(), Some(exit::REFUSED));
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("not being migrated"), "{said}");
    remove(testbed);
}

#[test]
fn the_disk_of_the_destination_is_full() {
    let test = "the_disk_of_the_destination_is_full";
    let Some(testbed) = systems_with_hog(test, SLOW_MBIT, 8) else {
        return;
    };
    // Room enough for the preflight, which asks for a margin; taken away while files are copied.
    let image = testbed.b.state_dir().join("images");
    let mount = ["-t", "tmpfs", "-o", "size=96m", "tmpfs"];
    let mut command = testbed.b.exec("mount");
    // The agent is restarted so that it sees the small disk.
    run(command.args(mount).arg(&image)).expect("a small disk");
    strike(agent(&testbed.b));
    wait_for("the agent's return", PATIENCE, || services(&testbed.b)).expect("it returns");
    let filler = image.join("filler");
    let fill = format!("head -c 90M /dev/zero > {}", filler.display());
    run(testbed.b.exec("sh").args(["-c", &fill])).expect("the disk fills");

    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    let ended = moving.end();
    ended.must_be_abandoned(&["No space left on device"]);
    hog_stayed(&testbed);

    run(testbed.b.exec("rm").arg(&filler)).expect("there is room again");
    let report = testbed.migrate(&testbed.a, &testbed.b, "hog", &[]);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    hog_is_only_at(&testbed, &testbed.b);
    remove(testbed);
}

/// The most that the agent of the source may take, whatever the service's size.
const AGENT_KIB_MAX: u64 = 64 * 1024;

#[test]
fn the_agent_of_the_source_stays_small_and_no_image_touches_a_disk() {
    let test = "the_agent_of_the_source_stays_small_and_no_image_touches_a_disk";
    let Some(testbed) = systems_with_hog(test, 1000, 512) else {
        return;
    };
    let source = agent(&testbed.a);
    let images = || {
        let mut find = testbed.a.exec("find");
        find.arg(testbed.a.state_dir()).arg(testbed.b.state_dir());
        find.args(["-name", "*.img", "-size", "+0"]);
        ums_testbed::tools::text(&mut find).unwrap_or_default()
    };
    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    let mut looks = 0;
    while moving
        .view(&testbed.a)
        .is_some_and(|view| view["report"]["outcome"] == "running")
    {
        assert_eq!(images(), "", "an image on a disk");
        looks += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(looks > 10, "looked {looks} times");
    let ended = moving.end();
    assert_eq!(ended.report.outcome, Outcome::Completed, "{ended:?}");
    let status = std::fs::read_to_string(format!("/proc/{source}/status")).expect("it lives");
    let peak = status.lines().find_map(|line| {
        let value = line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?;
        value.parse::<u64>().ok()
    });
    let peak = peak.expect("the kernel tells the peak");
    assert!(peak <= AGENT_KIB_MAX, "the agent took {peak} KiB");
    hog_is_only_at(&testbed, &testbed.b);
    remove(testbed);
}
