//! The streams service: echoes, sends and collects streams over TCP, echoes UDP and WebSocket, and
//! opens a connection of its own if it is told to. All but WebSocket in one thread.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, sleep_until};
use ums_testbed::ballast::Ballast;
use ums_testbed::streams::{Account, Content, GREETING, LINE_LEN_MAX, Ledger, Request};

/// Connections served at once; one more is closed at once.
const CONNECTIONS_MAX: usize = 1024;

/// Streams remembered; each takes some KiB.
const STREAMS_MAX: usize = 1024;

/// Bytes handled at once at a given rate: small, so that the rate is kept in small steps.
const STEP: usize = 1024;

/// Bytes handled at once without a rate.
const CHUNK: usize = 64 * 1024;

/// Pause before a connection of its own is tried again.
const DIAL_PAUSE: Duration = Duration::from_millis(50);

/// Memory that may be asked for, MiB.
const MIB_MAX: u64 = 4096;

#[derive(Parser)]
#[command(about = "Echoes, sends and collects streams")]
struct Cli {
    /// Where to answer, TCP and UDP
    #[arg(long, default_value = "0.0.0.0:7100")]
    listen: SocketAddr,
    /// Where to answer WebSocket clients
    #[arg(long, default_value = "0.0.0.0:7101")]
    websocket: SocketAddr,
    /// A server to greet with a datagram and to connect to, whose bytes are sent back
    #[arg(long)]
    dial: Option<SocketAddr>,
    /// Random data to hold besides, MiB
    #[arg(long, default_value_t = 0)]
    mib: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    ensure!(cli.mib <= MIB_MAX, "--mib is at most {MIB_MAX}");
    if let Some(server) = cli.dial {
        greet(server)?;
    }
    let ballast = Ballast::new(cli.mib, 1)?;
    let websocket = std::net::TcpListener::bind(cli.websocket)
        .with_context(|| format!("cannot listen on {}", cli.websocket))?;
    std::thread::spawn(move || echo_websocket(&websocket));
    let runtime = tokio::runtime::Builder::new_current_thread();
    let served = { runtime }.enable_all().build()?.block_on(serve(&cli));
    drop(ballast);
    served
}

