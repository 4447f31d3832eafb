//! Services that are started: two at once, one that fails, and one whose agent is killed meanwhile.
//! Whoever was told of a service has it, and of any other nothing is left.

mod common;

use std::process::Stdio;
use std::time::Instant;

use common::{PATIENCE, agent, exit, process, remains, remove, services, stop, strike, systems};
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::wait_for;
use ums_testbed::workload::start_hog;

/// As fast as the programs are.
const RATE_MBIT: u32 = 1000;

/// The root filesystem of a hog, which a first one of them leaves behind.
fn with_rootfs(test: &str) -> Option<(Testbed, String)> {
    let testbed = systems(test, RATE_MBIT)?;
    start_hog(&testbed, &testbed.a, "hog", 1).expect("the hog runs");
    testbed.a.ums_ok(&["rm", "hog"]).expect("it is removed");
    let rootfs = testbed.directory().join("rootfs-hog").display().to_string();
    Some((testbed, rootfs))
}

fn nothing_is_left(testbed: &Testbed, service: &str) {
    let gone = wait_for("nothing left of it", PATIENCE, || {
        remains(&testbed.a, service).is_empty().then_some(())
    });
    gone.unwrap_or_else(|_| panic!("{:?}", remains(&testbed.a, service)));
}

#[test]
fn a_run_that_fails_leaves_nothing() {
    let Some((testbed, rootfs)) = with_rootfs("a_run_that_fails_leaves_nothing") else {
        return;
    };
    let cases: [&[&str]; 3] = [
        &["--", "/bin/nothing"],
        &["--memory", "1M", "--publish", "7000", "--", "/bin/nothing"],
        // Less than runc itself needs: it is killed in the service's control group.
        &["--memory", "1M", "--publish", "7000", "--", "/bin/ums-hog"],
    ];
    for case in cases {
        let run = [&["run", "bad", "--rootfs", &rootfs], case].concat();
        let output = testbed.a.ums(&run).expect("`ums` runs");
        if output.status.code() == Some(exit::DONE) {
            // This runc did with so little.
            testbed.a.ums_ok(&["rm", "bad"]).expect("it is removed");
        }
        nothing_is_left(&testbed, "bad");
    }
    remove(testbed);
}

/// The agent is stopped at the moment when the service is recorded, and killed: nobody is told of the
/// service, and the agent that comes next leaves nothing of it.
#[test]
fn a_run_whose_agent_is_killed_leaves_nothing() {
    let test = "a_run_whose_agent_is_killed_leaves_nothing";
    let Some((testbed, rootfs)) = with_rootfs(test) else {
        return;
    };
    let run = [
        "run",
        "cut",
        "--rootfs",
        &rootfs,
        "--publish",
        "7000",
        "--",
        "/bin/ums-hog",
    ];
    let mut command = testbed.a.ums_command(&run);
    let mut child = command.stderr(Stdio::null()).spawn().expect("`ums` runs");
    let keeper = testbed.a.run_dir().join("services/cut/keeper.sock");
    let keeper = testbed.a.outside(&keeper);
    let pid = agent(&testbed.a);
    // Its network is made next, and it is started last.
    let end = Instant::now() + PATIENCE;
    while !keeper.exists() {
        assert!(Instant::now() < end, "there is no keeper");
        std::thread::yield_now();
    }
    stop(pid);
    strike(pid);
    let status = child.wait().expect("it ends");
    assert!(!status.success(), "nobody is told of a service");
    wait_for("the next agent", PATIENCE, || services(&testbed.a)).expect("it answers");
    nothing_is_left(&testbed, "cut");
    testbed.a.ums_ok(&run).expect("it can be run now");
    assert!(process(&testbed.a, &["/bin/ums-hog"]) > 0);
    testbed.a.ums_ok(&["rm", "cut"]).expect("it is removed");
    remove(testbed);
}

/// Each of two that are started at the same moment has an address of its own, and a port only one.
#[test]
fn two_runs_at_once_share_nothing() {
    let Some((testbed, rootfs)) = with_rootfs("two_runs_at_once_share_nothing") else {
        return;
    };
    let begin = |name: &str, further: &[&str]| {
        let run = [
            &["run", name, "--rootfs", &rootfs],
            further,
            &["--", "/bin/ums-hog"],
        ];
        let mut command = testbed.a.ums_command(&run.concat());
        command.stdout(Stdio::null()).spawn().expect("`ums` runs")
    };
    // As many as show an address that is looked for and taken in two steps.
    let names = ["one", "two", "three", "four"];
    let started = names.map(|name| begin(name, &[]));
    for mut child in started {
        assert!(child.wait().expect("it ends").success());
    }
    let views = services(&testbed.a).expect("the agent answers");
    let mut addresses: Vec<&str> = views
        .iter()
        .filter_map(|view| view["specification"]["address"].as_str())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), names.len(), "{addresses:?}");
    for name in names {
        testbed.a.ums_ok(&["rm", name]).expect("it is removed");
    }
    let started = ["one", "two"].map(|name| begin(name, &["--publish", "7000"]));
    let codes = started.map(|mut child| child.wait().expect("it ends").code());
    let mut codes = codes.map(Option::unwrap_or_default);
    codes.sort_unstable();
    assert_eq!(codes, [exit::DONE, exit::REFUSED]);
    let views = services(&testbed.a).expect("the agent answers");
    assert_eq!(views.len(), 1, "{views:?}");
    remove(testbed);
}
