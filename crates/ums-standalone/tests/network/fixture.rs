//! A client, a system with services, and another place, each in a network namespace that has no
//! name: it is held by a descriptor of this process, so nothing of it can be left behind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;
use ums_core::id::ServiceName;
use ums_core::specification::{PublishedPort, Transport};
use ums_frontman::client::FrontmanClient;
use ums_frontman::control::{Counts, Limits};
use ums_frontman::engine::{Config, Frontman};
use ums_node::packets::Inside;
use ums_standalone::network::{Driver, Table};

/// Longest wait for anything that should come about.
const PATIENCE: Duration = Duration::from_secs(20);

const SYSTEM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Leaves the test, and says so, when it can't be run.
macro_rules! skip_unless_root {
    ($name:literal) => {
        if let Some(reason) = crate::fixture::lacking() {
            crate::fixture::skipped($name, reason);
            return;
        }
    };
}
pub(crate) use skip_unless_root;

pub(crate) fn lacking() -> Option<&'static str> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("network namespaces need root");
    }
    let there = |tool: &str| Command::new(tool).arg("-V").output().is_ok();
    (!there("ip") || !there("nft")).then_some("`ip` or `nft` is missing")
}

pub(crate) fn skipped(name: &str, reason: &str) {
    let line = format!("SKIPPED {name}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("UMS_SKIP_LOG") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Namespace(Arc<File>);

impl Namespace {
    pub(crate) fn create() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self(Arc::new(made.join().unwrap()));
        namespace.run("ip", "link set lo up");
        namespace
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Calls `action` inside, on a thread of its own.
    fn enter<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = self.0.clone();
        std::thread::spawn(move || {
            setns(file.as_ref(), CloneFlags::CLONE_NEWNET).unwrap();
            action()
        })
    }

    fn run(&self, tool: &'static str, words: &str) -> String {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let ran = self.enter(move || Command::new(tool).args(words).output().unwrap());
        let output = ran.join().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) async fn ip(&self, words: &str) -> String {
        let (own, words) = (self.clone(), words.to_owned());
        blocking(move || own.run("ip", &words)).await
    }

    pub(crate) async fn nft(&self, words: &str) -> String {
        let (own, words) = (self.clone(), words.to_owned());
        blocking(move || own.run("nft", &words)).await
    }

    pub(crate) async fn connect(&self, to: SocketAddrV4) -> std::io::Result<TcpStream> {
        let connecting = self.enter(move || TcpStream::connect_timeout(&to.into(), PATIENCE));
        let stream = blocking(|| connecting.join().unwrap()).await?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

async fn blocking<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(action).await.unwrap()
}

pub(crate) struct Fixture {
    pub(crate) client: Namespace,
    pub(crate) system: Namespace,
    pub(crate) elsewhere: Namespace,
    pub(crate) driver: Driver,
    pub(crate) inside: Inside,
    directory: TempDir,
}

pub(crate) struct Service {
    pub(crate) name: ServiceName,
    pub(crate) namespace: Namespace,
    pub(crate) address: Ipv4Addr,
    pub(crate) ports: Vec<PublishedPort>,
}

impl Service {
    pub(crate) fn path(&self) -> PathBuf {
        self.namespace.path()
    }
}

impl Fixture {
    /// Runs a test on a thread inside the system's namespace: the driver works where it is called.
    pub(crate) fn run(test: impl AsyncFnOnce(&Fixture) + Send + 'static) {
        let [client, system, elsewhere] = [(); 3].map(|()| Namespace::create());
        let inside = system.clone();
        let run = inside.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async move {
                let driver = Driver::new(None, "10.88.0.0/16".parse().unwrap());
                let directory = TempDir::new().unwrap();
                let fixture = Fixture {
                    client,
                    system,
                    elsewhere,
                    driver,
                    inside: Inside::new(None),
                    directory,
                };
                fixture.join_up();
                fixture.driver.ensure_bridge().await.unwrap();
                test(&fixture).await;
            });
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn join_up(&self) {
        let (system, client, elsewhere) = (&self.system, &self.client, &self.elsewhere);
        for (name, far, near, there) in [
            ("to-client", client, "192.0.2.1/24", "192.0.2.2/24"),
            ("elsewhere", elsewhere, "198.51.100.1/24", "198.51.100.2/24"),
        ] {
            let path = far.path();
            let path = path.display();
            system.run(
                "ip",
                &format!("link add {name} type veth peer name eth0 netns {path}"),
            );
            system.run("ip", &format!("addr add {near} dev {name}"));
            system.run("ip", &format!("link set {name} up"));
            far.run("ip", &format!("addr add {there} dev eth0"));
            far.run("ip", "link set eth0 up");
        }
    }

    pub(crate) fn endpoint(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(SYSTEM, port)
    }

    /// A service on port 8080 of the system.
    pub(crate) async fn service(&self, name: &str, host: u8) -> Service {
        self.service_on(name, host, 8080).await
    }

    pub(crate) async fn service_on(&self, name: &str, host: u8, system_port: u16) -> Service {
        let name: ServiceName = name.parse().unwrap();
        let (namespace, address) = (Namespace::create(), Ipv4Addr::new(10, 88, 0, host));
        let ports = vec![PublishedPort {
            transport: Transport::Tcp,
            system_port,
            service_port: 80,
        }];
        self.driver
            .attach(&name, &namespace.path(), address)
            .await
            .unwrap();
        self.driver.publish(&name, address, &ports).await.unwrap();
        Service {
            name,
            namespace,
            address,
            ports,
        }
    }

    pub(crate) async fn table(&self) -> Table {
        self.driver.table().await.unwrap()
    }

    /// A Frontman for port 8080 in the system's namespace.
    pub(crate) async fn frontman(&self) -> RunningFrontman {
        let config = Config {
            service: "web".to_owned(),
            owner: "m-1".to_owned(),
            socket: self.directory.path().join("web.sock"),
            state: self.directory.path().join("web.json"),
            ports: [(8080, (self.driver.gateway(), 0).into())].into(),
            limits: Limits::default(),
        };
        let frontman = Frontman::start(config.clone()).unwrap();
        let (stop, stopped) = tokio::sync::mpsc::channel(1);
        let task = tokio::spawn(frontman.run(stopped));
        let client = FrontmanClient::connect(config.socket).await.unwrap();
        let listeners = client
            .status()
            .await
            .unwrap()
            .ports
            .into_iter()
            .map(|port| {
                let std::net::SocketAddr::V4(listen) = port.listen else {
                    unreachable!()
                };
                (port.system_port, listen)
            });
        RunningFrontman {
            client,
            listeners: listeners.collect(),
            task,
            _stop: stop,
        }
    }

    /// Connects, asks and disconnects again and again; returns how often, or what failed.
    pub(crate) fn clients_without_pause(
        &self,
        to: SocketAddrV4,
        name: &'static str,
    ) -> (Arc<AtomicBool>, JoinHandle<std::io::Result<u32>>) {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let clients = self.client.enter(move || {
            let mut answered = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"x\n")?;
                let mut answer = String::new();
                stream.shutdown(Shutdown::Write)?;
                stream.read_to_string(&mut answer)?;
                if answer != format!("{name}: x\n") {
                    return Err(std::io::Error::other(format!("answered {answer:?}")));
                }
                answered += 1;
            }
            Ok(answered)
        });
        (stop, clients)
    }
}

