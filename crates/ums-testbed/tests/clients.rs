//! The clients see what goes wrong: each is shown a service that is well, and one that is not.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ums_testbed::client::resp::{Connection, Reply};
use ums_testbed::client::{Load, counter, http, keys};
use ums_testbed::rootfs;
use ums_testbed::testbed::{Settings, Testbed};
use ums_testbed::tools::{Tools, is_root, skipped, wait_for};

/// Longest wait for a server to answer or a client to notice something.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between requests of a client.
const PERIOD: Duration = Duration::from_millis(1);

/// A server that runs directly in system `a`: no container, nothing that moves.
struct Server {
    testbed: Testbed,
    address: SocketAddr,
    child: Option<Child>,
}

impl Server {
    fn redis(test: &str) -> Option<Self> {
        if rootfs::program("redis-server").is_err() {
            skipped(
                test,
                "redis-server is not installed: run `cargo xtask setup`",
            );
            return None;
        }
        let mut server = Self::on(test, 6379)?;
        server.start(redis);
        Some(server)
    }

    fn on(test: &str, port: u16) -> Option<Self> {
        if !is_root() {
            skipped(test, "not root: namespaces need it");
            return None;
        }
        let tools = Tools::find().expect("this program's own path is known");
        let testbed = Testbed::create(&tools, &Settings { rate_mbit: None }).expect("a testbed");
        let address = SocketAddr::from((testbed.a.ip(), port));
        Some(Self {
            testbed,
            address,
            child: None,
        })
    }

    /// Starts the server, in place of the one that runs.
    fn start(&mut self, command: impl FnOnce(&Testbed) -> Command) {
        if let Some(mut old) = self.child.take() {
            for pid in ums_testbed::tools::children_of(old.id().cast_signed()) {
                let pid = nix::unistd::Pid::from_raw(pid);
                nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("it is ours");
            }
            old.wait().expect("it ends");
        }
        let mut command = command(&self.testbed);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("the server starts"));
        wait_for("the server's answer", PATIENCE, || self.connect()).expect("it answers");
    }

    fn connect(&self) -> Option<std::net::TcpStream> {
        let address = self.address;
        self.testbed
            .world
            .in_network(|| Ok(std::net::TcpStream::connect(address)?))
            .ok()
    }

    /// Gives Redis a command behind the back of the client that is tested.
    fn command(&self, words: &[&[u8]]) -> Reply {
        let stream = self.connect().expect("redis answers");
        Connection::new(stream).call(words).expect("redis obeys")
    }

    fn wait_until_served(&self, least: u64) {
        wait_for("more answers", PATIENCE, || {
            (self.served()? >= least).then_some(())
        })
        .expect("the client makes requests");
    }

    /// What the HTTP service has answered until now, this answer included.
    fn served(&self) -> Option<u64> {
        let mut stream = self.connect()?;
        stream.write_all(b"GET /probe HTTP/1.1\r\n\r\n").ok()?;
        stream.shutdown(std::net::Shutdown::Write).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, count) = answer.split_once("\"count\":")?;
        count.split(',').next()?.parse().ok()
    }

    fn counter(&self) -> Load<counter::Counted> {
        let address = self.address;
        Load::start(&self.testbed.world, move |stop| {
            counter::run(&[address], PERIOD, stop)
        })
        .expect("a client")
    }

    fn wait_until_counted(&self, most: u64) {
        wait_for("more increments", PATIENCE, || {
            let Reply::Bulk(Some(value)) = self.command(&[b"GET", b"ums:counter"]) else {
                return None;
            };
            let value: u64 = String::from_utf8(value).ok()?.parse().ok()?;
            (value >= most).then_some(())
        })
        .expect("the client increments");
    }
}

fn redis(testbed: &Testbed) -> Command {
    let mut command = testbed.a.exec("redis-server");
    command.args([
        "--port",
        "6379",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        "/",
    ]);
    command
}

fn web(testbed: &Testbed) -> Command {
    testbed.a.exec(
        testbed
            .tools()
            .own("ums-http")
            .expect("it is built with this test"),
    )
}

#[test]
fn the_key_checker_finds_every_key_that_is_wrong() {
    let Some(server) = Server::redis("the_key_checker_finds_every_key_that_is_wrong") else {
        return;
    };
    let wrong = || {
        let work = || keys::wrong(&[server.address], 2500);
        server
            .testbed
            .world
            .in_network(work)
            .expect("redis answers")
    };
    server
        .testbed
        .world
        .in_network(|| keys::set(&[server.address], 2500))
        .expect("set");
    assert_eq!(wrong(), 0);
    server.command(&[b"DEL", b"key:00000000"]);
    server.command(&[b"SET", b"key:00002499", b"another value"]);
    assert_eq!(wrong(), 2);
}

#[test]
fn the_counter_survives_closed_connections_and_counts_right() {
    let Some(server) = Server::redis("the_counter_survives_closed_connections_and_counts_right")
    else {
        return;
    };
    let counter = server.counter();
    for round in 1..=5 {
        server.wait_until_counted(round * 20);
        server.command(&[b"CLIENT", b"KILL", b"TYPE", b"normal"]);
    }
    server.wait_until_counted(120);
    let counted = counter.stop().expect("the client goes on");
    assert!(counted.summary.reconnects >= 1, "{counted:?}");
    assert_eq!(
        (counted.lost, counted.doubled, counted.summary.failed),
        (0, 0, 0)
    );
    assert_eq!(counted.value, counted.summary.requests);
}

#[test]
fn the_counter_sees_lost_and_doubled_increments() {
    let Some(server) = Server::redis("the_counter_sees_lost_and_doubled_increments") else {
        return;
    };
    let counter = server.counter();
    server.wait_until_counted(20);
    server.command(&[b"INCRBY", b"ums:counter", b"1000"]);
    server.wait_until_counted(1030);
    server.command(&[b"DECRBY", b"ums:counter", b"7"]);
    server.wait_until_counted(1100);
    let counted = counter.stop().expect("the client goes on");
    assert_eq!((counted.lost, counted.doubled), (7, 1000));
}

#[test]
fn the_http_client_sees_a_service_that_began_anew() {
    let Some(mut server) = Server::on("the_http_client_sees_a_service_that_began_anew", 8080)
    else {
        return;
    };
    server.start(web);
    let address = server.address;
    let start = || {
        let work = move |stop: &_| http::run("test", &[address], PERIOD, stop);
        Load::start(&server.testbed.world, work).expect("a client")
    };
    let well = start();
    server.wait_until_served(50);
    let well = well.stop().expect("the client goes on");
    assert!(
        well.requests > 10 && well.failed == 0 && well.reconnects == 0,
        "{well:?}"
    );

    let unwell = start();
    server.wait_until_served(100);
    server.start(web);
    server.wait_until_served(50);
    let unwell = unwell.stop().expect("the client goes on");
    assert!(unwell.failed >= 1 && unwell.reconnects >= 1, "{unwell:?}");
}
