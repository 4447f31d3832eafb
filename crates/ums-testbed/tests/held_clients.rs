//! The clients that keep their connection see what goes wrong on it: each is shown a service that
//! is well, and one whose bytes are lost, doubled or changed on the way, or whose connection ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use ums_testbed::client::resp::{Connection, Reply};
use ums_testbed::client::transfer::{Download, Progress, Upload, download, upload};
use ums_testbed::client::{Summary, echo, finish, pipeline, subscriber, websocket};
use ums_testbed::rootfs;
use ums_testbed::tools::{Tools, skipped, wait_for};

/// Longest wait for a server or a client.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between a client's requests.
const PERIOD: Duration = Duration::from_millis(1);

/// The byte that is damaged.
const DAMAGED: usize = 5000;

/// Bytes after which a client has seen enough.
const ENOUGH: usize = 10_000;

const ID: u64 = 1;

/// What happens to the bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    None,
    Lost,
    Doubled,
    Changed,
    Closed,
}

/// A program that answers on a port of this machine; it ends with this.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(command: impl FnOnce(SocketAddr) -> Command) -> Self {
        let address = free_address();
        let mut command = command(address);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the server starts");
        wait_for("an answer", PATIENCE, || TcpStream::connect(address).ok()).expect("it answers");
        Self { child, address }
    }

    /// The streams service, and its address for WebSocket clients.
    fn streams() -> (Self, SocketAddr) {
        let program = Tools::find().and_then(|tools| tools.own("ums-streams"));
        let (program, websocket) = (program.expect("it is built"), free_address());
        let server = Self::start(|address| {
            let mut command = Command::new(program);
            command.args(["--listen", &address.to_string()]);
            command.args(["--websocket", &websocket.to_string()]);
            command
        });
        (server, websocket)
    }

    fn redis(test: &str) -> Option<Self> {
        let Ok(program) = rootfs::program("redis-server") else {
            skipped(test, "redis-server is missing: run `cargo xtask setup`");
            return None;
        };
        Some(Self::start(|address| {
            let mut command = Command::new(program);
            command.args(["--port", &address.port().to_string(), "--save", ""]);
            command
        }))
    }

    /// Gives Redis a command behind the back of the client that is tested.
    fn command(&self, words: &[&[u8]]) -> Reply {
        let stream = TcpStream::connect(self.address).expect("redis answers");
        Connection::new(stream).call(words).expect("redis obeys")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}

/// Passes connections on to `server`, damaging what goes one way; sets `enough` when so much has
/// passed that the client may stop. Ends with the test.
fn relay(
    server: SocketAddr,
    damage: Damage,
    to_server: bool,
    enough: &Arc<AtomicBool>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let enough = Arc::clone(enough);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(server) else {
                return;
            };
            let other = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
            let (forth, back) = ((other(&client), other(&server)), (server, client));
            let (damaged, whole) = if to_server {
                (forth, back)
            } else {
                (back, forth)
            };
            let enough = Arc::clone(&enough);
            std::thread::spawn(move || {
                let _ = pass(damaged.0, damaged.1, damage, &enough);
                enough.store(true, Ordering::Relaxed);
            });
            let unseen = AtomicBool::new(false);
            std::thread::spawn(move || pass(whole.0, whole.1, Damage::None, &unseen).ok());
        }
    });
    address
}

/// Passes bytes on until they end, and says when it is enough.
fn pass(mut from: TcpStream, mut to: TcpStream, damage: Damage, enough: &AtomicBool) -> Result<()> {
    let (mut buffer, mut passed) = ([0; 1024], 0);
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(to.shutdown(Shutdown::Write)?);
        }
        let mut bytes = buffer[..count].to_vec();
        if (passed..passed + count).contains(&DAMAGED) {
            let at = DAMAGED - passed;
            match damage {
                Damage::None => {}
                Damage::Lost => drop(bytes.remove(at)),
                Damage::Doubled => bytes.insert(at, bytes[at]),
                Damage::Changed => bytes[at] ^= 1,
                Damage::Closed => {
                    from.shutdown(Shutdown::Both)?;
                    return Ok(to.shutdown(Shutdown::Both)?);
                }
            }
        }
        passed += count;
        if passed > ENOUGH {
            enough.store(true, Ordering::Relaxed);
        }
        to.write_all(&bytes)?;
    }
}

