//! Containers that people have started with an engine are listed, planned and moved.

mod common;

use common::PATIENCE;
use ums_core::report::Outcome;
use ums_testbed::client::keys;
use ums_testbed::engine::Docker;
use ums_testbed::rootfs;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{skipped, text, wait_for};
use ums_testbed::workload::{REDIS_PORT, addresses, answers, count, root_of};

/// Keys that Redis holds.
const KEYS: u64 = 5_000;
const IMAGE: &str = "localhost/redis:1";

fn systems(test: &str) -> Option<Testbed> {
    systems_by(test, common::LINK_MBIT)
}

fn systems_by(test: &str, mbit: u32) -> Option<Testbed> {
    if !Docker::is_here() {
        skipped(test, "needs Docker: run `cargo xtask setup`");
        return None;
    }
    common::systems(test, mbit)
}

/// Docker with a Redis in system a, as anybody starts it.
fn docker_with_redis<'a>(testbed: &'a Testbed, options: &[&str]) -> Docker<'a> {
    let docker = Docker::start(&testbed.a).expect("docker runs");
    let program = rootfs::program("redis-server").expect("redis is installed");
    let root = root_of(testbed, "redis", program).expect("a root filesystem");
    docker.import(&root, IMAGE).expect("an image");
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "6379:6379",
        "-v",
        "mydata:/data",
    ];
    let command = [
        IMAGE,
        "/bin/redis-server",
        "--protected-mode",
        "no",
        "--dir",
        "/data",
        "--save",
        "",
        "--appendonly",
        "yes",
    ];
    let run = docker.run(&[&run[..], options, &command[..]].concat());
    run.expect("redis runs");
    answers(testbed, &testbed.a, REDIS_PORT).expect("redis answers");
    docker
}

#[test]
fn a_redis_of_docker_moves_to_the_standalone_host() {
    let test = "a_redis_of_docker_moves_to_the_standalone_host";
    let Some(testbed) = systems(test) else {
        return;
    };
    let docker = docker_with_redis(&testbed, &[]);
    let list = testbed.a.ums_ok(&["list"]).expect("a list");
    assert!(list.contains("web") && list.contains("docker ("), "{list}");
    let plan = testbed
        .a
        .ums(&["plan", "web", "--to", "b", "--accept-loss"])
        .expect("it runs");
    let said =
        String::from_utf8_lossy(&plan.stdout).into_owned() + &String::from_utf8_lossy(&plan.stderr);
    assert!(plan.status.success(), "{said}");

    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis, KEYS));
    set.expect("the keys are set");
    let counter = count(&testbed).expect("a counter");
    let report = testbed.migrate(&testbed.a, &testbed.b, "web", &["--accept-loss"]);
    let report = report.unwrap_or_else(|error| panic!("{error:#}\n{}", testbed.a.said()));
    assert_eq!(
        report.outcome,
        Outcome::Completed,
        "{:?}\n{}\n{}",
        report.error,
        testbed.a.said(),
        testbed.b.said()
    );
    let here: Vec<_> = redis
        .iter()
        .copied()
        .filter(|at| at.ip() == testbed.b.ip())
        .collect();
    let wrong = testbed.world.in_network(|| keys::wrong(&here, KEYS));
    assert_eq!(wrong.expect("redis answers"), 0);
    let counted = counter
        .stop()
        .expect("the counter's client goes on to the end");
    assert_eq!((counted.lost, counted.doubled), (0, 0));
    assert_eq!(
        docker.run(&["ps", "--all", "--quiet"]).expect("it answers"),
        ""
    );
}

#[test]
fn what_stands_in_the_way_of_a_container_is_told_before_anything_is_done() {
    let test = "what_stands_in_the_way_of_a_container_is_told_before_anything_is_done";
    let Some(testbed) = systems(test) else {
        return;
    };
    let docker = docker_with_redis(&testbed, &["--restart", "always", "--tmpfs", "/scratch"]);
    let refused = |because: &str| {
        let plan = testbed.a.ums(&["plan", "web", "--to", "b"]);
        let plan = plan.expect("it runs");
        let said = String::from_utf8_lossy(&plan.stdout).into_owned()
            + &String::from_utf8_lossy(&plan.stderr);
        assert_eq!(plan.status.code(), Some(3), "{said}");
        assert!(said.contains(because), "{said}");
    };
    refused("--restart always");
    docker
        .run(&["exec", "-d", "web", "/bin/redis-server", "--port", "7"])
        .expect("it is started");
    refused("docker exec");
    docker.run(&["pause", "web"]).expect("it is paused");
    refused("is paused");
    let list = testbed.a.ums_ok(&["list"]).expect("a list");
    assert!(list.contains("web can't move: it is paused"), "{list}");
    docker.run(&["unpause", "web"]).expect("it goes on");
    // An engine that has gone is told, and not taken for one without containers.
    docker.end().expect("it ends");
    let list = testbed.a.ums_ok(&["list"]).expect("a list");
    assert!(list.contains("engine `docker`"), "{list}");
}

#[test]
fn a_container_whose_move_is_given_up_is_as_it_was() {
    let test = "a_container_whose_move_is_given_up_is_as_it_was";
    let Some(testbed) = systems_by(test, common::SLOW_MBIT) else {
        return;
    };
    let docker = docker_with_redis(&testbed, &["--restart", "always"]);
    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis[..1], KEYS));
    set.expect("the keys are set");
    let network = || {
        let pid = ["inspect", "--format", "{{.State.Pid}}", "web"];
        let pid = docker.run(&pid).expect("a process");
        let script = "ip rule; ip -6 rule; cd /proc/sys/net/ipv4; \
            cat ip_forward conf/all/arp_ignore conf/all/rp_filter conf/eth0/forwarding";
        let mut inside = testbed.a.exec("nsenter");
        let inside = inside.args(["--target", &pid, "--net", "sh", "-c", script]);
        text(inside).expect("it is read")
    };
    let inspected = || docker.run(&["inspect", "web"]).expect("it is inspected");
    let before = (inspected(), network());
    let technique = ["stop-and-copy", "--accept-loss"];
    let moving = common::Moving::start_with(&technique, &testbed.a, &testbed.b, "web");
    moving.wait_for_step(&testbed.a, 8);
    let restart = [
        "inspect",
        "--format",
        "{{.HostConfig.RestartPolicy.Name}}",
        "web",
    ];
    wait_for("a restart policy that is off", PATIENCE, || {
        let policy = docker.run(&restart).expect("it is inspected");
        (policy == "no").then_some(())
    })
    .expect("it is not started again meanwhile");
    testbed
        .a
        .ums_ok(&["abort", moving.id()])
        .expect("it is given up");
    assert_eq!(moving.end().report.outcome, Outcome::Abandoned);
    assert_eq!((inspected(), network()), before);
    let wrong = testbed.world.in_network(|| keys::wrong(&redis[..1], KEYS));
    assert_eq!(wrong.expect("redis answers"), 0);
}
