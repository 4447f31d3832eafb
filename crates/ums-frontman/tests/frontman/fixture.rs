//! A Frontman of the test's own, and the services and clients around it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use ums_frontman::client::{FrontmanClient, Launch, spawn};
use ums_frontman::control::{Counts, Limits, Status, Upstreams};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_ums-frontman").into()
}

pub(crate) struct Fixture {
    pub(crate) directory: Arc<TempDir>,
    pub(crate) launch: Launch,
    pub(crate) client: FrontmanClient,
    pub(crate) pid: u32,
    listen: SocketAddr,
    gone: bool,
}

impl Fixture {
    pub(crate) async fn start(limits: Limits) -> Self {
        Self::start_at(Arc::new(TempDir::new().unwrap()), limits).await
    }

    pub(crate) async fn start_in(other: &Fixture, limits: Limits) -> Self {
        Self::start_at(other.directory.clone(), limits).await
    }

    async fn start_at(directory: Arc<TempDir>, limits: Limits) -> Self {
        let launch = Launch {
            service: "web".to_owned(),
            owner: "m-1".to_owned(),
            socket: directory.path().join("web.sock"),
            state: directory.path().join("web.json"),
            log: None,
            ports: [(8080, "127.0.0.1:0".parse().unwrap())].into(),
            limits,
        };
        let (client, status) = spawn(&binary(), &launch).await.unwrap();
        let listen = status.ports[0].listen;
        Self {
            directory,
            launch,
            client,
            pid: status.pid,
            listen,
            gone: false,
        }
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    pub(crate) async fn lead(&self, to: SocketAddr) -> Status {
        self.client
            .lead(Upstreams::from([(8080, to)]))
            .await
            .unwrap()
    }

    pub(crate) async fn counts(&self) -> Counts {
        self.client.status().await.unwrap().counts
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.raw_pid(), signal).unwrap();
    }

    pub(crate) async fn wait_gone(&mut self) {
        let stat = format!("/proc/{}/stat", self.pid);
        // A zombie has ended: the runtime reaps it when it gets to it.
        eventually(|| async {
            std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
        })
        .await;
        self.gone = true;
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).unwrap())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if !self.gone {
            let _ = kill(self.raw_pid(), Signal::SIGKILL);
        }
    }
}

/// Waits for a condition, at most [`PATIENCE`].
pub(crate) async fn eventually<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < PATIENCE,
            "the condition did not come about"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers each line with its own name and the line; lives as long as the test's process.
pub(crate) struct Echo(SocketAddr);

impl Echo {
    pub(crate) fn start(name: &'static str) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), name)
    }

    pub(crate) fn start_at(address: SocketAddr, name: &'static str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream, name));
            }
        });
        Self(address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0
    }
}

fn echo(stream: TcpStream, name: &str) {
    let mut writing = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        if writing
            .write_all(format!("{name}: {line}\n").as_bytes())
            .is_err()
        {
            return;
        }
    }
}

pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends, and returns the next line that comes back.
pub(crate) fn ask(stream: &mut TcpStream, question: &str) -> String {
    stream.write_all(question.as_bytes()).unwrap();
    line(stream)
}

pub(crate) fn line(stream: &mut impl Read) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// Whether the connection ends by a reset.
pub(crate) fn is_reset(mut stream: TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

pub(crate) fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Closes by a reset.
pub(crate) fn abort(stream: TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt::Linger};
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, Linger, &linger).unwrap();
}