async fn serve(cli: &Cli) -> Result<()> {
    let listener = TcpListener::bind(cli.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", cli.listen))?;
    tokio::spawn(echo_datagrams(UdpSocket::bind(cli.listen).await?));
    if let Some(server) = cli.dial {
        tokio::spawn(dial(server));
    }
    let service = Arc::new(Service::default());
    loop {
        let (stream, _) = listener.accept().await?;
        if Arc::strong_count(&service) <= CONNECTIONS_MAX {
            let service = Arc::clone(&service);
            // A client that goes away or sends nonsense loses its connection, and no more.
            tokio::spawn(async move { service.serve(stream).await.ok() });
        }
    }
}

#[derive(Default)]
struct Service {
    streams: Mutex<HashMap<u64, Stream>>,
}

#[derive(Default)]
struct Stream {
    ledger: Ledger,
    finished: bool,
}

impl Service {
    async fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        (&mut reader)
            .take(LINE_LEN_MAX)
            .read_line(&mut line)
            .await?;
        match line.parse()? {
            Request::Echo => {
                tokio::io::copy_buf(&mut reader, &mut writer).await?;
            }
            Request::Download(id, rate) => {
                let account = self.send(id, rate, &mut writer).await?;
                writer.write_all(&account.trailer()).await?;
            }
            Request::Upload(id, rate) => {
                self.read(id, rate, &mut reader).await?;
                self.tell(id, &mut writer).await?;
            }
            Request::Collect(id) => {
                writer.shutdown().await?;
                self.read(id, 0, &mut reader).await?;
            }
            Request::Account(id) => self.tell(id, &mut writer).await?,
            Request::Finish(id) => {
                self.with(id, |stream| stream.finished = true)?;
                writer.write_all(b"finished\n").await?;
            }
        }
        Ok(())
    }

    async fn send(&self, id: u64, rate: u64, writer: &mut OwnedWriteHalf) -> Result<Account> {
        let (mut content, mut throttle) = (Content::new(id), Throttle::new(rate));
        let mut chunk = vec![0; throttle.step()];
        while !self.with(id, |stream| stream.finished)? {
            content.fill(&mut chunk);
            self.with(id, |stream| stream.ledger.add(&chunk))?;
            writer.write_all(&chunk).await?;
            throttle.passed(chunk.len()).await;
        }
        self.with(id, |stream| stream.ledger.account())
    }

    async fn read(&self, id: u64, rate: u64, reader: &mut BufReader<OwnedReadHalf>) -> Result<()> {
        let mut throttle = Throttle::new(rate);
        let mut chunk = vec![0; throttle.step()];
        loop {
            let count = reader.read(&mut chunk).await?;
            if count == 0 {
                return Ok(());
            }
            let finished = self.with(id, |stream| {
                stream.ledger.add(&chunk[..count]);
                stream.finished
            })?;
            if !finished {
                throttle.passed(count).await;
            }
        }
    }

    async fn tell(&self, id: u64, writer: &mut OwnedWriteHalf) -> Result<()> {
        let account = self.with(id, |stream| stream.ledger.account())?;
        writer.write_all(format!("{account}\n").as_bytes()).await?;
        Ok(())
    }

    fn with<T>(&self, id: u64, work: impl FnOnce(&mut Stream) -> T) -> Result<T> {
        let mut streams: MutexGuard<'_, _> =
            self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let known = streams.contains_key(&id) || streams.len() < STREAMS_MAX;
        ensure!(known, "more than {STREAMS_MAX} streams");
        Ok(work(streams.entry(id).or_default()))
    }
}

/// Keeps a rate. What was missed in a standstill is not made up for.
struct Throttle {
    /// Bytes in a second; 0 for no limit.
    rate: u64,
    next: Instant,
}

impl Throttle {
    fn new(kib: u64) -> Self {
        Self {
            rate: kib << 10,
            next: Instant::now(),
        }
    }

    fn step(&self) -> usize {
        if self.rate == 0 { CHUNK } else { STEP }
    }

    async fn passed(&mut self, bytes: usize) {
        if self.rate == 0 {
            return tokio::task::yield_now().await;
        }
        let time = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.next = self.next.max(Instant::now()) + time;
        sleep_until(self.next).await;
    }
}

async fn echo_datagrams(socket: UdpSocket) -> Result<()> {
    let mut datagram = vec![0; CHUNK];
    loop {
        // An ICMP error of one client, told to the next call, is no reason to end.
        if let Ok((count, from)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(&datagram[..count], from).await;
        }
    }
}

/// The first thing that it does: one datagram, sent once, so that a network that is not there yet
/// when a service begins loses it for good.
fn greet(server: SocketAddr) -> Result<()> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    socket.send_to(GREETING, server).context("cannot greet")?;
    Ok(())
}

async fn dial(server: SocketAddr) {
    loop {
        if let Ok(stream) = TcpStream::connect(server).await {
            let _ = stream.set_nodelay(true);
            let (reader, mut writer) = stream.into_split();
            let _ = tokio::io::copy_buf(&mut BufReader::new(reader), &mut writer).await;
        }
        sleep(DIAL_PAUSE).await;
    }
}

/// Serves one WebSocket client after the other.
fn echo_websocket(listener: &std::net::TcpListener) {
    for stream in listener.incoming().flatten() {
        let _ = stream.set_nodelay(true);
        let Ok(mut socket) = tungstenite::accept(stream) else {
            continue;
        };
        while let Ok(message) = socket.read() {
            let is_data = message.is_binary() || message.is_text();
            if is_data && socket.send(message).is_err() {
                break;
            }
        }
    }
}
