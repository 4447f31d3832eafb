//! Packet mode with real processes, devices and namespaces.

mod fixture;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;

use fixture::{
    Fixture, Namespace, PATIENCE, SERVICE, SERVICE6, block_on, children, eventually, send,
    skip_unless_root, status,
};
use nix::sys::signal::Signal;
use ums_frontman::client::ClientError;
use ums_frontman::packet::client::Client;
use ums_frontman::packet::{self, EndMode, Permit};
use ums_frontman::record;

const MEBIBYTE: usize = 1 << 20;

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Bytes in which every place tells where it is.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect()
}

/// Accepts one connection, and sends back what it gets.
fn echo_tcp(inside: &Namespace, at: SocketAddr) -> JoinHandle<()> {
    let listener = inside.within(move || TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut writing = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut writing).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    })
}

fn bind_udp(inside: &Namespace, at: SocketAddr) -> UdpSocket {
    let socket = inside.within(move || UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends much over TCP from the client and back.
fn transfer(client: &Namespace, to: SocketAddr, bytes: usize) {
    let sent = pattern(bytes);
    let mut stream = client.within(move || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let writer = {
        let sent = sent.clone();
        std::thread::spawn(move || {
            writing.write_all(&sent).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        })
    };
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(
        received == sent,
        "{} of {bytes} bytes came back",
        received.len()
    );
}

/// The same with the service at its new place, which sends back what it gets.
fn there_and_back(f: &Fixture, ip: &str, bytes: usize) {
    let echo = echo_tcp(&f.new, address(ip, 80));
    transfer(&f.client, address(ip, 80), bytes);
    echo.join().unwrap();
}

fn everything_passes(mtu: u16, far: &str) {
    let mut f = Fixture::new(mtu);
    let (near, far) = f.start(far);
    f.divert();
    block_on(near.lead()).unwrap();
    for ip in [SERVICE, SERVICE6] {
        there_and_back(&f, ip, 8 * MEBIBYTE);
    }
    // Datagrams that fill the inner MTU: 1500 less IP's and UDP's headers.
    for (ip, any, length) in [(SERVICE, "0.0.0.0", 1472), (SERVICE6, "::", 1452)] {
        let service = bind_udp(&f.new, address(ip, 53));
        let client = bind_udp(&f.client, address(any, 0));
        for number in 0..50u8 {
            let question = vec![number; length];
            client.send_to(&question, address(ip, 53)).unwrap();
            let mut buffer = [0; 2000];
            let (got, from) = service.recv_from(&mut buffer).unwrap();
            assert!(buffer[..got] == question, "the question arrives whole");
            service.send_to(&buffer[..got], from).unwrap();
            let (got, _) = client.recv_from(&mut buffer).unwrap();
            assert!(buffer[..got] == question, "the answer arrives whole");
        }
    }
    let (near, far) = (status(&near), status(&far));
    assert!(near.connected && near.round_trip_micros.is_some());
    assert_eq!(
        (near.phase, far.phase),
        (EndMode::Leading, EndMode::Leading)
    );
    assert!(near.counts.sent_bytes > 16 * MEBIBYTE as u64, "{near:?}");
    assert!(far.counts.received_bytes > 16 * MEBIBYTE as u64, "{far:?}");
    assert_eq!(
        (near.counts.dropped_over_bound, near.counts.reconnects),
        (0, 0)
    );
}

#[test]
fn full_packets_pass_both_ways() {
    skip_unless_root!("full_packets_pass_both_ways");
    everything_passes(1500, "192.0.2.2");
}

#[test]
fn full_packets_pass_a_path_with_a_smaller_mtu() {
    skip_unless_root!("full_packets_pass_a_path_with_a_smaller_mtu");
    everything_passes(1400, "2001:db8::2");
}

#[test]
fn what_is_held_arrives_in_order_after_the_decision() {
    skip_unless_root!("what_is_held_arrives_in_order_after_the_decision");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    let service = bind_udp(&f.new, address(SERVICE, 53));
    let client = bind_udp(&f.client, address("0.0.0.0", 0));
    for number in 0..200u32 {
        client
            .send_to(&number.to_be_bytes(), address(SERVICE, 53))
            .unwrap();
    }
    eventually("200 held", || status(&near).counts.held_packets >= 200);
    let held = status(&near);
    assert_eq!(
        (held.phase, held.counts.sent_packets),
        (EndMode::Holding, 0)
    );
    assert_eq!(status(&far).counts.received_packets, 0);
    block_on(near.lead()).unwrap();
    block_on(near.lead()).unwrap();
    let mut buffer = [0; 4];
    for number in 0..200u32 {
        service.recv(&mut buffer).unwrap();
        assert_eq!(u32::from_be_bytes(buffer), number);
    }
    assert!(status(&near).counts.held_packets_peak >= 200);
    let refused = block_on(near.give_back()).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
}

#[test]
fn what_is_given_back_reaches_the_service_that_stayed() {
    skip_unless_root!("what_is_given_back_reaches_the_service_that_stayed");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    let service = bind_udp(&f.old, address(SERVICE, 53));
    let client = bind_udp(&f.client, address("0.0.0.0", 0));
    for number in 0..100u32 {
        client
            .send_to(&number.to_be_bytes(), address(SERVICE, 53))
            .unwrap();
    }
    eventually("100 held", || status(&near).counts.held_packets >= 100);
    let last = block_on(near.give_back()).unwrap().unwrap();
    assert!(last.counts.given_back >= 100, "{last:?}");
    let mut buffer = [0; 4];
    for number in 0..100u32 {
        service.recv(&mut buffer).unwrap();
        assert_eq!(u32::from_be_bytes(buffer), number);
    }
    assert!(block_on(near.give_back()).unwrap().is_none());
    eventually("the device is gone", || {
        !f.old.run("ip -o link").contains("ums-out")
    });
    eventually("the far end ended too", || block_on(far.status()).is_err());
    // Nothing diverts packets any more: the route went with the device.
    client.send_to(&[9; 4], address(SERVICE, 53)).unwrap();
    service.recv(&mut buffer).unwrap();
    assert_eq!(buffer, [9; 4]);
    assert!(
        record::list::<packet::Status>(f.directory.path())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_broken_path_is_mended_without_loss_of_what_is_held() {
    skip_unless_root!("a_broken_path_is_mended_without_loss_of_what_is_held");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    block_on(near.lead()).unwrap();
    let service = bind_udp(&f.new, address(SERVICE, 53));
    let client = bind_udp(&f.client, address("0.0.0.0", 0));
    let mut buffer = [0; 4];
    client.send_to(&[1; 4], address(SERVICE, 53)).unwrap();
    service.recv(&mut buffer).unwrap();
    f.destination.run("ip link set wan down");
    eventually("the break is noticed", || !status(&near).connected);
    for number in 0..50u32 {
        client
            .send_to(&number.to_be_bytes(), address(SERVICE, 53))
            .unwrap();
    }
    eventually("50 held", || status(&near).counts.held_packets >= 50);
    f.destination.run("ip link set wan up");
    for number in 0..50u32 {
        service.recv(&mut buffer).unwrap();
        assert_eq!(u32::from_be_bytes(buffer), number);
    }
    let status = status(&near);
    assert!(
        status.connected && status.counts.reconnects >= 1,
        "{status:?}"
    );
    block_on(near.retire()).unwrap();
    eventually("the far end ends with it", || {
        block_on(far.status()).is_err()
    });
}

/// Sends numbered datagrams of this length.
fn send_numbered(client: &UdpSocket, count: u32, length: usize) {
    for number in 0..count {
        let mut datagram = number.to_be_bytes().to_vec();
        datagram.resize(length, 0);
        client.send_to(&datagram, address(SERVICE, 53)).unwrap();
    }
}

fn receive_numbered(service: &UdpSocket, count: u32) {
    let mut buffer = [0; 2000];
    for number in 0..count {
        let received = service.recv(&mut buffer);
        received.unwrap_or_else(|error| panic!("datagram {number}: {error}"));
        assert_eq!(buffer[..4], number.to_be_bytes());
    }
}

/// Both ends have ended, and nothing is left of them.
fn both_are_gone(f: &Fixture, near: &Client, far: &Client) {
    for end in [near, far] {
        eventually("the end of both ends", || block_on(end.status()).is_err());
    }
    for (inside, device) in [(&f.old, "ums-out"), (&f.new, "ums-in")] {
        eventually("no device", || !inside.run("ip -o link").contains(device));
    }
    let left = record::list::<packet::Status>(f.directory.path()).unwrap();
    assert_eq!(left, []);
}

#[test]
fn over_the_bound_the_newest_are_dropped_and_counted() {
    skip_unless_root!("over_the_bound_the_newest_are_dropped_and_counted");
    let mut f = Fixture::new(1500);
    f.limits.hold_packets = 50;
    let (near, _far) = f.start("192.0.2.2");
    f.divert();
    let service = bind_udp(&f.new, address(SERVICE, 53));
    let client = bind_udp(&f.client, address("0.0.0.0", 0));
    send_numbered(&client, 80, 4);
    eventually("30 dropped", || {
        status(&near).counts.dropped_over_bound >= 30
    });
    assert_eq!(status(&near).counts.held_packets, 50);
    block_on(near.lead()).unwrap();
    // The kernel's own neighbour discovery may have had a place too.
    receive_numbered(&service, 45);
    eventually("all are led", || status(&near).counts.held_packets == 0);
    send_numbered(&client, 1, 4);
    let mut numbers = Vec::new();
    while numbers.last() != Some(&0) {
        let mut buffer = [0; 4];
        service.recv(&mut buffer).unwrap();
        numbers.push(u32::from_be_bytes(buffer));
    }
    let (last, held) = numbers.split_last().unwrap();
    let first: Vec<u32> = (45..45 + held.len() as u32).collect();
    assert_eq!((*last, held), (0, first.as_slice()), "the oldest, in order");
    assert!(held.len() <= 5, "{held:?}");
}

#[test]
fn an_end_whose_time_is_over_ends_and_the_other_with_it() {
    skip_unless_root!("an_end_whose_time_is_over_ends_and_the_other_with_it");
    let mut f = Fixture::new(1500);
    f.limits.retire_after_seconds = 1;
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    both_are_gone(&f, &near, &far);
    assert!(f.log().contains("its time is over"), "{}", f.log());
}

#[test]
fn ends_live_while_they_are_needed() {
    skip_unless_root!("ends_live_while_they_are_needed");
    let mut f = Fixture::new(1500);
    f.limits.retire_after_seconds = 2;
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    block_on(near.lead()).unwrap();
    let service = bind_udp(&f.new, address(SERVICE, 53));
    let client = bind_udp(&f.client, address("0.0.0.0", 0));
    let ends_at = [&near, &far].map(|end| status(end).ends_at);
    let outlived = || [&near, &far].map(|end| status(end).ends_at) > ends_at.map(|at| at + 2);
    eventually("packets prolong both lives", || {
        send_numbered(&client, 1, 4);
        receive_numbered(&service, 1);
        outlived()
    });
    let ends_at = [&near, &far].map(|end| status(end).ends_at);
    let outlived = || [&near, &far].map(|end| status(end).ends_at) > ends_at.map(|at| at + 2);
    eventually("so does who knows that connections live", || {
        block_on(far.renew()).unwrap();
        outlived()
    });
    assert!(matches!(
        block_on(near.renew()),
        Err(ClientError::Refused(_))
    ));
    both_are_gone(&f, &near, &far);
}

#[test]
fn an_end_that_is_told_by_a_signal_ends_and_the_other_with_it() {
    skip_unless_root!("an_end_that_is_told_by_a_signal_ends_and_the_other_with_it");
    for which in [0, 1] {
        let mut f = Fixture::new(1500);
        let (near, far) = f.start("192.0.2.2");
        let pids = [&near, &far].map(|end| status(end).pid);
        let standbys = pids.map(|pid| children(pid)[0]);
        send(pids[which], Signal::SIGTERM);
        both_are_gone(&f, &near, &far);
        for standby in standbys {
            eventually("the end of its standby", || !exists(standby));
        }
    }
}

fn exists(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Kills an end, and waits until its standby goes on.
fn kill_end(end: &Client) {
    let before = status(end);
    send(before.pid, Signal::SIGKILL);
    eventually("the standby goes on", || {
        let now = block_on(end.status());
        now.is_ok_and(|now| now.pid != before.pid)
    });
    assert_eq!(status(end).counts.takeovers, before.counts.takeovers + 1);
}

#[test]
fn an_end_that_is_killed_has_a_standby() {
    skip_unless_root!("an_end_that_is_killed_has_a_standby");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    block_on(near.lead()).unwrap();
    let connected = || status(&near).connected && status(&far).connected;
    // One connection lives through all of this.
    let echo = echo_tcp(&f.new, address(SERVICE, 80));
    let to = address(SERVICE, 80);
    let mut stream = f
        .client
        .within(move || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut passes = |what: &str| {
        stream.write_all(what.as_bytes()).unwrap();
        let mut answer = vec![0; what.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, what.as_bytes());
    };
    passes("before");
    for end in [&near, &far, &near, &far] {
        let standby = children(status(end).pid)[0];
        kill_end(end);
        assert_eq!(status(end).pid, standby);
        passes("after a death");
        eventually("both know it", connected);
    }
    // A standby that dies is replaced.
    let end = status(&near).pid;
    let standby = children(end)[0];
    send(standby, Signal::SIGKILL);
    eventually("another standby", || {
        children(end).first().is_some_and(|other| *other != standby)
    });
    kill_end(&near);
    passes("after the death of a standby");
    // Both at once, while the connection is silent: whoever is there first waits for the other.
    send(status(&far).pid, Signal::SIGKILL);
    kill_end(&near);
    passes("after the death of both ends");
    drop(stream);
    echo.join().unwrap();
    there_and_back(&f, SERVICE6, MEBIBYTE);
    block_on(near.retire()).unwrap();
    both_are_gone(&f, &near, &far);
}

#[test]
fn an_end_that_is_killed_while_much_passes_costs_time_only() {
    skip_unless_root!("an_end_that_is_killed_while_much_passes_costs_time_only");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    block_on(near.lead()).unwrap();
    f.source
        .run("tc qdisc add dev wan root tbf rate 100mbit burst 20kb latency 50ms");
    let echo = echo_tcp(&f.new, address(SERVICE, 80));
    let client = f.client.clone();
    let passing =
        std::thread::spawn(move || transfer(&client, address(SERVICE, 80), 16 * MEBIBYTE));
    for end in [&near, &far] {
        let before = status(end).counts;
        eventually("some passes", || {
            let now = status(end).counts;
            now.sent_packets + now.received_packets
                > before.sent_packets + before.received_packets + 500
        });
        kill_end(end);
    }
    passing.join().unwrap();
    echo.join().unwrap();
}

#[test]
fn an_end_that_is_killed_while_it_holds_goes_on_holding() {
    skip_unless_root!("an_end_that_is_killed_while_it_holds_goes_on_holding");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    kill_end(&near);
    kill_end(&far);
    let service = bind_udp(&f.new, address(SERVICE, 53));
    let client = bind_udp(&f.client, address("0.0.0.0", 0));
    send_numbered(&client, 100, 4);
    eventually("100 held", || status(&near).counts.held_packets >= 100);
    assert_eq!(status(&near).phase, EndMode::Holding);
    block_on(near.lead()).unwrap();
    receive_numbered(&service, 100);
    // What it was told before its death its standby knows.
    kill_end(&near);
    assert_eq!(status(&near).phase, EndMode::Leading);
    send_numbered(&client, 10, 4);
    receive_numbered(&service, 10);
}

#[test]
fn a_standby_knows_all_that_was_told_however_slow_it_is() {
    skip_unless_root!("a_standby_knows_all_that_was_told_however_slow_it_is");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    let end = status(&near).pid;
    let standby = children(end)[0];
    send(standby, Signal::SIGSTOP);
    block_on(near.lead()).unwrap();
    send(end, Signal::SIGKILL);
    eventually("the end is dead", || !exists(end));
    send(standby, Signal::SIGCONT);
    eventually("the standby goes on", || {
        block_on(near.status()).is_ok_and(|now| now.pid == standby)
    });
    assert_eq!(status(&near).phase, EndMode::Leading);
    there_and_back(&f, SERVICE, MEBIBYTE);
    // One that takes nothing more is replaced.
    let end = status(&far).pid;
    let standby = children(end)[0];
    send(standby, Signal::SIGSTOP);
    eventually("another standby", || {
        block_on(far.renew()).unwrap();
        children(end).first().is_some_and(|other| *other != standby)
    });
    kill_end(&far);
    there_and_back(&f, SERVICE, MEBIBYTE);
    block_on(near.retire()).unwrap();
    both_are_gone(&f, &near, &far);
}

#[test]
fn an_end_whose_device_is_removed_ends() {
    skip_unless_root!("an_end_whose_device_is_removed_ends");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.old.run("ip link del ums-out");
    both_are_gone(&f, &near, &far);
}

#[test]
fn what_an_end_has_is_sent_before_it_retires() {
    skip_unless_root!("what_an_end_has_is_sent_before_it_retires");
    let mut f = Fixture::new(1500);
    let (near, far) = f.start("192.0.2.2");
    f.divert();
    let service = bind_udp(&f.new, address(SERVICE, 53));
    let client = bind_udp(&f.client, address("0.0.0.0", 0));
    // A third of a second on this path.
    f.source
        .run("tc qdisc add dev wan root tbf rate 10mbit burst 20kb latency 2s");
    send_numbered(&client, 300, 1200);
    eventually("300 held", || status(&near).counts.held_packets >= 300);
    let receiver = std::thread::spawn(move || receive_numbered(&service, 300));
    block_on(near.lead()).unwrap();
    block_on(near.retire()).unwrap();
    receiver.join().unwrap();
    both_are_gone(&f, &near, &far);
}

#[test]
fn a_path_that_becomes_narrower_is_learnt() {
    skip_unless_root!("a_path_that_becomes_narrower_is_learnt");
    let mut f = Fixture::new(1500);
    let (near, _far) = f.start("192.0.2.2");
    f.divert();
    block_on(near.lead()).unwrap();
    there_and_back(&f, SERVICE, MEBIBYTE);
    for side in [&f.source, &f.destination] {
        side.run("ip link set wan mtu 1300");
    }
    there_and_back(&f, SERVICE, MEBIBYTE);
}

#[test]
fn connections_pass_a_path_that_loses() {
    skip_unless_root!("connections_pass_a_path_that_loses");
    let mut f = Fixture::new(1500);
    let (near, _far) = f.start("192.0.2.2");
    f.divert();
    block_on(near.lead()).unwrap();
    f.lose_every_hundredth();
    there_and_back(&f, SERVICE, MEBIBYTE);
    assert!(status(&near).connected);
}

#[test]
fn only_the_named_system_with_its_permit_is_let_in() {
    skip_unless_root!("only_the_named_system_with_its_permit_is_let_in");
    let mut f = Fixture::new(1500);
    let permit = Permit::random().unwrap();
    let (far, status) = f.start_far(f.far_launch(&permit)).unwrap();
    let launch = f.near_launch(permit.clone(), &status, "192.0.2.2");
    let mut other = launch.clone();
    other.permit = Permit::random().unwrap();
    let mut stranger = launch.clone();
    stranger.end.identity = f.identity("stranger");
    let mut elsewhere = launch.clone();
    elsewhere.end.peer = "elsewhere".parse().unwrap();
    let mut migration = launch.clone();
    migration.end.migration = "m-2".to_owned();
    for (wrong, reason) in [
        (other, "permit is not valid"),
        (stranger, "waits for source, not for stranger"),
        (elsewhere, "certificate"),
        (migration, "another migration"),
    ] {
        let error = f.start_near(wrong).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!f.old.run("ip -o link").contains("ums-out"));
    }
    let (near, _) = f.start_near(launch.clone()).unwrap();
    // The same start finds it there; another one with the used permit is refused.
    assert_eq!(
        f.start_near(launch.clone()).unwrap().1.pid,
        fixture::status(&near).pid
    );
    let mut again = launch;
    again.end.socket = f.directory.path().join("again.sock");
    again.end.state = f.directory.path().join("again.json");
    again.end.device = "ums-again".to_owned();
    let error = f.start_near(again).unwrap_err().to_string();
    assert!(error.contains("used before"), "{error}");
    let records = record::list::<packet::Status>(f.directory.path()).unwrap();
    let roles: Vec<_> = records.iter().map(|record| record.status.role).collect();
    assert_eq!(roles.len(), 2, "{records:?}");
    // The far end's service is gone: the near end has nothing to stand for.
    block_on(far.retire()).unwrap();
    eventually("the near end ends with it", || {
        block_on(near.status()).is_err()
    });
}
