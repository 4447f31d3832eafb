//! Services arrive in containers that an engine makes, and are that engine's own afterwards.

mod common;

use std::net::SocketAddr;

use common::{Moving, PATIENCE, agent, strike};
use ums_core::report::Outcome;
use ums_testbed::client::echo::{self, Echo};
use ums_testbed::client::keys;
use ums_testbed::engine::{Engine, Kind};
use ums_testbed::hog::Request;
use ums_testbed::rootfs;
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{run as told, skipped, wait_for};
use ums_testbed::workload::{
    REDIS_PORT, addresses, answers, ask_hog, count, root_of, start_hog, start_redis, streams,
};

/// Keys that Redis holds.
const KEYS: u64 = 5_000;

fn systems(test: &str) -> Option<Testbed> {
    systems_by(test, common::LINK_MBIT)
}

fn systems_by(test: &str, mbit: u32) -> Option<Testbed> {
    if !Kind::Docker.is_here() {
        skipped(test, "needs Docker: run `cargo xtask setup`");
        return None;
    }
    common::systems(test, mbit)
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
    let docker = Engine::start(&testbed.b, Kind::Docker).expect("docker runs");
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
    let docker = Engine::start(&testbed.b, Kind::Docker).expect("docker runs");
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

/// A Redis in Docker, as anybody starts it who wants it to stay.
fn redis_of_docker(testbed: &Testbed, docker: &Engine) {
    const IMAGE: &str = "localhost/redis:1";
    let program = rootfs::program("redis-server").expect("redis is installed");
    let root = root_of(testbed, "redis", program).expect("a root filesystem");
    docker.import(&root, IMAGE).expect("an image");
    let words = "run -d --name web -p 6379:6379 -v mydata:/data --restart always --label x=y \
                 --stop-signal SIGINT --memory 256m --hostname redis-host";
    let mut run: Vec<&str> = words.split_whitespace().collect();
    run.extend([
        IMAGE,
        "/bin/redis-server",
        "--protected-mode",
        "no",
        "--dir",
        "/data",
    ]);
    run.extend(["--save", "", "--appendonly", "yes"]);
    docker.run(&run).expect("redis runs");
    answers(testbed, &testbed.a, REDIS_PORT).expect("redis answers");
}

#[test]
fn a_container_of_docker_moves_to_another_docker_as_it_was_made() {
    let test = "a_container_of_docker_moves_to_another_docker_as_it_was_made";
    let Some(testbed) = systems(test) else {
        return;
    };
    let here = Engine::start(&testbed.a, Kind::Docker).expect("docker runs");
    let docker = Engine::start(&testbed.b, Kind::Docker).expect("docker runs");
    docker.install().expect("the runtime is registered");
    redis_of_docker(&testbed, &here);
    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis, KEYS));
    set.expect("the keys are set");
    let plan = ["plan", "web", "--to", "b", "--accept-loss"];
    let plan = testbed.a.ums_ok(&plan).expect("a plan");
    assert!(plan.contains("made by `docker` there"), "{plan}");
    migrate(&testbed, "web", &["--accept-loss"]);
    let there: Vec<_> = redis
        .iter()
        .copied()
        .filter(|at| at.ip() == testbed.b.ip())
        .collect();
    let wrong = || testbed.world.in_network(|| keys::wrong(&there, KEYS));
    assert_eq!(wrong().expect("redis answers"), 0);

    let inspect = |format: &str| {
        let inspected = docker.run(&["inspect", "--format", format, "web"]);
        inspected.expect("it is inspected")
    };
    let settled = || (inspect("{{.HostConfig.RestartPolicy.Name}}") == "always").then_some(());
    wait_for("its restart policy", PATIENCE, settled).expect("it is set again");
    let made =
        "{{.Config.Labels.x}} {{.Config.StopSignal}} {{.HostConfig.Memory}} {{.Config.Hostname}}";
    assert_eq!(inspect(made), format!("y SIGINT {} redis-host", 256 << 20));
    // Nothing of a migration is left but the container.
    let offers = testbed.b.outside(&testbed.b.run_dir().join("runtime"));
    let offered = || (std::fs::read_dir(&offers).ok()?.count() == 0).then_some(());
    wait_for("no offer", PATIENCE, offered).expect("it is withdrawn");
    // Its engine starts it anew when it ends.
    let init = inspect("{{.State.Pid}}");
    told(testbed.b.exec("kill").args(["-9", &init])).expect("it is killed");
    let again = || (inspect("{{.RestartCount}}") == "1" && wrong().ok()? == 0).then_some(());
    wait_for("redis again, with its keys", PATIENCE, again).expect("it is started anew");
    docker.run(&["rm", "--force", "web"]).expect("removed");
}

/// Nothing of a service that was to arrive is in an engine, or with UMS.
fn nothing_is_left(system: &System, docker: &Engine, name: &str) {
    let left = || {
        let containers = docker.run(&["ps", "--all", "--quiet"]).ok()?;
        let volumes = docker.run(&["volume", "ls", "--quiet"]).ok()?;
        let at = |path: std::path::PathBuf| system.outside(&path);
        let entries = |path: std::path::PathBuf| {
            let entries = std::fs::read_dir(at(path)).into_iter().flatten();
            entries.count()
        };
        let (run, state) = (system.run_dir(), system.state_dir());
        let records = entries(state.join("engines/arriving")) + entries(run.join("runtime"));
        let keeper = at(run.join(format!("engines/{name}"))).exists();
        let ended = common::processes(system, &["ums-agent", "keeper"]).is_empty();
        ((containers + &volumes).is_empty() && records == 0 && !keeper && ended).then_some(())
    };
    wait_for("an engine as it was", PATIENCE, left).unwrap_or_else(|error| {
        let told = docker.run(&["ps", "--all"]);
        panic!("{error}: {told:?}\n{}\n{}", system.said(), docker.said())
    });
}

#[test]
fn what_does_not_arrive_in_docker_leaves_nothing_there() {
    let test = "what_does_not_arrive_in_docker_leaves_nothing_there";
    let Some(testbed) = systems_by(test, common::SLOW_MBIT) else {
        return;
    };
    let docker = Engine::start(&testbed.b, Kind::Docker).expect("docker runs");
    docker.install().expect("the runtime is registered");
    start_hog(&testbed, &testbed.a, "hog", common::LARGE_MIB).expect("the hog runs");
    let start = || {
        let options = ["stop-and-copy", "--engine", "docker"];
        let moving = Moving::start_with(&options, &testbed.a, &testbed.b, "hog");
        moving.wait_for_step(&testbed.a, 8);
        moving
    };
    // A person gives it up.
    let moving = start();
    testbed
        .a
        .ums_ok(&["abort", moving.id()])
        .expect("it is given up");
    assert_eq!(moving.end().report.outcome, Outcome::Abandoned);
    nothing_is_left(&testbed.b, &docker, "hog");
    // The agent there is killed while the container waits.
    let moving = start();
    strike(agent(&testbed.b));
    assert_eq!(moving.end().report.outcome, Outcome::Abandoned);
    nothing_is_left(&testbed.b, &docker, "hog");
    // It has gone on where it was.
    ask_hog(&testbed, &testbed.a, Request::Status).expect("the hog answers");
}
