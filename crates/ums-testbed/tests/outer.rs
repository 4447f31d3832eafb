//! Container level: a service in a container of its own, inside a container that any engine runs.

mod common;

use common::PATIENCE;
use ums_core::report::Outcome;
use ums_core::technique::Approach;
use ums_testbed::client::keys;
use ums_testbed::engine::{Engine, Kind};
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{skipped, wait_for};
use ums_testbed::workload::{REDIS_PORT, addresses, answers, count, start_redis};
use ums_testbed::{outer, rootfs};

/// Keys that Redis holds.
const KEYS: u64 = 2_000;
const IMAGE: &str = "localhost/wrapped:1";

fn systems(test: &str) -> Option<Testbed> {
    if !Kind::Docker.is_here() {
        skipped(test, "needs Docker: run `cargo xtask setup`");
        return None;
    }
    common::systems(test, common::LINK_MBIT)
}

/// Docker on a system, with a wrapped image that has Redis and a shell.
fn docker<'a>(testbed: &'a Testbed, system: &'a System) -> Engine<'a> {
    let docker = Engine::start(system, Kind::Docker).expect("docker runs");
    let redis = rootfs::program("redis-server").expect("redis is installed");
    outer::image(testbed, &docker, IMAGE, &redis, &[REDIS_PORT]).expect("a wrapped image");
    docker
}

fn run(
    docker: &Engine<'_>,
    system: &System,
    service: &str,
    more: &[&str],
    command: &[&str],
) -> String {
    let flags = outer::flags(system, service);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let all = [
        &["run", "-d", "--name", service][..],
        &flags,
        more,
        &[IMAGE],
        command,
    ]
    .concat();
    docker.run(&all).expect("the outer container starts")
}

#[test]
fn an_outer_container_is_to_its_engine_as_the_service_that_it_holds() {
    let test = "an_outer_container_is_to_its_engine_as_the_service_that_it_holds";
    let Some(testbed) = systems(test) else {
        return;
    };
    let system = &testbed.a;
    let docker = docker(&testbed, system);

    // What is missing is told, all of it, by the flags that give it.
    let bare = docker.output(&["run", "--rm", "-e", "UMS_SERVICE=web", IMAGE, "/bin/sh"]);
    let bare = bare.expect("it runs");
    let said = String::from_utf8_lossy(&bare.stderr).into_owned();
    assert_eq!(bare.status.code(), Some(125), "{said}");
    for flag in outer::needed()
        .iter()
        .filter(|it| !it.starts_with("--cap") && !it.starts_with("--sec"))
    {
        assert!(said.contains(flag), "{flag}: {said}");
    }

    let script = "trap 'echo told; exit 7' TERM; echo here; echo there >&2; echo $KEY > /tmp/made; \
                  while :; do sleep 0.05; done";
    run(
        &docker,
        system,
        "web",
        &["-e", "KEY=value", "--memory", "200m"],
        &["/bin/sh", "-c", script],
    );
    wait_for("what it says", PATIENCE, || {
        let logs = docker.run(&["logs", "web"]).ok()?;
        (logs == "here").then_some(())
    })
    .expect("standard output is the container's");
    let logs = docker.output(&["logs", "web"]).expect("its log");
    assert_eq!(String::from_utf8_lossy(&logs.stderr), "there\n");

    // What is executed in the container is in the service's file system and network.
    let exec = |command: &[&str]| docker.run(&[&["exec", "web"], command].concat());
    wait_for("a file of the service's", PATIENCE, || {
        exec(&["cat", "/tmp/made"]).ok().filter(|it| it == "value")
    })
    .expect("it is seen");
    assert!(
        exec(&["cat", "/proc/net/route"])
            .expect("a network")
            .contains("eth0")
    );
    assert!(
        exec(&["ls", "/.ums"]).is_err(),
        "the service does not see what carries it"
    );
    // The container's memory limit holds for the service, whose group lies below.
    let groups = exec(&["cat", "/proc/self/cgroup"]).expect("groups");
    assert!(groups.contains("memory"), "{groups}");
    let list = system.ums_ok(&["list"]).expect("a list");
    assert_eq!(list.matches("web").count(), 1, "{list}");

    // A killed agent costs nothing.
    let pids = docker
        .run(&["top", "web", "-o", "pid,args"])
        .expect("processes");
    let agent = pids
        .lines()
        .find(|line| line.contains("outer-agent"))
        .expect("an agent");
    let agent = agent
        .split_whitespace()
        .next()
        .expect("its number")
        .to_owned();
    let mut kill = system.exec("kill");
    ums_testbed::tools::text(kill.args(["-9", &agent])).expect("it is killed");
    wait_for("another agent", PATIENCE, || {
        let list = system.ums_ok(&["list"]).ok()?;
        list.contains("web").then_some(())
    })
    .expect("it is started again");

    docker.run(&["stop", "web"]).expect("it is stopped");
    let code = docker.run(&["inspect", "--format", "{{.State.ExitCode}}", "web"]);
    assert_eq!(code.expect("a code"), "7");
    assert!(
        docker
            .run(&["logs", "web"])
            .expect("a log")
            .ends_with("told")
    );
}