/// Runs a client through a relay for each damage, and without one.
fn show(
    server: SocketAddr,
    to_server: bool,
    damages: &[Damage],
    client: impl Fn(SocketAddr, &AtomicBool) -> Result<Summary>,
) {
    for damage in [&[Damage::None], damages].concat() {
        let enough = Arc::new(AtomicBool::new(false));
        let seen = client(relay(server, damage, to_server, &enough), &enough);
        match (damage, seen) {
            (Damage::None, Ok(seen)) => {
                assert!(seen.requests > 0, "{seen:?}");
                assert_eq!((seen.failed, seen.reconnects), (0, 0), "{seen:?}");
            }
            (Damage::None, Err(error)) => panic!("all was well, and it saw: {error:#}"),
            (_, Ok(seen)) => panic!("it has not seen {damage:?}: {seen:?}"),
            (_, Err(_)) => {}
        }
    }
}

#[test]
fn the_echo_sees_changed_and_doubled_bytes_and_a_closed_connection() {
    let (server, _) = Server::streams();
    let damages = [Damage::Doubled, Damage::Changed, Damage::Closed];
    show(server.address, false, &damages, |address, stop| {
        echo::run(address, PERIOD, stop)
    });
}

#[test]
fn a_download_sees_every_damage() {
    let damages = [
        Damage::Lost,
        Damage::Doubled,
        Damage::Changed,
        Damage::Closed,
    ];
    for half_closed in [false, true] {
        let (server, _) = Server::streams();
        let plan = Download {
            name: "download",
            id: ID,
            rate: 1024,
            pause: Duration::ZERO,
            half_closed,
        };
        // Each run is of a stream of its own, for one that was finished stays so.
        let id = std::sync::atomic::AtomicU64::new(ID);
        show(server.address, false, &damages, |address, enough| {
            let id = id.fetch_add(1, Ordering::Relaxed);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let seen = || enough.load(Ordering::Relaxed).then_some(());
                    wait_for("enough bytes", PATIENCE, seen).expect("they pass");
                    finish(server.address, id).expect("the service ends the stream");
                });
                download(address, &Download { id, ..plan }, &AtomicBool::new(false))
            })
        });
    }
}

#[test]
fn an_upload_sees_every_damage() {
    let damages = [
        Damage::Lost,
        Damage::Doubled,
        Damage::Changed,
        Damage::Closed,
    ];
    let (server, _) = Server::streams();
    let id = std::sync::atomic::AtomicU64::new(ID);
    show(server.address, true, &damages, |address, stop| {
        let plan = Upload {
            name: "upload",
            id: id.fetch_add(1, Ordering::Relaxed),
            half_closed: false,
            rate: 0,
            chunk: 64,
            period: Duration::ZERO,
        };
        upload(address, &plan, &Arc::new(Progress::default()), stop)
    });
}

#[test]
fn a_websocket_sees_changed_bytes_and_a_closed_connection() {
    let (_server, websocket) = Server::streams();
    wait_for("an answer", PATIENCE, || TcpStream::connect(websocket).ok()).expect("it answers");
    let damages = [Damage::Changed, Damage::Closed];
    show(websocket, false, &damages, |address, stop| {
        websocket::run(address, PERIOD, stop)
    });
}

#[test]
fn the_subscriber_sees_a_message_too_many() {
    let Some(server) = Server::redis("the_subscriber_sees_a_message_too_many") else {
        return;
    };
    let client = |address, stop: &AtomicBool| subscriber::run(address, PERIOD, stop);
    show(server.address, false, &[Damage::Closed], client);
    let seen = std::thread::scope(|scope| {
        let client = scope.spawn(|| client(server.address, &AtomicBool::new(false)));
        let publish = || {
            let reply = server.command(&[b"PUBLISH", b"ums:messages", b"3"]);
            (reply == Reply::Integer(1)).then_some(())
        };
        wait_for("a subscriber", PATIENCE, publish).expect("the client subscribes");
        client.join().expect("no panic")
    });
    let error = format!("{:#}", seen.expect_err("a message too many"));
    assert!(error.contains("is due"), "{error}");
}

#[test]
fn the_pipeline_sees_a_write_too_many() {
    let Some(server) = Server::redis("the_pipeline_sees_a_write_too_many") else {
        return;
    };
    let client = |address, stop: &AtomicBool| pipeline::run(address, PERIOD, stop);
    show(server.address, false, &[Damage::Closed], |address, stop| {
        server.command(&[b"FLUSHALL"]);
        client(address, stop)
    });
    server.command(&[b"FLUSHALL"]);
    let seen = std::thread::scope(|scope| {
        let client = scope.spawn(|| client(server.address, &AtomicBool::new(false)));
        let push = || match server.command(&[b"LLEN", b"ums:pipeline:list"]) {
            Reply::Integer(1..) => Some(server.command(&[b"RPUSH", b"ums:pipeline:list", b"0"])),
            _ => None,
        };
        wait_for("a list", PATIENCE, push).expect("the client writes");
        client.join().expect("no panic")
    });
    let error = format!("{:#}", seen.expect_err("a write too many"));
    assert!(error.contains("RPUSH"), "{error}");
}
