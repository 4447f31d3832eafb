//! Services arrive in containers that an engine makes, and are that engine's own afterwards.

mod common;

use std::net::SocketAddr;

use common::PATIENCE;
use ums_core::report::Outcome;
use ums_testbed::client::echo::{self, Echo};
use ums_testbed::client::keys;
use ums_testbed::engine::Docker;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{skipped, wait_for};
use ums_testbed::workload::{REDIS_PORT, addresses, count, start_redis, streams};

/// Keys that Redis holds.
const KEYS: u64 = 5_000;

fn systems(test: &str) -> Option<Testbed> {
    if !Docker::is_here() {
        skipped(test, "needs Docker: run `cargo xtask setup`");
        return None;
    }
    common::systems(test, common::LINK_MBIT)
}

/// Moves a service from a to b, which must be done without anything to accept.
fn migrate(testbed: &Testbed, name: &str, options: &[&str]) {
    let report = testbed.migrate(&testbed.a, &testbed.b, name, options);
    let said = || format!("{}\n{}", testbed.a.said(), testbed.b.said());
    let report = report.unwrap_or_else(|error| panic!("{error:#}\n{}", said()));
    assert_eq!(
        report.outcome,
        Outcome::Completed,
        "{:?}\n{}",
        report.error,
        said()
    );
}

#[test]
fn a_redis_of_ums_arrives_in_docker_and_is_its_own() {
    let test = "a_redis_of_ums_arrives_in_docker_and_is_its_own";
    let Some(testbed) = systems(test) else {
        return;
    };
    let docker = Docker::start(&testbed.b).expect("docker runs");
    let refused = testbed
        .a
        .ums(&["plan", "redis", "--to", "b", "--engine", "docker"]);
    assert!(!refused.expect("it runs").status.success());
    docker.install().expect("the runtime is registered");
    start_redis(&testbed, &testbed.a).expect("redis runs");
    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis, KEYS));
    set.expect("the keys are set");
    let counter = count(&testbed).expect("a counter");
    migrate(&testbed, "redis", &["--engine", "docker"]);
    let here: Vec<_> = redis
        .iter()
        .copied()
        .filter(|at| at.ip() == testbed.b.ip())
        .collect();
    let wrong = || testbed.world.in_network(|| keys::wrong(&here, KEYS));
    assert_eq!(wrong().expect("redis answers"), 0);
    let counted = counter
        .stop()
        .expect("the counter's client goes on to the end");
    assert_eq!((counted.lost, counted.doubled), (0, 0));
    assert_eq!(counted.summary.reconnects, 0, "its connection goes on");

    let run = |arguments: &[&str]| docker.run(arguments).expect("docker does it");
    let inspect = |format: &str| run(&["inspect", "--format", format, "redis"]);
    let settled = || (inspect("{{.HostConfig.RestartPolicy.Name}}") == "no").then_some(());
    wait_for("a container", PATIENCE, settled).expect("there is one");
    let list = testbed.b.ums_ok(&["list"]).expect("a list");
    assert!(list.contains("redis") && list.contains("docker"), "{list}");
    assert_eq!(inspect("{{.State.Status}}"), "running");
    assert!(run(&["exec", "redis", "/bin/redis-server", "--version"]).contains("Redis"));
    assert!(run(&["stats", "--no-stream", "redis"]).contains("redis"));
    run(&["stop", "redis"]);
    // Its data is in a volume of Docker's.
    run(&["start", "redis"]);
    let again = || (wrong().ok()? == 0).then_some(());
    wait_for("redis with its keys", PATIENCE, again).expect("it has all");
    assert!(run(&["logs", "redis"]).contains("Server initialized"));
    run(&["rm", "--force", "redis"]);
}

#[test]
fn an_open_connection_goes_on_in_docker() {
    let test = "an_open_connection_goes_on_in_docker";
    let Some(testbed) = systems(test) else {
        return;
    };
    let docker = Docker::start(&testbed.b).expect("docker runs");
    docker.install().expect("the runtime is registered");
    streams::start(&testbed, &testbed.a, None, 0).expect("the service runs");
    let endpoint = |at: std::net::Ipv4Addr| SocketAddr::from((at, streams::PORT));
    let open = || Echo::open(endpoint(testbed.a.ip()), 1);
    let mut echo = testbed.world.in_network(open).expect("a connection");
    echo.exchange().expect("an answer");
    migrate(&testbed, "streams", &["--engine", "docker"]);
    for _ in 0..100 {
        echo.exchange().expect("an answer");
    }
    let served = || echo::once(endpoint(testbed.b.ip()));
    testbed
        .world
        .in_network(served)
        .expect("a new client is served");
    docker.run(&["rm", "--force", "streams"]).expect("removed");
}
