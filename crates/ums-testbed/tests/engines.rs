//! Containers that people have started with an engine are listed, planned and moved.

mod common;
#[path = "engines/told.rs"]
mod told;

use std::net::SocketAddr;
use std::time::Duration;

use common::PATIENCE;
use ums_core::report::Outcome;
use ums_testbed::client::{Load, counter, keys};
use ums_testbed::engine::{Engine, Kind};
use ums_testbed::rootfs;
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{skipped, text, wait_for};
use ums_testbed::workload::{REDIS_PORT, addresses, answers, count, root_of};

/// Keys that Redis holds.
const KEYS: u64 = 5_000;
const IMAGE: &str = "localhost/redis:1";

fn systems(test: &str, kind: Kind) -> Option<Testbed> {
    systems_by(test, kind, common::LINK_MBIT)
}

fn systems_by(test: &str, kind: Kind, mbit: u32) -> Option<Testbed> {
    if !kind.is_here() {
        let name = kind.name();
        skipped(test, &format!("needs {name}: run `cargo xtask setup`"));
        return None;
    }
    common::systems(test, mbit)
}

/// An engine with a Redis in system a, as anybody starts it.
fn engine_with_redis<'a>(testbed: &'a Testbed, kind: Kind, options: &[&str]) -> Engine<'a> {
    let engine = Engine::start(&testbed.a, kind).expect("the engine runs");
    let program = rootfs::program("redis-server").expect("redis is installed");
    let root = root_of(testbed, "redis", program).expect("a root filesystem");
    engine.import(&root, IMAGE).expect("an image");
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
    let run = engine.run(&[&run[..], options, &command[..]].concat());
    run.expect("redis runs");
    answers(testbed, &testbed.a, REDIS_PORT).expect("redis answers");
    engine
}

/// How often each client of a test increments its counter.
const PERIOD: Duration = Duration::from_millis(5);

#[test]
fn a_redis_of_docker_moves_and_its_clients_do_not_notice() {
    let test = "a_redis_of_docker_moves_and_its_clients_do_not_notice";
    a_redis_moves(test, Kind::Docker);
}

#[test]
fn a_redis_of_podman_moves_and_its_clients_do_not_notice() {
    let test = "a_redis_of_podman_moves_and_its_clients_do_not_notice";
    a_redis_moves(test, Kind::Podman);
}

fn a_redis_moves(test: &str, kind: Kind) {
    let Some(testbed) = systems(test, kind) else {
        return;
    };
    let engine = engine_with_redis(&testbed, kind, &[]);
    let beside = ["run", "-d", "--name", "beside", IMAGE, "/bin/redis-server"];
    engine.run(&beside).expect("a container beside it");
    let a = &testbed.a;
    let list = a.ums_ok(&["list"]).expect("a list");
    let of_engine = format!(" {} ", kind.name());
    assert!(list.contains("web") && list.contains(&of_engine), "{list}");

    let redis = addresses(&testbed, REDIS_PORT);
    let set = testbed.world.in_network(|| keys::set(&redis, KEYS));
    set.expect("the keys are set");
    // Through the published port, and from another container to the container's own address.
    let published = count(&testbed).expect("a counter");
    let own = engine.inspect("web", "{{.NetworkSettings.IPAddress}}");
    let own = own.expect("an address").parse().expect("an address");
    let own = [SocketAddr::new(own, REDIS_PORT)];
    let network = engine.init_of("beside").expect("it runs").join("ns/net");
    let inside = Load::start_in(&network, move |stop| {
        counter::run_key("beside", &own, PERIOD, stop)
    });
    let inside = inside.expect("another counter");
    moves(&testbed, "web");
    let wrong = testbed.world.in_network(|| keys::wrong(&redis, KEYS));
    assert_eq!(wrong.expect("redis answers at both places"), 0);
    let new = Load::start_in(&network, move |_| keys::wrong(&own, KEYS)).expect("a client");
    assert_eq!(new.stop().expect("redis answers at its address"), 0);
    for clients in [published, inside] {
        let counted = clients.stop().expect("it goes on to the end");
        assert_eq!((counted.lost, counted.doubled), (0, 0), "{counted:?}");
        let seen = &counted.summary;
        assert_eq!((seen.failed, seen.reconnects), (0, 0), "{seen:?}");
    }

    // The engine has its container still, but there is nothing in it.
    let status = std::fs::read_to_string(engine.init_of("web").expect("it stays").join("status"));
    let anonymous = status.expect("its status");
    let anonymous = anonymous.lines().find(|line| line.starts_with("RssAnon"));
    let kib = anonymous.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    assert!(kib.expect("a number") < 1024, "{anonymous:?}");
    // Until nobody needs it.
    a.ums_ok(&["rm", "web"]).expect("its Frontman retires");
    nothing_stays(&engine, a);
}

fn moves(testbed: &Testbed, service: &str) {
    let report = testbed.migrate(&testbed.a, &testbed.b, service, &[]);
    let said = || format!("{}\n{}", testbed.a.said(), testbed.b.said());
    let report = report.unwrap_or_else(|error| panic!("{error:#}\n{}", said()));
    let error = &report.error;
    assert_eq!(report.outcome, Outcome::Completed, "{error:?}\n{}", said());
}

/// Neither in the engine nor in the system's network.
fn nothing_stays(engine: &Engine<'_>, system: &System) {
    wait_for("nothing of it in the engine", PATIENCE, || {
        let all = engine.run(&["ps", "--all", "--format", "{{.Names}}"]);
        (!all.expect("it answers").lines().any(|name| name == "web")).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", system.said()));
    let rules = text(&mut system.exec("iptables-save")).expect("its rules");
    assert!(!rules.contains("6379"), "{rules}");
    wait_for("nothing of it in the network", PATIENCE, || {
        let links = text(system.exec("ip").args(["link"])).ok()?;
        (!links.contains(" ums")).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", system.said()));
}

#[test]
fn what_stands_in_the_way_of_a_container_is_told_before_anything_is_done() {
    let test = "what_stands_in_the_way_of_a_container_is_told_before_anything_is_done";
    let Some(testbed) = systems(test, Kind::Docker) else {
        return;
    };
    let docker = engine_with_redis(
        &testbed,
        Kind::Docker,
        &["--restart", "always", "--tmpfs", "/scratch"],
    );
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
    let Some(testbed) = systems_by(test, Kind::Docker, common::SLOW_MBIT) else {
        return;
    };
    let docker = engine_with_redis(&testbed, Kind::Docker, &["--restart", "always"]);
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
