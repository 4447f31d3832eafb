//! What people tell an engine of a container that is being moved: until the commit it holds and the move is given
//! up, after it the service runs at its new place, and nowhere else.

use ums_core::report::Outcome;
use ums_testbed::engine::{Engine, Kind};
use ums_testbed::intercept::{Interceptor, Moment, Passage, Stop};
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::wait_for;
use ums_testbed::workload::{REDIS_PORT, addresses};

use super::common::{Ended, Moving, PATIENCE, coordinator, services};
use super::{KEYS, engine_with_redis, keys, nothing_stays, systems};

/// A request of the source's Coordinator to its agent, and a command of a person that comes while it is stopped.
type Window<'a> = (&'static str, Moment, &'a [&'a str]);

/// A move that goes on, and what its request passes through.
struct Begun {
    moving: Moving,
    gate: Interceptor,
}

impl Begun {
    fn end(self) -> Ended {
        let ended = self.moving.end();
        drop(self.gate);
        ended
    }
}

/// Begins to move the service, has the engine told something in this window, and goes on.
fn told_in(testbed: &Testbed, engine: &Engine<'_>, window: Window<'_>) -> Begun {
    let (operation, moment, told) = window;
    let tell = || drop(engine.run(told).expect("the engine does it"));
    meanwhile(testbed, (operation, moment), tell)
}

/// The same with something else in its place.
fn meanwhile(
    testbed: &Testbed,
    (operation, moment): (&'static str, Moment),
    act: impl FnOnce(),
) -> Begun {
    let a = &testbed.a;
    let socket = a.outside(&a.run_dir().join("agent.sock"));
    let stop = Stop {
        operation,
        number: 1,
        moment,
    };
    let gate = Interceptor::close(&socket, coordinator(a), stop).expect("a gate");
    let moving = Moving::start_with(&["stop-and-copy", "--accept-loss"], a, &testbed.b, "web");
    gate.wait(PATIENCE).expect("it comes there");
    act();
    gate.pass(Passage::On);
    Begun { moving, gate }
}

/// The move is given up, and the container is what the person has made of it.
fn is_given_up(testbed: &Testbed, engine: &Engine<'_>, window: Window<'_>, state: &str) {
    let ended = told_in(testbed, engine, window).end();
    ended.must_be_abandoned(if window.0 == "/open" {
        &[]
    } else {
        &["while it was being moved"]
    });
    let is = engine.inspect("web", "{{.State.Status}}");
    assert_eq!(is.expect("it is there"), state, "{window:?}");
    let there = services(&testbed.b).expect("they are listed");
    assert!(there.is_empty(), "{window:?}: {there:?}");
}

fn is_right(testbed: &Testbed, place: usize) {
    let redis = addresses(testbed, REDIS_PORT);
    let redis = &redis[place..=place];
    let answer = wait_for("redis answers", PATIENCE, || {
        testbed.world.in_network(|| keys::wrong(redis, KEYS)).ok()
    });
    assert_eq!(answer.expect("it answers"), 0);
}

fn with_keys(testbed: &Testbed, kind: Kind) -> Engine<'_> {
    let engine = engine_with_redis(testbed, kind, &[]);
    let redis = addresses(testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis, KEYS));
    set.expect("the keys are set");
    engine
}

#[test]
fn what_docker_is_told_before_the_commit_holds() {
    let test = "what_docker_is_told_before_the_commit_holds";
    let Some(testbed) = systems(test, Kind::Docker) else {
        return;
    };
    let docker = with_keys(&testbed, Kind::Docker);
    let again = |command| {
        docker.run(&[command, "web"]).expect("it runs again");
        is_right(&testbed, 0);
    };
    // While files and memory go over, and nothing is frozen.
    let stop: &[&str] = &["stop", "--time", "0", "web"];
    is_given_up(&testbed, &docker, ("/open", Moment::After, stop), "exited");
    again("start");
    // The gate is shut.
    let update: &[&str] = &["update", "--restart", "always", "web"];
    let window = ("/checkpoint", Moment::Before, update);
    is_given_up(&testbed, &docker, window, "running");
    let policy = docker.inspect("web", "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(policy.expect("it is there"), "always");
    docker
        .run(&["update", "--restart", "no", "web"])
        .expect("as it was");
    is_right(&testbed, 0);
    // It is frozen, and all of it is at the destination.
    let kill: &[&str] = &["kill", "web"];
    is_given_up(
        &testbed,
        &docker,
        ("/checkpoint", Moment::After, kill),
        "exited",
    );
    again("start");
    // It is held there, and the commit would be next.
    let pause: &[&str] = &["pause", "web"];
    is_given_up(
        &testbed,
        &docker,
        ("/confirm", Moment::Before, pause),
        "paused",
    );
    again("unpause");
    // The engine itself ends.
    let moving = meanwhile(&testbed, ("/confirm", Moment::Before), || {
        docker.end().expect("it ends");
    });
    moving.end().must_be_abandoned(&[]);
    is_right(&testbed, 0);
}

#[test]
fn what_docker_is_told_after_the_commit_finds_the_service_gone() {
    let test = "what_docker_is_told_after_the_commit_finds_the_service_gone";
    let Some(testbed) = systems(test, Kind::Docker) else {
        return;
    };
    let docker = with_keys(&testbed, Kind::Docker);
    let remove: &[&str] = &["rm", "--force", "web"];
    let moving = told_in(
        &testbed,
        &docker,
        ("/delete-source", Moment::Before, remove),
    );
    assert_eq!(moving.end().report.outcome, Outcome::Completed);
    is_right(&testbed, 1);
    nothing_stays(&docker, &testbed.a);
}

#[test]
fn a_container_that_has_left_is_not_started_again() {
    let test = "a_container_that_has_left_is_not_started_again";
    let Some(testbed) = systems(test, Kind::Docker) else {
        return;
    };
    let docker = with_keys(&testbed, Kind::Docker);
    super::moves(&testbed, "web");
    let restart = docker.run(&["restart", "--time", "0", "web"]);
    assert!(restart.is_err(), "{restart:?}\n{}", testbed.a.said());
    nothing_stays(&docker, &testbed.a);
    is_right(&testbed, 1);
}

#[test]
fn what_podman_is_told_is_noticed() {
    let test = "what_podman_is_told_is_noticed";
    let Some(testbed) = systems(test, Kind::Podman) else {
        return;
    };
    let podman = with_keys(&testbed, Kind::Podman);
    let kill: &[&str] = &["kill", "web"];
    is_given_up(
        &testbed,
        &podman,
        ("/confirm", Moment::Before, kill),
        "exited",
    );
    podman.run(&["start", "web"]).expect("it runs again");
    is_right(&testbed, 0);
    let remove: &[&str] = &["rm", "--force", "--time", "0", "web"];
    let moving = told_in(
        &testbed,
        &podman,
        ("/delete-source", Moment::Before, remove),
    );
    assert_eq!(moving.end().report.outcome, Outcome::Completed);
    is_right(&testbed, 1);
    nothing_stays(&podman, &testbed.a);
}
