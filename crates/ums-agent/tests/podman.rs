//! A service arrives in a container that Podman has made, and is Podman's own afterwards.

mod support;

use ums_checkpoint::offers::{Offer, Offers};

use support::departed::{departed, program};
use support::podman::Podman;
use support::*;

/// Podman would give more than this process may have, which takes a privilege.
const LIMITS: [&str; 2] = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
const IMAGE: &str = "localhost/ums/counter:1";

#[test]
fn a_service_arrives_in_a_container_of_podman_and_is_its_own() {
    let name = "a_service_arrives_in_a_container_of_podman_and_is_its_own";
    let Some(from) = departed(name) else {
        return;
    };
    let Some(podman) = Podman::new(name, &from.bundle) else {
        return from.over();
    };
    let frozen_at = last_tick(&from.place.log());
    podman.import(from.lower.path(), IMAGE);
    let [files, processes] = LIMITS;
    let id = podman.succeeds(&[
        "create", "--name", "counter", files, processes, IMAGE, "/bin/sh", "-c", COUNTING,
    ]);
    let upper = podman.inspect("counter", "{{.GraphDriver.Data.UpperDir}}");
    let mut place = Place::new(&from.bundle, from.lower.path(), "arrival");
    place.config.placed = true;
    let keeper = place.start();
    let offers = Offers::new(podman.offers());
    let offer = Offer {
        keeper: place.config.socket.clone(),
    };
    offers.offer(&id, &offer).unwrap();

    let mut start = podman.command(&["start", "counter"]).spawn().unwrap();
    wait_until("Podman has made the container", || {
        if let Some(status) = start.try_wait().unwrap() {
            let why = std::fs::read_to_string(podman.offers().join(&id).join("why"));
            panic!("{status}: {why:?}");
        }
        keeper.status().unwrap().placed
    });
    from.fill(&upper);
    assert_eq!(
        restore(&keeper, &from.images, &from.stored).phase,
        Phase::Held
    );
    assert!(start.wait().unwrap().success());
    assert_eq!(podman.succeeds(&["logs", "counter"]), "");
    keeper.call(&Request::Resume, &[]).unwrap();
    let logs = || podman.succeeds(&["logs", "counter"]);
    wait_until("it counts on", || last_tick(&logs()) > frozen_at + 5);
    assert_eq!(
        logs().lines().next().unwrap(),
        format!("tick {}", frozen_at + 1)
    );
    wait_until("every page is in", || {
        keeper.status().unwrap().pages_missing == 0
    });
    let init = keeper.status().unwrap().init_pid.unwrap();
    keeper.call(&Request::Leave, &[]).unwrap();
    offers.withdraw(&id).unwrap();

    assert_eq!(
        podman.inspect("counter", "{{.State.Pid}}"),
        init.to_string()
    );
    assert_eq!(podman.inspect("counter", "{{.State.Status}}"), "running");
    let inside = podman.succeeds(&["exec", "counter", "/bin/busybox", "cat", "/proc/1/cmdline"]);
    assert!(inside.contains("tick"), "{inside}");
    let address = podman.inspect("counter", "{{.NetworkSettings.IPAddress}}");
    let has = podman.succeeds(&["exec", "counter", "/bin/busybox", "ip", "addr"]);
    assert!(
        !address.is_empty() && has.contains(&address),
        "{address}: {has}"
    );
    let stats = podman.succeeds(&["stats", "--no-stream", "--format", "{{.PIDS}}", "counter"]);
    assert!(stats.parse::<u32>().unwrap() >= 1, "{stats}");
    podman.succeeds(&["stop", "--time", "0", "counter"]);
    assert_eq!(podman.inspect("counter", "{{.State.Status}}"), "exited");
    podman.succeeds(&["start", "counter"]);
    wait_until("it counts from the beginning", || {
        logs().lines().any(|line| line == "tick 1")
    });
    podman.succeeds(&["rm", "--force", "--time", "0", "counter"]);
    from.over();
}

#[test]
fn podman_finds_the_runtime_in_the_file_that_registers_it() {
    let name = "podman_finds_the_runtime_in_the_file_that_registers_it";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let Some(ums) = program().map(|runtime| runtime.with_file_name("ums")) else {
        return skip(name, "needs ums and ums-runtime");
    };
    let Some(podman) = Podman::new(name, &bundle) else {
        return;
    };
    podman.import(lower.path(), IMAGE);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("containers.conf.d/ums.conf");
    let host = |command: &str| {
        let mut host = Command::new(&ums);
        host.args(["--run-dir", "/run/ums", "host", command, "podman", "--file"]);
        assert!(host.arg(&file).status().unwrap().success());
    };
    let hello = || {
        let [files, processes] = LIMITS;
        let run = [
            "run",
            "--rm",
            files,
            processes,
            IMAGE,
            "/bin/busybox",
            "echo",
            "hello",
        ];
        let mut run = podman.command_with("ums", &run);
        // In place of the files of this machine.
        run.env("CONTAINERS_CONF", &file).output().unwrap()
    };
    host("install");
    let said = hello();
    assert_eq!(
        said.stdout,
        b"hello\n",
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    host("uninstall");
    assert!(!file.exists());
    std::fs::write(&file, "").unwrap();
    assert!(
        !hello().status.success(),
        "nobody knows the runtime any more"
    );
}
