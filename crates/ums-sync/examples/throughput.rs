//! How fast pages go over the data path on this machine, beside one plain TCP stream.
//!
//! ```text
//! cargo run --release -p ums-sync --example throughput -- [MiB]
//! ```
//!
//! Both ends run in this process on the loopback interface; pages are counted and thrown away.

use std::error::Error;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use ums_core::id::{MigrationId, SystemName};
use ums_sync::Meter;
use ums_sync::frame::BLOCK_BYTES;
use ums_sync::receive::{self, Block, FileOperation, Limits, Sink, SinkError};
use ums_sync::send::{Sender, Settings};
use ums_tls::ca::{Authority, SYSTEM_VALIDITY};
use ums_tls::{ALPN_DATA, Identity};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const WAIT: Duration = Duration::from_secs(30);

struct Count(u64);

impl Sink for Count {
    fn image(&mut self, _: &str, _: Vec<u8>) -> Result<(), SinkError> {
        Ok(())
    }
    fn pages(&mut self, block: &Block<'_>) -> Result<(), SinkError> {
        self.0 += u64::from(block.count);
        Ok(())
    }
    fn file(&mut self, _: &FileOperation<'_>) -> Result<(), SinkError> {
        Ok(())
    }
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

fn main() -> Outcome<()> {
    let mib = std::env::args()
        .nth(1)
        .map_or(Ok(1024), |given| given.parse())?;
    let random = pattern(0);
    let text = pattern(7);
    let plain = plain_tcp(mib, &random)?;
    println!(
        "{:<28} {:8.0} MiB/s",
        "plain TCP",
        mib as f64 / plain.as_secs_f64()
    );
    for (name, block) in [
        ("random", &random),
        ("compressible", &text),
        ("zero", &vec![0; BLOCK_BYTES]),
    ] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let before = cpu_time()?;
        let (took, wire) = runtime.block_on(data_path(mib, block.clone()))?;
        println!(
            "{:<28} {:8.0} MiB/s, {:.2} of plain TCP's time, {:.1} MiB on the wire, {:.2} s of CPU",
            format!("data path, {name} pages"),
            mib as f64 / took.as_secs_f64(),
            took.as_secs_f64() / plain.as_secs_f64(),
            wire as f64 / f64::from(1 << 20),
            (cpu_time()? - before).as_secs_f64(),
        );
    }
    println!("peak resident memory {} KiB (both ends)", peak_kib()?);
    Ok(())
}

/// A block of pages of which every byte is random, or one in `zeros + 1`.
fn pattern(zeros: usize) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut random = blake3::Hasher::new().finalize_xof();
    random.fill(&mut bytes);
    for (at, byte) in bytes.iter_mut().enumerate() {
        if at % (zeros + 1) != 0 {
            *byte = 0;
        }
    }
    bytes
}

fn plain_tcp(mib: u64, block: &[u8]) -> Outcome<Duration> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let reader = std::thread::spawn(move || -> Outcome<()> {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; BLOCK_BYTES];
        while stream.read(&mut buffer)? > 0 {}
        stream.write_all(b"!")?;
        Ok(())
    });
    let begin = Instant::now();
    let mut stream = std::net::TcpStream::connect(address)?;
    for _ in 0..mib * 4 {
        stream.write_all(block)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    let took = begin.elapsed();
    reader.join().map_err(|_| "the reader panicked")??;
    Ok(took)
}

async fn data_path(mib: u64, block: Vec<u8>) -> Outcome<(Duration, u64)> {
    let (ca, _) = Authority::new("throughput")?;
    let beta: SystemName = "beta".parse()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = ums_tls::server_config(&member(&ca, &beta)?, &[ALPN_DATA])?;
    let receiver = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await?;
        let (stream, _) = ums_tls::accept(tcp, server, WAIT).await?;
        let limits = Limits {
            memory_bytes_max: u64::MAX,
            ..Limits::default()
        };
        let pending = receive::accept(stream, WAIT).await?;
        let received = pending.welcome(limits, Meter::default(), Count(0)).await?;
        Outcome::Ok(received.sink.0)
    });
    let client = ums_tls::client_config(&member(&ca, &"alpha".parse()?)?, &[ALPN_DATA])?;
    let stream = ums_tls::connect(address, &beta, client, WAIT).await?;
    let migration = MigrationId(uuid::Uuid::nil());
    let begin = Instant::now();
    let sender = Sender::open(stream, migration, [0; 32], Settings::default()).await?;
    let mut writer = sender.pages();
    tokio::task::spawn_blocking(move || {
        (0..mib * 4).try_for_each(|at| writer.write(1, at * BLOCK_BYTES as u64, 0, &block))
    })
    .await??;
    let delivered = sender.finish().await?;
    let took = begin.elapsed();
    if receiver.await?? != mib * 256 {
        return Err("pages are missing".into());
    }
    Ok((took, delivered.bytes.wire))
}

fn member(ca: &Authority, name: &SystemName) -> Outcome<Identity> {
    let issued = ca.issue(name, &[], SYSTEM_VALIDITY)?;
    let ca_pem = ca.cert_pem().to_owned();
    Ok(Identity {
        ca_pem,
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
    })
}

/// User and system time of this process so far.
fn cpu_time() -> Outcome<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat
        .rsplit_once(") ")
        .ok_or("no fields in /proc/self/stat")?;
    let ticks = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    // USER_HZ is 100 on every architecture that Linux still has.
    Ok(Duration::from_millis(ticks * 10))
}

fn peak_kib() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
