//! The least time that the wire allows: the same number of bytes over one plain TCP stream.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Cell, Sample, Technique};
use crate::hog::Words;
use crate::testbed::Testbed;

/// Bytes handed to the kernel at once.
const CHUNK: usize = 256 * 1024;

/// Longest standstill of the stream.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends so many bytes as a sample.
pub fn measure(testbed: &Testbed, cell: Cell, bytes: u64, run: u32) -> Result<Sample> {
    let total = time(testbed, bytes)?;
    Ok(Sample {
        technique: Technique::WireFloor,
        cell,
        run,
        total_ms: total.as_secs_f64() * 1e3,
        downtime_ms: None,
        client_gap_ms: None,
        before_p99_ms: None,
        after_p99_ms: None,
        wire_bytes: bytes,
        agent_mib: None,
    })
}

/// Sends `bytes` bytes from `a` to `b`; the time ends when `b` has said that it has all.
pub fn time(testbed: &Testbed, bytes: u64) -> Result<Duration> {
    let ip = testbed.b.ip();
    let listener = testbed
        .b
        .namespace()
        .in_network(|| Ok(TcpListener::bind((ip, 0))?))?;
    let address = listener.local_addr()?;
    // The connection stands before the time begins, as a prepared data path does.
    let stream = testbed
        .a
        .namespace()
        .in_network(|| Ok(TcpStream::connect(address)?))?;
    std::thread::scope(|scope| {
        let sink = scope.spawn(move || receive(&listener, bytes));
        let elapsed = send(&stream, bytes);
        let received = sink
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        received.and(elapsed)
    })
}

fn send(mut stream: &TcpStream, bytes: u64) -> Result<Duration> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut words = Words::new(1);
    let chunk: Vec<u8> = (0..CHUNK / 8)
        .flat_map(|_| words.word().to_ne_bytes())
        .collect();
    let began = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let count = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        stream.write_all(&chunk[..count]).context("cannot send")?;
        left -= count as u64;
    }
    let mut done = [0];
    stream
        .read_exact(&mut done)
        .context("the other end did not confirm")?;
    Ok(began.elapsed())
}

fn receive(listener: &TcpListener, bytes: u64) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let count = stream.read(&mut buffer).context("cannot receive")? as u64;
        ensure!(count > 0, "the stream ended {left} bytes early");
        left = left.saturating_sub(count);
    }
    stream.write_all(&[1])?;
    Ok(())
}
