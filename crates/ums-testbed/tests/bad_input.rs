//! What is malformed, cut off, changed on the way, or too large is refused with its cause and what to
//! do about it; the service runs where it was, and nothing is left of the attempt.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use common::proxy::{Mischief, Proxy};
use common::{
    LARGE_MIB, Moving, PATIENCE, SLOW_MBIT, agent, exit, hog_is_only_at, hog_stayed, remains,
    remove, services, strike, systems_with_hog,
};
use ums_core::report::Outcome;
use ums_testbed::system::{DATA_PORT, PEER_PORT, System};
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{run, wait_for};
use ums_testbed::workload::HOG_PORT;
use ums_tls::{ALPN_DATA, Identity};

/// Memory of which some has certainly arrived, and more has not.
const PART_BYTES: u64 = 8 << 20;

/// The link's rate where it does not matter, Mbit/s.
const RATE_MBIT: u32 = 1000;

/// The service moves as if nothing had happened before.
fn moves_now(testbed: Testbed) {
    let report = testbed.migrate(&testbed.a, &testbed.b, "hog", &[]);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    hog_is_only_at(&testbed, &testbed.b);
    remove(testbed);
}

#[test]
fn a_service_that_is_asked_for_badly_is_not_started() {
    let test = "a_service_that_is_asked_for_badly_is_not_started";
    let Some(testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    let root = testbed.directory().join("rootfs-hog").display().to_string();
    let port = format!("{HOG_PORT}:{HOG_PORT}");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["--rootfs", "/nowhere"],
            exit::REFUSED,
            &["/nowhere", "cannot find"],
        ),
        (
            &["--rootfs", "/etc/hostname"],
            exit::REFUSED,
            &["not a directory"],
        ),
        (
            &["--rootfs", &root, "--cwd", "here"],
            exit::USAGE,
            &["--cwd", "absolute"],
        ),
        (
            &["--rootfs", &root, "--volume", "v:/proc/v"],
            exit::REFUSED,
            &["/proc/v", "runtime"],
        ),
        (
            &["--rootfs", &root, "--memory", "1K"],
            exit::REFUSED,
            &["1 MiB"],
        ),
        (
            &["--rootfs", &root, "--publish", "0:1"],
            exit::USAGE,
            &["--publish"],
        ),
        (
            &["--rootfs", &root, "--publish", &port],
            exit::REFUSED,
            &["7000", "publish another"],
        ),
        (
            &["--rootfs", &root, "--address", "192.0.2.1"],
            exit::REFUSED,
            &["192.0.2.1", "10.88.0.0"],
        ),
        (
            &["--rootfs", &root, "--address", "10.88.0.1"],
            exit::REFUSED,
            &["10.88.0.1", "10.88.0.0"],
        ),
    ];
    for (arguments, code, words) in cases {
        let run = [&["run", "bad"], *arguments, &["--", "/bin/ums-hog"]].concat();
        refuses(&testbed.a, &run, *code, words);
    }
    // The program is looked for by the runtime, in the container.
    let run = ["run", "bad", "--rootfs", &root, "--", "/bin/nothing"];
    refuses(&testbed.a, &run, exit::FAILED, &["/bin/nothing"]);
    for name in ["hog", "Bad Name"] {
        let run = ["run", name, "--rootfs", &root, "--", "/bin/ums-hog"];
        let code = if name == "hog" {
            exit::REFUSED
        } else {
            exit::USAGE
        };
        refuses(&testbed.a, &run, code, &[name]);
    }
    assert_eq!(services(&testbed.a).expect("the agent answers").len(), 1);
    hog_stayed(&testbed);
    remove(testbed);
}

