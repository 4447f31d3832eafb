//! Clients that download or upload for as long as the service moves, each on one connection, and
//! check every byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::held::{account, open, read_line, summary};
use super::load::{Pace, Summary};
use super::unacknowledged::Unacknowledged;
use crate::streams::{Account, Content, Ledger, Request, TRAILER_LEN};
use crate::tools::wait_for;

/// Longest wait for the service to have read what it had not read when its stream was finished.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

/// A stream that the service sends.
#[derive(Debug, Clone, Copy)]
pub struct Download {
    /// Name in the summary.
    pub name: &'static str,
    /// The stream.
    pub id: u64,
    /// How fast the service sends, KiB/s; 0: as fast as it goes.
    pub rate: u64,
    /// Pause before each read: long enough, and every buffer on the way is full.
    pub pause: Duration,
    /// Whether the client closes its direction at the beginning.
    pub half_closed: bool,
}

/// Reads until the service ends the stream, which it does when it is [`super::finish`]ed.
pub fn download(address: SocketAddr, plan: &Download, stop: &AtomicBool) -> Result<Summary> {
    let mut stream = open(address, Request::Download(plan.id, plan.rate))?;
    if plan.half_closed {
        stream.shutdown(Shutdown::Write)?;
    }
    let mut reading = Reading::new(plan.id);
    let mut pace = Pace::new(Duration::ZERO);
    let mut buffer = [0; 16 * 1024];
    loop {
        if !stop.load(Ordering::Relaxed) {
            std::thread::sleep(plan.pause);
        }
        let count = stream
            .read(&mut buffer)
            .with_context(|| format!("after {} bytes", reading.ledger.account().bytes))?;
        if count == 0 {
            break;
        }
        pace.answered();
        reading.take(&buffer[..count])?;
    }
    let bytes = reading.end()?;
    Ok(summary(plan.name, bytes, &pace))
}

/// What was read of a stream; its last bytes may be the trailer.
struct Reading {
    content: Content,
    ledger: Ledger,
    tail: Vec<u8>,
}

impl Reading {
    fn new(id: u64) -> Self {
        Self {
            content: Content::new(id),
            ledger: Ledger::default(),
            tail: Vec::new(),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.tail.extend_from_slice(bytes);
        let certain = self.tail.len().saturating_sub(TRAILER_LEN);
        let content: Vec<u8> = self.tail.drain(..certain).collect();
        ensure!(
            self.content.is_next(&content),
            "wrong bytes after {}",
            self.ledger.account().bytes
        );
        self.ledger.add(&content);
        Ok(())
    }

    fn end(self) -> Result<u64> {
        let account = self.ledger.account();
        ensure!(
            self.tail == account.trailer(),
            "the service's checksum is not that of the {} bytes read",
            account.bytes
        );
        Ok(account.bytes)
    }
}

/// A stream that the client sends.
#[derive(Debug, Clone, Copy)]
pub struct Upload {
    /// Name in the summary.
    pub name: &'static str,
    /// The stream.
    pub id: u64,
    /// Whether the service closes its own direction at the beginning.
    pub half_closed: bool,
    /// How fast the service reads, KiB/s; 0: as fast as it goes.
    pub rate: u64,
    /// Bytes sent at once.
    pub chunk: usize,
    /// How often.
    pub period: Duration,
}

/// What the client's kernel knows of an upload under way.
#[derive(Debug, Default)]
pub struct Progress {
    acknowledged: AtomicU64,
    unacknowledged_max: AtomicU64,
}

impl Progress {
    /// Bytes that the other side has acknowledged, or somebody in its name.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// The most that was ever sent without being acknowledged, bytes.
    pub fn unacknowledged_max(&self) -> u64 {
        self.unacknowledged_max.load(Ordering::Relaxed)
    }

    fn note(&self, sent: u64, waiting: u64, pace: &mut Pace) {
        // Among the first that wait may be the request line.
        let acknowledged = sent.saturating_sub(waiting);
        if acknowledged > self.acknowledged.swap(acknowledged, Ordering::Relaxed) {
            pace.answered();
        }
        self.unacknowledged_max
            .fetch_max(waiting, Ordering::Relaxed);
    }
}

/// Writes until `stop` is set, and compares the service's account with its own. `progress` is kept
/// after each write.
pub fn upload(
    address: SocketAddr,
    plan: &Upload,
    progress: &Arc<Progress>,
    stop: &AtomicBool,
) -> Result<Summary> {
    let request = if plan.half_closed {
        Request::Collect(plan.id)
    } else {
        Request::Upload(plan.id, plan.rate)
    };
    let mut stream = open(address, request)?;
    if plan.half_closed {
        ensure!(
            stream.read(&mut [0])? == 0,
            "the service has closed nothing"
        );
    }
    let unacknowledged = Unacknowledged::of(&stream)?;
    let (mut content, mut ledger) = (Content::new(plan.id), Ledger::default());
    let (mut chunk, mut pace) = (vec![0; plan.chunk], Pace::new(plan.period));
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        content.fill(&mut chunk);
        let sent = ledger.account().bytes;
        stream
            .write_all(&chunk)
            .with_context(|| format!("after {sent} bytes"))?;
        ledger.add(&chunk);
        progress.note(ledger.account().bytes, unacknowledged.bytes()?, &mut pace);
    }
    let sent = ledger.account();
    stream.shutdown(Shutdown::Write)?;
    compare(address, plan, stream, &sent)?;
    Ok(summary(plan.name, sent.bytes, &pace))
}

/// The service must have read what was sent: all of it, and nothing else.
fn compare(
    address: SocketAddr,
    plan: &Upload,
    mut stream: TcpStream,
    sent: &Account,
) -> Result<()> {
    let read = if plan.half_closed {
        // It has no way left to answer on this connection.
        let all = || {
            account(address, plan.id)
                .ok()
                .filter(|read| read.bytes >= sent.bytes)
        };
        wait_for("the rest of the upload", DRAIN_PATIENCE, all)?
    } else {
        read_line(&mut stream)?.parse()?
    };
    ensure!(
        read == *sent,
        "{} bytes were sent, the service read {} or others",
        sent.bytes,
        read.bytes
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_right_to_its_last_byte_or_refused() {
        let mut bytes = vec![0; 1000];
        Content::new(1).fill(&mut bytes);
        bytes.extend(Account::expected(1, 1000).trailer());
        let read = |bytes: &[u8]| {
            let mut reading = Reading::new(1);
            bytes.chunks(7).try_for_each(|part| reading.take(part))?;
            reading.end()
        };
        assert_eq!(read(&bytes).expect("whole"), 1000);
        assert!(read(&bytes[..1039]).is_err(), "cut off");
        let without_one = [&bytes[..500], &bytes[501..]].concat();
        assert!(read(&without_one).is_err(), "a byte is missing");
        let doubled = [&bytes[..500], &bytes[499..]].concat();
        assert!(read(&doubled).is_err(), "a byte came twice");
    }
}
