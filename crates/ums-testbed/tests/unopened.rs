//! Connections that are not open yet while a service moves: calls of the service's own that nobody has
//! answered, and clients that it has not accepted.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Result;
use common::{PATIENCE, remove, systems};
use nix::sys::socket::{Backlog, listen};
use ums_core::facts::LossKind;
use ums_core::report::Outcome;
use ums_testbed::specimen::{Expected, Specimen};
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::wait_for;

/// Ports of the service: at once, and once something has come (TCP_DEFER_ACCEPT).
const PORTS: [u16; 2] = [7200, 7201];

fn calls(arguments: &'static [&'static str]) -> Specimen {
    Specimen {
        name: "calls",
        program: "calls",
        source: include_str!("../specimens/calls.c"),
        arguments,
        memory: None,
        expected: Expected::Carried,
    }
}

/// A server that has no room for another connection: it answers no call, until it makes room.
struct Full {
    listener: TcpListener,
    _filling: TcpStream,
}

impl Full {
    fn open(testbed: &Testbed) -> Result<Self> {
        let ip = testbed.world_ip(&testbed.a);
        testbed.world.in_network(|| {
            let listener = TcpListener::bind((ip, 0))?;
            listen(&listener, Backlog::new(0)?)?;
            let filling = TcpStream::connect(listener.local_addr()?)?;
            Ok(Self {
                listener,
                _filling: filling,
            })
        })
    }

    fn port(&self) -> u16 {
        let address = self.listener.local_addr();
        address.expect("it is bound").port()
    }

    /// Takes what fills it, and the next call; what that says first.
    fn take(&self) -> Result<u8> {
        self.listener.accept()?;
        let (mut call, _) = self.listener.accept()?;
        call.set_read_timeout(Some(PATIENCE))?;
        let mut said = [0];
        call.read_exact(&mut said)?;
        Ok(said[0])
    }
}

/// A client of one of the service's ports, by the first system, that is not accepted.
fn client(testbed: &Testbed, port: u16) -> TcpStream {
    let at = SocketAddr::from((testbed.a.ip(), port));
    let open = || Ok(TcpStream::connect(at)?);
    let client = testbed.world.in_network(open).expect("it connects");
    client.set_read_timeout(Some(PATIENCE)).expect("a limit");
    client
}

/// Nobody waits for what never comes: it is reset, at the latest when it says something.
fn is_reset(mut client: TcpStream) {
    let _ = client.write_all(b"x");
    let read = client.read(&mut [0]);
    let error = read.expect_err("nobody has answered");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

#[test]
fn connections_that_are_not_open_yet() {
    let test = "connections_that_are_not_open_yet";
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    let (a, b) = (&testbed.a, &testbed.b);
    let (never, later) = (Full::open(&testbed), Full::open(&testbed));
    let (never, later) = (never.expect("a server"), later.expect("a server"));
    let words = [
        testbed.world_ip(a).to_string(),
        never.port().to_string(),
        later.port().to_string(),
    ];
    let words = words.map(|word| &*word.leak());
    let service = calls(words.to_vec().leak());
    let ports = PORTS.map(|port| format!("{port}:{port}"));
    let options = ["--publish", &ports[0], "--publish", &ports[1]];
    service.start_with(&testbed, a, &options).expect("it runs");

    let waiting = PORTS.map(|port| client(&testbed, port));
    let report = testbed.migrate(a, b, service.name, &[]);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let told = report.losses.iter().map(|loss| loss.kind);
    let told: Vec<LossKind> = told.collect();
    assert!(told.contains(&LossKind::UnacceptedConnection), "{told:?}");
    service.goes_on(b).expect("its calls are under way");
    waiting.into_iter().for_each(is_reset);
    // Who comes now is held by the new place's kernel, as by any.
    PORTS.iter().for_each(|port| drop(client(&testbed, *port)));

    assert_eq!(later.take().expect("the call is answered"), b'x');
    let is_open = |line: &str| line == "call 1 is open";
    let said = || service.said(b).lines().any(is_open).then_some(());
    wait_for("the call", PATIENCE, said).expect("it is open");

    let report = testbed.migrate(b, a, service.name, &[]);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    service.goes_on(a).expect("its other call is under way");
    assert_eq!(never.take().expect("that is answered too"), b'x');

    service.remove(a).expect("it is removed");
    remove(testbed);
}