pub(crate) struct RunningFrontman {
    pub(crate) client: FrontmanClient,
    listeners: BTreeMap<u16, SocketAddrV4>,
    task: tokio::task::JoinHandle<()>,
    _stop: tokio::sync::mpsc::Sender<()>,
}

impl RunningFrontman {
    pub(crate) fn listeners(&self) -> BTreeMap<u16, SocketAddrV4> {
        self.listeners.clone()
    }

    pub(crate) async fn counts(&self) -> Counts {
        self.client.status().await.unwrap().counts
    }

    pub(crate) async fn wait_gone(self) {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

/// Waits for a condition, at most [`PATIENCE`].
pub(crate) async fn eventually(condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < PATIENCE,
            "the condition did not come about"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers each line with its own name and the line, until it is dropped.
pub(crate) struct Echo {
    listener: TcpListener,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Echo {
    pub(crate) fn start(namespace: &Namespace, port: u16, name: &'static str) -> Self {
        Self::start_at(namespace, (Ipv4Addr::UNSPECIFIED, port), name)
    }

    /// One that listens at this address alone.
    pub(crate) fn start_at(
        namespace: &Namespace,
        address: (Ipv4Addr, u16),
        name: &'static str,
    ) -> Self {
        let bound = namespace.enter(move || TcpListener::bind(address));
        let listener = bound.join().unwrap().unwrap();
        let open = Arc::new(Mutex::new(Vec::new()));
        let (accepting, opened) = (listener.try_clone().unwrap(), open.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                opened.lock().unwrap().push(stream.try_clone().unwrap());
                std::thread::spawn(move || echo(stream, name));
            }
        });
        Self { listener, open }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Ends the thread that accepts, which holds the other descriptor of the listener.
        nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both)
            .unwrap();
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn echo(mut stream: TcpStream, name: &str) {
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let Ok(line) = line else { return };
        if stream
            .write_all(format!("{name}: {line}\n").as_bytes())
            .is_err()
        {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Sends a line and returns the next one that comes back.
pub(crate) async fn ask(stream: &mut TcpStream, question: &str) -> String {
    let (mut stream, question) = (stream.try_clone().unwrap(), format!("{question}\n"));
    blocking(move || {
        stream.write_all(question.as_bytes()).unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    })
    .await
}

/// What a connection's kernel still has to do, by `/proc/net/tcp`.
pub(crate) struct Queue {
    pub(crate) unacknowledged: u64,
    pub(crate) retransmits: u64,
}

impl Namespace {
    /// The queue of the connection from this port.
    pub(crate) async fn queue(&self, port: u16) -> Queue {
        let reading = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
        let text = blocking(|| reading.join().unwrap()).await;
        let local = format!(":{port:04X}");
        let line = text
            .lines()
            .find(|line| line.split_whitespace().nth(1).unwrap().ends_with(&local))
            .expect("the connection is open");
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        Queue {
            unacknowledged: number(fields[4].split_once(':').unwrap().0),
            retransmits: number(fields[6]),
        }
    }
}

/// A connection that the service has closed, with all in it that its buffers took; the client has
/// read nothing yet. The second is how much the client has to get.
pub(crate) async fn closed_with_last_words(f: &Fixture, service: &Service) -> (TcpStream, usize) {
    let bound = service
        .namespace
        .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    let listener = bound.join().unwrap();
    let client = f.client.connect(f.endpoint(8080)).await.unwrap();
    let written = blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(length) = stream.write(&[7; 4096]) {
            written += length;
        }
        written
    });
    (client, written.await)
}

/// All that a connection has to say, until its end.
pub(crate) async fn read_all(mut stream: TcpStream) -> usize {
    blocking(move || {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap()
    })
    .await
}

/// How a connection ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Reset,
    End,
    Data,
    Silence,
}

/// What a client that only waits sees next.
pub(crate) async fn outcome(stream: &mut TcpStream) -> Outcome {
    let mut stream = stream.try_clone().unwrap();
    blocking(move || match stream.read(&mut [0]) {
        Ok(0) => Outcome::End,
        Ok(_) => Outcome::Data,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Outcome::Reset,
        Err(_) => Outcome::Silence,
    })
    .await
}

/// What a client sees that goes on sending.
pub(crate) async fn send_until_told(stream: &mut TcpStream) -> Outcome {
    // The first packet may find the way to the neighbour that was; TCP sends it again.
    stream.write_all(b"x\n").unwrap();
    outcome(stream).await
}