fn refuses(system: &System, arguments: &[&str], code: i32, words: &[&str]) {
    let output = system.ums(arguments).expect("`ums` runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    let state = system.state_dir().join("services/bad");
    assert!(!state.exists(), "{arguments:?} left {}", state.display());
}

#[test]
fn a_specification_that_is_not_acceptable_is_refused_by_the_destination() {
    let test = "a_specification_that_is_not_acceptable_is_refused_by_the_destination";
    let Some(testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    // What no `ums run` would have let pass: the source's own record is another one.
    let record = testbed.a.state_dir().join("services/hog/service.json");
    let good = std::fs::read_to_string(&record).expect("a record");
    let name = "\"hostname\": \"hog\"";
    assert!(good.contains(name), "{good}");
    let replace_record = |text: &str| {
        std::fs::write(&record, text).expect("another record");
        strike(agent(&testbed.a));
        wait_for("the agent's return", PATIENCE, || services(&testbed.a)).expect("it returns");
    };
    replace_record(&good.replace(name, "\"hostname\": \"no name\""));
    let ended = Moving::start(&testbed.a, &testbed.b, "hog").end();
    assert_eq!(ended.report.outcome, Outcome::Abandoned, "{ended:?}");
    assert_eq!(ended.report.freeze_ms, None, "{ended:?}");
    for word in ["Specification", "host name `no name`", "64 printable"] {
        assert!(
            ended.error().contains(word),
            "`{word}` is not in: {ended:?}"
        );
    }
    hog_stayed(&testbed);
    replace_record(&good);
    moves_now(testbed);
}

/// Says something to a port as a client would, and reads to the end.
fn say(testbed: &Testbed, port: u16, bytes: &[u8]) {
    let address = SocketAddr::from((testbed.b.ip(), port));
    let said = testbed.a.namespace().in_network(|| {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // It may be closed before all was said.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Ok(answer)
    });
    let answer = said.expect("somebody listens");
    assert!(answer.len() < 4096, "{} bytes for garbage", answer.len());
}

#[test]
fn garbage_at_either_port_is_dropped_and_disturbs_nobody() {
    let test = "garbage_at_either_port_is_dropped_and_disturbs_nobody";
    let Some(testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    let (agent_before, garbage) = (agent(&testbed.b), vec![0xa5; 100_000]);
    for port in [PEER_PORT, DATA_PORT] {
        say(&testbed, port, b"GET / HTTP/1.1\r\nhost: b\r\n\r\n");
        say(&testbed, port, &garbage);
        // The beginning of a TLS record that promises more than comes.
        say(&testbed, port, &[0x16, 3, 1, 0xff, 0xff, 1]);
    }
    for words in [&b"\0\0\0\0"[..], &garbage] {
        member_says(&testbed, words);
    }
    assert_eq!(agent(&testbed.b), agent_before, "it is the same process");
    hog_stayed(&testbed);
    moves_now(testbed);
}

/// Says something on the data path with a certificate that is trusted: frames that are none.
fn member_says(testbed: &Testbed, words: &[u8]) {
    let pki = testbed.a.state_dir().join("pki");
    let at = |name: &str| pki.join(name);
    let identity = Identity::load(&at("ca.pem"), &at("cert.pem"), &at("key.pem"));
    let config = ums_tls::client_config(&identity.expect("a's identity"), &[ALPN_DATA]);
    let (config, name) = (config.expect("usable"), "b".parse().expect("a name"));
    let address = SocketAddr::from((testbed.b.ip(), DATA_PORT));
    let answer = testbed.a.namespace().in_network(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = ums_tls::connect(address, &name, config, PATIENCE).await?;
            let _ = stream.write_all(words).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            Ok(answer.len())
        })
    });
    assert!(answer.expect("a member is let in") < 4096);
}

/// A migration whose data path is tampered with, at once or when memory is on its way.
fn tampered(test: &str, mischief: Mischief, in_the_freeze: bool) {
    let Some(testbed) = systems_with_hog(test, SLOW_MBIT, LARGE_MIB) else {
        return;
    };
    let proxy = Proxy::start(&testbed);
    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    if in_the_freeze {
        moving.wait_for_memory(&testbed.a, PART_BYTES);
    } else {
        moving.wait_for_step(&testbed.a, 7);
    }
    proxy.commit(mischief);
    moving
        .end()
        .must_be_abandoned(&["data path", "migrate again"]);
    hog_stayed(&testbed);
    proxy.end(&testbed);
    moves_now(testbed);
}

#[test]
fn a_stream_that_is_cut_while_files_are_copied() {
    let test = "a_stream_that_is_cut_while_files_are_copied";
    tampered(test, Mischief::Cut, false);
}

#[test]
fn a_stream_that_is_cut_in_the_freeze() {
    tampered("a_stream_that_is_cut_in_the_freeze", Mischief::Cut, true);
}

#[test]
fn a_stream_that_is_changed_while_files_are_copied() {
    let test = "a_stream_that_is_changed_while_files_are_copied";
    tampered(test, Mischief::Flip, false);
}

#[test]
fn a_stream_that_is_changed_in_the_freeze() {
    tampered(
        "a_stream_that_is_changed_in_the_freeze",
        Mischief::Flip,
        true,
    );
}

