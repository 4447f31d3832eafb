//! The real process, on loopback.

mod fixture;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use fixture::{Echo, Fixture, ask, connect, eventually, is_reset};
use ums_frontman::client::{ClientError, FrontmanClient, spawn};
use ums_frontman::control::{Limits, Mode, Status, Upstreams};
use ums_frontman::record;

#[tokio::test]
async fn a_held_client_is_answered_after_the_decision() {
    let fixture = Fixture::start(Limits::default()).await;
    let mut client = connect(fixture.listen());
    client.write_all(b"early\n").unwrap();
    // It reads on when the first data is in: both belong to one stream, in order.
    eventually(|| async { fixture.counts().await.holding == 1 }).await;
    client.write_all(b"late\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();

    let echo = Echo::start("new place");
    fixture.lead(echo.address()).await;
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "new place: early\nnew place: late\n");
    eventually(|| async { fixture.counts().await.finished == 1 }).await;
    let counts = fixture.counts().await;
    assert_eq!((counts.accepted, counts.holding, counts.leading), (1, 0, 0));
}

#[tokio::test]
async fn nothing_is_read_ahead_when_told_so() {
    let fixture = Fixture::start(Limits {
        hold_bytes: 0,
        ..Limits::default()
    })
    .await;
    let mut client = connect(fixture.listen());
    client.write_all(b"early\n").unwrap();
    eventually(|| async { fixture.counts().await.holding == 1 }).await;
    let echo = Echo::start("b");
    fixture.lead(echo.address()).await;
    assert_eq!(ask(&mut client, ""), "b: early");
}

#[tokio::test]
async fn much_data_passes_whole_in_both_directions() {
    let fixture = Fixture::start(Limits {
        hold_bytes: 20_000,
        ..Limits::default()
    })
    .await;
    let client = connect(fixture.listen());
    let mut writing = client.try_clone().unwrap();
    let lines: String = (0..300_000).map(|n| format!("line {n}\n")).collect();
    let expected = lines.replace("line", ": line");
    let writer = std::thread::spawn(move || {
        writing.write_all(lines.as_bytes()).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    eventually(|| async { fixture.counts().await.holding == 1 }).await;
    let echo = Echo::start("");
    fixture.lead(echo.address()).await;
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        (&client).read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(
        answer.await.unwrap() == expected,
        "the answer differs from the question"
    );
    writer.join().unwrap();
}

#[tokio::test]
async fn an_upstream_that_is_not_there_yet_is_waited_for() {
    let fixture = Fixture::start(Limits::default()).await;
    let mut client = connect(fixture.listen());
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    fixture.lead(address).await;
    std::thread::sleep(Duration::from_millis(100));
    let _echo = Echo::start_at(address, "at last");
    assert_eq!(ask(&mut client, "x\n"), "at last: x");
}

#[tokio::test]
async fn beyond_its_bound_it_refuses_by_reset() {
    let fixture = Fixture::start(Limits {
        hold_connections: 2,
        ..Limits::default()
    })
    .await;
    let mut first = connect(fixture.listen());
    let second = connect(fixture.listen());
    eventually(|| async { fixture.counts().await.holding == 2 }).await;
    assert!(is_reset(connect(fixture.listen())));
    assert_eq!(fixture.counts().await.refused_bound, 1);
    // A client that gives up makes room for another.
    fixture::abort(second);
    eventually(|| async { fixture.counts().await.gone == 1 }).await;
    let mut fourth = connect(fixture.listen());
    let echo = Echo::start("b");
    fixture.lead(echo.address()).await;
    assert_eq!(ask(&mut first, "1\n"), "b: 1");
    assert_eq!(ask(&mut fourth, "4\n"), "b: 4");
}

#[tokio::test]
async fn nobody_waits_longer_than_its_bound() {
    let fixture = Fixture::start(Limits {
        hold_seconds: 1,
        ..Limits::default()
    })
    .await;
    let start = Instant::now();
    assert!(is_reset(connect(fixture.listen())));
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(fixture.counts().await.refused_time, 1);
}

#[tokio::test]
async fn a_second_move_takes_new_clients_and_leaves_old_ones() {
    let fixture = Fixture::start(Limits::default()).await;
    let (b, c) = (Echo::start("b"), Echo::start("c"));
    fixture.lead(b.address()).await;
    let mut old = connect(fixture.listen());
    assert_eq!(ask(&mut old, "1\n"), "b: 1");

    assert_eq!(fixture.client.hold().await.unwrap().phase, Mode::Holding);
    let mut new = connect(fixture.listen());
    assert_eq!(ask(&mut old, "2\n"), "b: 2");
    let ends_at = fixture.lead(c.address()).await.ends_at;
    assert_eq!(ask(&mut new, "1\n"), "c: 1");
    assert_eq!(ask(&mut old, "3\n"), "b: 3");
    // A repetition changes nothing; its end may be rounded to the next second.
    let again = fixture.lead(c.address()).await;
    assert!(again.ends_at.abs_diff(ends_at) <= 1 && again.phase == Mode::Leading);
}

#[tokio::test]
async fn a_reset_of_the_service_reaches_the_client_as_one() {
    let fixture = Fixture::start(Limits::default()).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    fixture.lead(listener.local_addr().unwrap()).await;
    let mut client = connect(fixture.listen());
    let (mut service, _) = listener.accept().unwrap();
    // Before a byte has passed, a reset would only make the Frontman try again.
    client.write_all(b"x\n").unwrap();
    assert_eq!(fixture::line(&mut service), "x");
    fixture::abort(service);
    assert!(is_reset(client));
    eventually(|| async { fixture.counts().await.broken == 1 }).await;
}

#[tokio::test]
async fn retiring_drains_then_cuts_then_leaves_nothing() {
    let mut fixture = Fixture::start(Limits::default()).await;
    let echo = Echo::start("b");
    fixture.lead(echo.address()).await;
    let mut busy = connect(fixture.listen());
    assert_eq!(ask(&mut busy, "1\n"), "b: 1");
    let retiring = fixture
        .client
        .retire(Duration::from_secs(1))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(retiring.phase, Mode::Retiring);
    assert_eq!(ask(&mut busy, "2\n"), "b: 2");
    eventually(|| async { fixture::refuses(fixture.listen()) }).await;

    // Its name is free at once, and what drains is still listed.
    let successor = Fixture::start_in(&fixture, Limits::default()).await;
    assert_eq!(
        record::list::<Status>(fixture.directory.path())
            .unwrap()
            .len(),
        2
    );
    assert!(is_reset(busy));
    fixture.wait_gone().await;
    let records = record::list::<Status>(fixture.directory.path()).unwrap();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].status.pid, successor.pid);
    drop(successor);
}

