//! A service arrives in a container that Docker has made, and is Docker's own afterwards.

mod support;

use serde_json::Value;
use ums_checkpoint::offers::{Offer, Offers};

use support::departed::{self, Departed, departed};
use support::docker::{CONFIG, Docker};
use support::*;

const IMAGE: &str = "localhost/ums/counter:1";

/// A container of Docker's for a service, and the keeper that awaits it.
struct Arrival {
    _place: Place,
    keeper: Keeper,
    offers: Offers,
    docker: Docker,
    id: String,
    upper: String,
    merged: String,
}

impl Arrival {
    fn new(test: &str, from: &Departed) -> Option<Self> {
        let docker = Docker::start(test, &from.bundle)?;
        docker.import(from.lower.path(), IMAGE);
        let id = docker.succeeds(&[
            "create",
            "--name",
            "counter",
            "--runtime",
            "ums",
            IMAGE,
            "/bin/sh",
            "-c",
            COUNTING,
        ]);
        let layer = |name: &str| docker.inspect(&id, &format!("{{{{.GraphDriver.Data.{name}}}}}"));
        let (upper, merged) = (layer("UpperDir"), layer("MergedDir"));
        let mut place = Place::new(&from.bundle, from.lower.path(), "arrival");
        place.config.placed = true;
        let keeper = place.start();
        let offers = Offers::new(docker.offers());
        let offer = Offer {
            keeper: place.config.socket.clone(),
        };
        offers.offer(&id, &offer).unwrap();
        Some(Self {
            _place: place,
            keeper,
            offers,
            docker,
            id,
            upper,
            merged,
        })
    }

    /// Has the container started, and waits until it waits for its processes.
    fn placed(&self) -> std::process::Child {
        let mut start = self.docker.command(&["start", "counter"]).spawn().unwrap();
        wait_until("Docker has made the container", || {
            if let Some(status) = start.try_wait().unwrap() {
                let why = std::fs::read_to_string(self.docker.offers().join(&self.id).join("why"));
                panic!("{status}: {why:?} {}", self.docker.log());
            }
            self.keeper.status().unwrap().placed
        });
        start
    }

    fn state(&self) -> String {
        self.docker.inspect("counter", "{{.State.Status}}")
    }

    fn logs(&self) -> String {
        self.docker.succeeds(&["logs", "counter"])
    }
}

#[test]
fn a_service_arrives_in_a_container_of_docker_and_is_its_own() {
    let name = "a_service_arrives_in_a_container_of_docker_and_is_its_own";
    let Some(from) = departed(name) else {
        return;
    };
    let Some(to) = Arrival::new(name, &from) else {
        return from.over();
    };
    let frozen_at = last_tick(&from.place.log());
    let mut start = to.placed();
    // What has been seen of the root filesystem before the service's files came.
    let seen = |name: &str| std::fs::read_to_string(Path::new(&to.merged).join("etc").join(name));
    assert_eq!(
        (seen("state").unwrap(), seen("gone").unwrap()),
        ("old\n".into(), "old\n".into())
    );
    assert!(seen("made").is_err());
    from.fill(&to.upper);
    let held = restore(&to.keeper, &from.images, &from.stored);
    assert_eq!(held.phase, Phase::Held);
    assert!(start.wait().unwrap().success(), "{}", to.docker.log());
    assert_eq!((to.state().as_str(), to.logs().as_str()), ("running", ""));

    to.keeper.call(&Request::Resume, &[]).unwrap();
    wait_until("it counts on", || last_tick(&to.logs()) > frozen_at + 5);
    assert_eq!(
        to.logs().lines().next().unwrap(),
        format!("tick {}", frozen_at + 1)
    );
    wait_until("every page is in", || {
        to.keeper.status().unwrap().pages_missing == 0
    });
    let init = to.keeper.status().unwrap().init_pid.unwrap();
    to.keeper.call(&Request::Leave, &[]).unwrap();
    to.offers.withdraw(&to.id).unwrap();

    let docker = &to.docker;
    assert_eq!(
        docker.inspect("counter", "{{.State.Pid}}"),
        init.to_string()
    );
    let inside = docker.succeeds(&["exec", "counter", "/bin/busybox", "cat", "/proc/1/cmdline"]);
    assert!(inside.contains("tick"), "{inside}");
    let files = ["/etc/state", "/etc/made", "/etc/gone"];
    let files = docker.run(&[&["exec", "counter", "/bin/busybox", "cat"], &files[..]].concat());
    assert_eq!(String::from_utf8_lossy(&files.stdout), "new\nmade\n");
    let shm = docker.succeeds(&["exec", "counter", "/bin/busybox", "df", "/dev/shm"]);
    assert!(
        shm.lines().next_back().unwrap().starts_with("shm "),
        "{shm}"
    );
    let address = docker.inspect("counter", "{{.NetworkSettings.IPAddress}}");
    let has = docker.succeeds(&["exec", "counter", "/bin/busybox", "ip", "addr"]);
    assert!(has.contains(&address), "{address}: {has}");
    let stats = docker.succeeds(&["stats", "--no-stream", "--format", "{{.PIDs}}", "counter"]);
    assert!(stats.parse::<u32>().unwrap() >= 1, "{stats}");
    assert!(
        docker
            .succeeds(&["top", "counter"])
            .contains(&init.to_string())
    );
    docker.succeeds(&["pause", "counter"]);
    assert_eq!(to.state(), "paused");
    docker.succeeds(&["unpause", "counter"]);
    docker.succeeds(&[
        "update",
        "--memory",
        "64m",
        "--memory-swap",
        "64m",
        "counter",
    ]);

    // Its restart policy starts it anew, as any other container.
    docker.succeeds(&["update", "--restart", "always", "counter"]);
    kill(init);
    wait_until("it is started anew", || {
        docker.inspect("counter", "{{.RestartCount}}") == "1" && to.state() == "running"
    });
    wait_until("it counts from the beginning", || {
        to.logs().lines().filter(|line| *line == "tick 1").count() == 1
    });
    docker.succeeds(&["stop", "--time", "0", "counter"]);
    assert_eq!(to.state(), "exited");
    docker.succeeds(&["start", "counter"]);
    assert_eq!(to.state(), "running");
    docker.succeeds(&["rm", "--force", "counter"]);
    from.over();
}