#[test]
fn the_disk_of_the_source_is_full() {
    let Some(mut testbed) = systems_with_hog("the_disk_of_the_source_is_full", RATE_MBIT, 8) else {
        return;
    };
    // The journal goes to a small disk of its own.
    testbed.a.kill_coordinator().expect("it was running");
    let small = testbed.a.state_dir().join("small");
    std::fs::create_dir(&small).expect("made");
    let mount = ["-t", "tmpfs", "-o", "size=16m", "tmpfs"];
    run(testbed.a.exec("mount").args(mount).arg(&small)).expect("a small disk");
    let move_there = format!(
        "cd {} && mv journal.redb small/ && ln -s small/journal.redb journal.redb",
        testbed.a.state_dir().display()
    );
    run(testbed.a.exec("sh").args(["-c", &move_there])).expect("moved");
    testbed.a.start_coordinator().expect("it answers again");
    let filler = small.join("filler");
    let fill = format!("head -c 16M /dev/zero > {} || true", filler.display());
    run(testbed.a.exec("sh").args(["-c", &fill])).expect("the disk fills");

    let output = testbed
        .a
        .ums(&["migrate", "hog", "--to", "b", "--json"])
        .expect("`ums migrate` runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_ne!(output.status.code(), Some(exit::DONE), "{said}");
    for word in ["journal", "make room on its disk"] {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    run(testbed.a.exec("rm").arg(&filler)).expect("there is room again");
    hog_stayed(&testbed);
    moves_now(testbed);
}

/// The control group of version 1 or 2 that limits what services of a system may have together.
fn limit_services(system: &System, bytes: &str) {
    let hierarchy = |file: &str| system.outside(&Path::new("/sys/fs/cgroup").join(file));
    let files = [
        "memory/memory.limit_in_bytes",
        "memory.max",
        "unified/memory.max",
    ];
    let file = files.map(hierarchy).into_iter().find(|path| path.exists());
    let file = file.expect("a memory controller");
    std::fs::write(&file, bytes)
        .unwrap_or_else(|error| panic!("{} <- {bytes}: {error}", file.display()));
}

#[test]
fn the_memory_of_the_destination_is_full_while_pages_arrive() {
    let test = "the_memory_of_the_destination_is_full_while_pages_arrive";
    let Some(testbed) = systems_with_hog(test, SLOW_MBIT, LARGE_MIB) else {
        return;
    };
    let moving = Moving::start(&testbed.a, &testbed.b, "hog");
    moving.wait_for_memory(&testbed.a, PART_BYTES);
    limit_services(&testbed.b, "16777216");
    moving
        .end()
        .must_be_abandoned(&["no memory for more pages", "free memory there"]);
    hog_stayed(&testbed);
    // Now the preflight sees it.
    let plan = testbed.a.ums(&["plan", "hog", "--to", "b"]).expect("runs");
    let said = String::from_utf8_lossy(&plan.stdout);
    assert_eq!(plan.status.code(), Some(exit::REFUSED), "{said}");
    assert!(said.contains("MiB of memory available, and 19"), "{said}");
    limit_services(&testbed.b, "-1");
    moves_now(testbed);
}

#[test]
fn a_service_near_its_own_memory_limit_moves() {
    let test = "a_service_near_its_own_memory_limit_moves";
    let Some(testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    testbed.a.ums_ok(&["rm", "hog"]).expect("it is removed");
    let root = testbed.directory().join("rootfs-hog").display().to_string();
    let publish = format!("{HOG_PORT}:{HOG_PORT}");
    let run = [
        "run",
        "hog",
        "--rootfs",
        &root,
        "--publish",
        &publish,
        "--memory",
        "80M",
        "--",
        "/bin/ums-hog",
        "--mib",
        "64",
    ];
    testbed.a.ums_ok(&run).expect("it runs");
    hog_is_only_at(&testbed, &testbed.a);
    moves_now(testbed);
}

#[test]
fn an_image_that_nobody_has_used_for_long_is_removed() {
    let test = "an_image_that_nobody_has_used_for_long_is_removed";
    let Some(testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    let report = testbed.migrate(&testbed.a, &testbed.b, "hog", &[]);
    assert_eq!(report.expect("a report").outcome, Outcome::Completed);
    assert_eq!(remains(&testbed.a, "hog"), Vec::<String>::new());
    let images = |system: &System| -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(system.state_dir().join("images")).expect("a store");
        let all = entries.map(|entry| entry.expect("an entry").path());
        all.filter(|path| path.join("rootfs").is_dir()).collect()
    };
    // It is kept at the source, for the service may come back; until it is old.
    for system in [&testbed.a, &testbed.b] {
        let kept = images(system);
        assert_eq!(kept.len(), 1, "{kept:?}");
        run(system
            .exec("touch")
            .args(["-d", "8 days ago"])
            .arg(&kept[0]))
        .expect("it is old");
        strike(agent(system));
        wait_for("the agent's return", PATIENCE, || services(system)).expect("it returns");
    }
    wait_for("the image's end", PATIENCE, || {
        images(&testbed.a).is_empty().then_some(())
    })
    .expect("it is removed");
    hog_is_only_at(&testbed, &testbed.b);
    assert_eq!(images(&testbed.b).len(), 1, "one that is used stays");
    remove(testbed);
}

#[test]
fn what_outlives_a_migration_is_listed_with_its_owner_and_its_end() {
    let test = "what_outlives_a_migration_is_listed_with_its_owner_and_its_end";
    let Some(testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    let report = testbed.migrate(&testbed.a, &testbed.b, "hog", &[]);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Completed);
    let status = |arguments: &[&str]| testbed.a.ums_ok(&[&["status"], arguments].concat());
    let leads = format!("packets → {}", testbed.b.name());
    for arguments in [&[][..], &["hog"]] {
        let said = status(arguments).expect("the Coordinator answers");
        let id = report.migration_id.to_string();
        for word in ["frontman", "leading", &leads, &id] {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
    }
    testbed
        .a
        .ums_ok(&["rm", "hog"])
        .expect("the Frontman retires");
    let ended = wait_for("the Frontman's end", PATIENCE, || {
        let said = status(&["--json"]).ok()?;
        let object: serde_json::Value = serde_json::from_str(&said).ok()?;
        object["attendants"].as_array()?.is_empty().then_some(())
    });
    ended.expect("it is listed no more");
    remove(testbed);
}