#[tokio::test]
async fn retiring_serves_those_it_held_or_refuses_them() {
    let mut fixture = Fixture::start(Limits::default()).await;
    let held = connect(fixture.listen());
    eventually(|| async { fixture.counts().await.holding == 1 }).await;
    fixture
        .client
        .retire(Duration::from_secs(20))
        .await
        .unwrap();
    assert!(is_reset(held));
    fixture.wait_gone().await;
    assert_eq!(
        std::fs::read_dir(fixture.directory.path()).unwrap().count(),
        0
    );
    // Repeated, it is done.
    assert!(
        fixture
            .client
            .retire(Duration::from_secs(20))
            .await
            .unwrap()
            .is_none()
    );

    let mut fixture = Fixture::start(Limits::default()).await;
    let mut held = connect(fixture.listen());
    let echo = Echo::start("home");
    fixture.lead(echo.address()).await;
    fixture
        .client
        .retire(Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(ask(&mut held, "x\n"), "home: x");
    drop(held);
    fixture.wait_gone().await;
}

#[tokio::test]
async fn its_time_ends_by_itself() {
    let limits = Limits {
        retire_after_seconds: 1,
        drain_seconds: 0,
        ..Limits::default()
    };
    let mut fixture = Fixture::start(limits).await;
    let held = connect(fixture.listen());
    assert!(is_reset(held));
    fixture.wait_gone().await;
    assert_eq!(
        std::fs::read_dir(fixture.directory.path()).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn a_signal_retires_it() {
    let mut fixture = Fixture::start(Limits {
        drain_seconds: 600,
        ..Limits::default()
    })
    .await;
    let echo = Echo::start("b");
    fixture.lead(echo.address()).await;
    let mut busy = connect(fixture.listen());
    assert_eq!(ask(&mut busy, "1\n"), "b: 1");
    fixture.signal(nix::sys::signal::Signal::SIGHUP);
    fixture.signal(nix::sys::signal::Signal::SIGTERM);
    eventually(|| async { fixture::refuses(fixture.listen()) }).await;
    assert_eq!(ask(&mut busy, "2\n"), "b: 2");
    // A second one doesn't wait for the clients.
    fixture.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(is_reset(busy));
    fixture.wait_gone().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_reason() {
    let fixture = Fixture::start(Limits::default()).await;
    let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let missing = fixture
        .client
        .lead(Upstreams::new())
        .await
        .unwrap_err()
        .to_string();
    assert!(missing.contains("port 8080"), "{missing}");
    let both = Upstreams::from([(8080, address), (9, address)]);
    let unknown = fixture.client.lead(both).await.unwrap_err().to_string();
    assert!(unknown.contains("port 9"), "{unknown}");

    let mut raw = std::os::unix::net::UnixStream::connect(fixture.client.path()).unwrap();
    raw.write_all(b"{}\n").unwrap();
    assert!(fixture::line(&mut raw).contains("not a request"));
    // More than a line may hold; it stops reading, so the write may fail.
    let _ = raw.write_all(&vec![b'x'; 1 << 20]);
    let mut rest = Vec::new();
    let _ = raw.read_to_end(&mut rest);
    assert_eq!(fixture.client.status().await.unwrap().phase, Mode::Holding);

    let launch = ums_frontman::client::Launch {
        ports: [(9, "127.0.0.1:0".parse().unwrap())].into(),
        ..fixture.launch.clone()
    };
    let other = spawn(&fixture::binary(), &launch).await.unwrap_err();
    assert!(matches!(other, ClientError::OtherPorts(_)), "{other}");
    let launch = ums_frontman::client::Launch {
        owner: "m-2".to_owned(),
        ..fixture.launch.clone()
    };
    let other = spawn(&fixture::binary(), &launch).await.unwrap_err();
    assert!(matches!(other, ClientError::Other(_)), "{other}");
}

#[tokio::test]
async fn a_start_that_fails_says_why() {
    let fixture = Fixture::start(Limits::default()).await;
    let mut launch = fixture.launch.clone();
    launch.socket = fixture.directory.path().join("other.sock");
    launch.state = fixture.directory.path().join("other.json");
    launch.ports = [(1, fixture.listen())].into();
    let taken = spawn(&fixture::binary(), &launch)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        taken.contains("cannot listen") && taken.contains("in use"),
        "{taken}"
    );
    launch.ports = [(1, "127.0.0.1:0".parse().unwrap())].into();
    launch.limits.hold_seconds = 0;
    let limit = spawn(&fixture::binary(), &launch)
        .await
        .unwrap_err()
        .to_string();
    assert!(limit.contains("hold-seconds"), "{limit}");
    assert!(!launch.socket.exists() && !launch.state.exists());
}

/// Spawning again finds the one that is there, and after a kill starts another in its place.
#[tokio::test]
async fn a_killed_one_is_found_and_replaced() {
    let mut fixture = Fixture::start(Limits::default()).await;
    let (_, same) = spawn(&fixture::binary(), &fixture.launch).await.unwrap();
    assert_eq!(same.pid, fixture.pid);

    fixture.signal(nix::sys::signal::Signal::SIGKILL);
    fixture.wait_gone().await;
    let absent = FrontmanClient::connect(fixture.client.path())
        .await
        .unwrap_err();
    assert!(matches!(absent, ClientError::NotThere(_)), "{absent}");
    let records = record::list::<Status>(fixture.directory.path()).unwrap();
    assert_eq!(
        (records[0].status.pid, records[0].status.owner.as_str()),
        (fixture.pid, "m-1")
    );

    let second = Fixture::start_in(&fixture, Limits::default()).await;
    assert!(
        record::remove_stale::<Status>(fixture.directory.path())
            .unwrap()
            .is_empty()
    );
    second.signal(nix::sys::signal::Signal::SIGKILL);
    eventually(|| async { second.client.status().await.is_err() }).await;
    assert_eq!(
        record::remove_stale::<Status>(fixture.directory.path())
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        std::fs::read_dir(fixture.directory.path()).unwrap().count(),
        0
    );
}

/// The runtime that started it, with all its tasks and handles, is gone: it serves on.
#[test]
fn it_outlives_its_starter() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let mut fixture = runtime().block_on(Fixture::start(Limits::default()));
    let own = nix::unistd::getpgrp();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(fixture.pid).unwrap());
    assert_ne!(nix::unistd::getpgid(Some(pid)).unwrap(), own);
    runtime().block_on(async {
        let client = FrontmanClient::connect(fixture.client.path())
            .await
            .unwrap();
        assert_eq!(client.status().await.unwrap().pid, fixture.pid);
        client.retire(Duration::ZERO).await.unwrap();
        fixture.wait_gone().await;
    });
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_nobody_else() {
    let fixture = Fixture::start(Limits::default()).await;
    let echo = Echo::start("b");
    fixture.lead(echo.address()).await;
    let mut slow = connect(fixture.listen());
    slow.set_nonblocking(true).unwrap();
    let block = vec![b'\n'; 1 << 20];
    let mut written = 0;
    while written < 64 << 20 {
        match slow.write(&block) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    let mut quick = connect(fixture.listen());
    assert_eq!(ask(&mut quick, "x\n"), "b: x");
}