#[test]
fn a_service_moves_into_an_outer_container_and_out_of_it() {
    let test = "a_service_moves_into_an_outer_container_and_out_of_it";
    let Some(testbed) = systems(test) else {
        return;
    };
    let docker = docker(&testbed, &testbed.b);
    let publish = format!("{REDIS_PORT}:{REDIS_PORT}");
    let more = [
        "-p",
        &publish,
        "-e",
        "UMS_AWAIT=1",
        "-e",
        "UMS_RETIRE_SECONDS=2",
        "--restart",
        "on-failure",
    ];
    run(&docker, &testbed.b, "redis", &more, &[]);
    start_redis(&testbed, &testbed.a).expect("redis runs");
    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis, KEYS));
    set.expect("the keys are set");
    wait_for("the outer container's agent", PATIENCE, || {
        let socket = testbed.b.run_dir().join("outer/redis/agent.sock");
        testbed.b.outside(&socket).exists().then_some(())
    })
    .expect("it answers");

    let counter = count(&testbed).expect("a counter");
    let approach = moved(&testbed, &testbed.a, &testbed.b, &docker);
    assert_eq!(approach, Some(Approach::OrchestratorLevel), "of the source");
    let there = [redis[1]];
    let wrong = testbed.world.in_network(|| keys::wrong(&there, KEYS));
    assert_eq!(wrong.expect("redis answers through the published port"), 0);
    // What is executed there is in the file system that has come, which has no shell as the outer one has.
    let exec = |command: &[&str]| docker.run(&[&["exec", "redis"], command].concat());
    assert!(exec(&["/bin/redis-server", "--version"]).is_ok());
    assert!(exec(&["/bin/ls"]).is_err());
    let approach = moved(&testbed, &testbed.b, &testbed.a, &docker);
    assert_eq!(approach, Some(Approach::ContainerLevel));
    let here = [redis[0]];
    let wrong = testbed.world.in_network(|| keys::wrong(&here, KEYS));
    assert_eq!(wrong.expect("redis answers"), 0);
    let counted = counter
        .stop()
        .expect("the counter's client goes on to the end");
    assert_eq!((counted.lost, counted.doubled), (0, 0));

    // The container ends when nobody is led any more, and does not start the service anew.
    let state = [
        "inspect",
        "--format",
        "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}",
        "redis",
    ];
    wait_for("the container's end", PATIENCE, || {
        let state = docker.run(&state).ok()?;
        (state == "exited 0 0").then_some(())
    })
    .expect("it ends with 0");
    docker.run(&["start", "redis"]).expect("somebody starts it");
    wait_for("the awaiting agent", PATIENCE, || {
        let said = testbed.b.ums_ok(&["list"]).ok()?;
        (!said.contains("redis ")).then_some(())
    })
    .expect("it has no service");
    let wrong = testbed.world.in_network(|| keys::wrong(&here, KEYS));
    assert_eq!(wrong.expect("redis answers"), 0);
}

#[test]
fn a_service_moves_from_one_outer_container_to_another() {
    let test = "a_service_moves_from_one_outer_container_to_another";
    let Some(testbed) = systems(test) else {
        return;
    };
    let publish = format!("{REDIS_PORT}:{REDIS_PORT}");
    let command = ["/bin/redis-server", "--protected-mode", "no", "--save", ""];
    let from = docker(&testbed, &testbed.a);
    run(&from, &testbed.a, "web", &["-p", &publish], &command);
    let to = docker(&testbed, &testbed.b);
    run(
        &to,
        &testbed.b,
        "web",
        &["-p", &publish, "-e", "UMS_AWAIT=1"],
        &command,
    );
    answers(&testbed, &testbed.a, REDIS_PORT).expect("redis answers");
    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis[..1], KEYS));
    set.expect("the keys are set");
    let counter = count(&testbed).expect("a counter");
    let report = testbed.migrate(&testbed.a, &testbed.b, "web", &[]);
    let report = report.unwrap_or_else(|error| panic!("{error:#}\n{}", testbed.a.said()));
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let wrong = testbed.world.in_network(|| keys::wrong(&redis[1..], KEYS));
    assert_eq!(wrong.expect("redis answers"), 0);
    let counted = counter
        .stop()
        .expect("the counter's client goes on to the end");
    assert_eq!((counted.lost, counted.doubled), (0, 0));
    let logs = to.run(&["logs", "web"]).expect("its log goes on there");
    assert!(
        !logs.contains("Ready to accept"),
        "it was not started there: {logs}"
    );
}

/// Moves Redis, and gives the approach that the report names.
fn moved(testbed: &Testbed, from: &System, to: &System, docker: &Engine<'_>) -> Option<Approach> {
    let report = testbed.migrate(from, to, "redis", &[]);
    let agents = || {
        let log = ["exec", "redis", "cat", "/.ums/state/agent.log"];
        format!(
            "{}\n{}\n{:?}",
            testbed.a.said(),
            testbed.b.said(),
            docker.run(&log)
        )
    };
    let report = report.unwrap_or_else(|error| panic!("{error:#}\n{}", agents()));
    assert_eq!(
        report.outcome,
        Outcome::Completed,
        "{:?}\n{}",
        report.error,
        agents()
    );
    report.approach
}