#[test]
fn a_service_that_was_given_up_is_not_started_anew_by_docker() {
    let name = "a_service_that_was_given_up_is_not_started_anew_by_docker";
    let Some(from) = departed(name) else {
        return;
    };
    let Some(to) = Arrival::new(name, &from) else {
        return from.over();
    };
    to.docker
        .succeeds(&["update", "--restart", "always", "counter"]);
    let mut start = to.placed();
    from.fill(&to.upper);
    restore(&to.keeper, &from.images, &from.stored);
    assert!(start.wait().unwrap().success(), "{}", to.docker.log());
    to.keeper.call(&Request::Quit, &[]).unwrap();
    // Its restart policy tries, and then a person.
    wait_until("Docker was refused to start it anew", || {
        let error = to.docker.inspect("counter", "{{.State.Error}}");
        error.contains("arrives by a migration")
    });
    let refused = to.docker.run(&["start", "counter"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("arrives by a migration"),
        "{said}"
    );
    assert_eq!(to.logs(), "", "it has never executed");
    to.docker.succeeds(&["rm", "--force", "counter"]);
    from.over();
}

#[test]
fn a_runtime_is_registered_with_a_docker_that_runs_and_taken_out_again() {
    let name = "a_runtime_is_registered_with_a_docker_that_runs_and_taken_out_again";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    if departed::program().is_none() {
        return skip(name, "needs ums and ums-runtime");
    }
    let Some(docker) = Docker::start(name, &bundle) else {
        return;
    };
    // A container of nobody's migration is runc's.
    docker.import(lower.path(), IMAGE);
    let run = [
        "run",
        "--rm",
        "--runtime",
        "ums",
        IMAGE,
        "/bin/busybox",
        "echo",
        "hello",
    ];
    assert_eq!(docker.succeeds(&run), "hello");
    docker.host("install");
    docker.host("uninstall");
    wait_until("the runtime is taken out", || {
        !docker.runtimes().contains("ums")
    });
    assert!(!docker.run(&run).status.success());
    let [before, after] = [CONFIG, &docker.config()].map(serde_json::from_str::<Value>);
    assert_eq!(after.unwrap()["log-level"], before.unwrap()["log-level"]);
    docker.host("uninstall");
}

#[test]
fn a_docker_that_was_told_nothing_finds_the_runtime_by_its_name() {
    let name = "a_docker_that_was_told_nothing_finds_the_runtime_by_its_name";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    if departed::program().is_none() {
        return skip(name, "needs ums and ums-runtime");
    }
    let Some(docker) = Docker::start(name, &bundle) else {
        return;
    };
    let version = docker.succeeds(&["version", "--format", "{{.Server.Version}}"]);
    let release = version
        .split('.')
        .next()
        .and_then(|word| word.parse::<u32>().ok());
    if release.is_none_or(|release| release < 23) {
        return skip(name, "needs Docker 23 or later");
    }
    docker.import(lower.path(), IMAGE);
    let shim = "io.containerd.ums.v2";
    let run = [
        "run",
        "--rm",
        "--runtime",
        shim,
        IMAGE,
        "/bin/busybox",
        "echo",
        "hello",
    ];
    assert_eq!(docker.succeeds(&run), "hello");
    let id = docker.succeeds(&["create", "--runtime", shim, IMAGE, "/bin/busybox", "true"]);
    // There is no keeper: that the runtime looks for one shows that it is ours.
    let offer = Offer {
        keeper: "/nonexistent".into(),
    };
    let offers = Offers::new(docker.offers());
    offers.offer(&id, &offer).unwrap();
    assert!(!docker.run(&["start", &id]).status.success());
    let why = std::fs::read_to_string(offers.place(&id).unwrap().join("why")).unwrap();
    assert!(why.contains("no keeper answers"), "{why}");
}

#[test]
fn a_container_that_would_not_be_as_docker_says_is_refused() {
    let name = "a_container_that_would_not_be_as_docker_says_is_refused";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    if departed::program().is_none() {
        return skip(name, "needs ums and ums-runtime");
    }
    let Some(docker) = Docker::start(name, &bundle) else {
        return;
    };
    docker.import(lower.path(), IMAGE);
    let offers = Offers::new(docker.offers());
    let offer = Offer {
        keeper: "/nonexistent".into(),
    };
    for (option, why) in [
        ("--network=host", "the network namespace of its host"),
        ("--pid=host", "the pid namespace of its host"),
        ("--ipc=host", "the ipc namespace of its host"),
        ("--tty", "a terminal"),
    ] {
        let args = [
            "create",
            "--runtime",
            "ums",
            option,
            IMAGE,
            "/bin/busybox",
            "true",
        ];
        let id = docker.succeeds(&args);
        offers.offer(&id, &offer).unwrap();
        let refused = docker.run(&["start", &id]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains(why),
            "{option}: {said}"
        );
    }
}
