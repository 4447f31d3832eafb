//! The testbed itself: what it makes is apart from the machine, and all of it goes.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use ums_testbed::bench::wire_floor;
use ums_testbed::testbed::{Settings, Testbed};
use ums_testbed::tools::{Tools, is_root, skipped, text};

/// The tools, or `None` after saying that the test is left out.
fn tools(test: &str) -> Option<Tools> {
    if !is_root() {
        skipped(test, "not root: namespaces need it");
        return None;
    }
    Some(Tools::find().expect("this program's own path is known"))
}

#[test]
fn a_testbed_leaves_nothing_behind() {
    let Some(tools) = tools("a_testbed_leaves_nothing_behind") else {
        return;
    };
    let testbed = Testbed::create(&tools, &Settings::default()).expect("a testbed");
    let mut busy = testbed
        .a
        .exec("sleep")
        .arg("1000")
        .spawn()
        .expect("a process inside");
    std::fs::write(testbed.b.state_dir().join("file"), "content").expect("a file");
    let left = testbed.remove().expect("removed");
    assert_eq!(left, Vec::<String>::new());
    assert!(
        !busy.wait().expect("it ended").success(),
        "its process was ended"
    );
}

#[test]
fn what_is_left_behind_is_named() {
    let Some(tools) = tools("what_is_left_behind_is_named") else {
        return;
    };
    let testbed = Testbed::create(&tools, &Settings::default()).expect("a testbed");
    let name = format!("{}-left", testbed.id());
    text(Command::new("ip").args(["netns", "add", &name])).expect("a namespace outside");
    let left = testbed.remove();
    text(Command::new("ip").args(["netns", "del", &name])).expect("it is removed");
    let left = left.expect("removed");
    assert!(left.contains(&format!("netns {name}")), "{left:?}");
    assert!(
        left.iter().any(|line| line.starts_with("mount ")),
        "{left:?}"
    );
}

#[test]
fn a_testbed_goes_when_a_test_panics() {
    let Some(tools) = tools("a_testbed_goes_when_a_test_panics") else {
        return;
    };
    let directory = std::sync::Mutex::new(None);
    let panicked = std::panic::catch_unwind(|| {
        let testbed = Testbed::create(&tools, &Settings::default()).expect("a testbed");
        *directory.lock().expect("not poisoned") =
            Some((testbed.directory(), testbed.a.namespace().init()));
        panic!("as a failing test does");
    });
    assert!(panicked.is_err());
    let (directory, init) = directory
        .into_inner()
        .expect("not poisoned")
        .expect("it was made");
    assert!(!directory.exists(), "its directory is gone");
    assert!(
        !std::path::Path::new(&format!("/proc/{init}")).exists(),
        "its init is gone"
    );
}

#[test]
fn systems_have_processes_mounts_and_networks_of_their_own() {
    let Some(tools) = tools("systems_have_processes_mounts_and_networks_of_their_own") else {
        return;
    };
    let testbed = Testbed::create(&tools, &Settings::default()).expect("a testbed");
    let inside = |program: &str, args: &[&str]| {
        text(testbed.a.exec(program).args(args)).expect("it runs inside")
    };
    assert_eq!(
        inside("sh", &["-c", "ls -d /proc/[0-9]* | wc -l"])
            .parse::<u32>()
            .ok()
            .filter(|n| *n > 6),
        None
    );
    let file = testbed.a.run_dir().join("inside");
    inside("touch", &[&file.display().to_string()]);
    assert!(!file.exists(), "the run directory is seen inside only");
    assert!(inside("ip", &["-brief", "addr"]).contains("10.77.0.1/30"));
    let outside = text(Command::new("ip").args(["-brief", "addr"])).expect("ip");
    assert!(!outside.contains("10.77.0.1/30"));
}

#[test]
fn the_world_reaches_both_systems() {
    let Some(tools) = tools("the_world_reaches_both_systems") else {
        return;
    };
    let testbed = Testbed::create(&tools, &Settings::default()).expect("a testbed");
    for system in [&testbed.a, &testbed.b] {
        let address = SocketAddr::from((system.ip(), 9000));
        let listener = system
            .namespace()
            .in_network(|| Ok(TcpListener::bind(address)?));
        let _listener = listener.expect("a listener inside");
        let connected = testbed
            .world
            .in_network(|| Ok(std::net::TcpStream::connect(address)?));
        connected.expect("a client gets through");
    }
}

#[test]
fn the_link_between_systems_has_the_rate_it_was_given() {
    let Some(tools) = tools("the_link_between_systems_has_the_rate_it_was_given") else {
        return;
    };
    let testbed = Testbed::create(
        &tools,
        &Settings {
            rate_mbit: Some(200),
        },
    )
    .expect("a testbed");
    let bytes = 10 << 20;
    let took = wire_floor::time(&testbed, bytes).expect("bytes go over");
    let mbit = bytes as f64 * 8.0 / 1e6 / took.as_secs_f64();
    // Headers take some 4 percent of it; a busy machine may take more time, but never less.
    assert!((100.0..205.0).contains(&mbit), "{mbit} Mbit/s");
}

#[test]
fn a_second_agent_leaves_what_the_first_one_has_alone() {
    let Some(tools) = tools("a_second_agent_leaves_what_the_first_one_has_alone") else {
        return;
    };
    let mut testbed = Testbed::create(&tools, &Settings::default()).expect("a testbed");
    testbed.start_coordinators().expect("both answer");
    let system = &testbed.a;
    let (state, run) = (system.state_dir(), system.run_dir());
    // What a reception has made so far, which an agent clears away when it loads.
    let half = state.join("images/.unfinished-receive-1");
    std::fs::create_dir(&half).expect("half an image");
    let other = [
        system.directory().join("state2"),
        system.directory().join("run2"),
    ];
    let places = [
        (&state, &other[1], "state"),
        (&other[0], &run, "run"),
        (&other[0], &other[1], "network namespace belongs"),
    ];
    let first = system
        .namespace()
        .members()
        .into_iter()
        .find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("ums-agent\0serve")
        })
        .expect("an agent");
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).expect("it lives");
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inside = inside
        .and_then(|pids| pids.split_whitespace().last())
        .expect("a number");
    for (state, run, word) in places {
        let mut second = system.exec(tools.own("ums-agent").expect("an agent"));
        second
            .arg("serve")
            .arg("--state-dir")
            .arg(state)
            .arg("--run-dir")
            .arg(run);
        second.args(["--system", "a", "--data-address", "127.0.0.1"]);
        for (flag, file) in [
            ("--ca", "ca.pem"),
            ("--cert", "cert.pem"),
            ("--key", "key.pem"),
        ] {
            second
                .arg(flag)
                .arg(system.state_dir().join("pki").join(file));
        }
        second.arg("--bundle").arg(tools.bundle());
        let output = second.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(word) && said.contains(&format!("process {inside}")),
            "{said}"
        );
        assert!(half.exists(), "{said}");
    }
    assert!(system.ums(&["list"]).expect("it runs").status.success());
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}
