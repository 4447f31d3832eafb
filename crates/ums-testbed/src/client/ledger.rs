//! A client that has a ledger write down numbered records, one after the other, and knows which of
//! them were acknowledged.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::{Finder, Pace, Summary};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the client knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    /// What it saw.
    pub summary: Summary,
    /// Records 1 to this one were acknowledged. The next one may have been asked for.
    pub acknowledged: u64,
}

/// Has records written until `stop` is set. A record whose answer was lost is asked for again: the
/// ledger knows what it has.
pub fn run(addresses: &[SocketAddr], period: Duration, stop: &AtomicBool) -> Result<Recorded> {
    let mut finder = Finder::new(addresses);
    let mut pace = Pace::new(period);
    let mut connection = None;
    let mut acknowledged = 0;
    let mut failed = 0;
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        match record(&mut finder, &mut connection, acknowledged + 1) {
            Ok(()) => {
                acknowledged += 1;
                pace.answered();
            }
            Err(_) => {
                failed += 1;
                connection = None;
                finder.try_next();
            }
        }
    }
    let summary = Summary {
        name: "ledger".to_owned(),
        requests: acknowledged,
        failed,
        reconnects: finder.reconnects(),
        longest_gap_ms: pace.longest_ms(),
    };
    Ok(Recorded {
        summary,
        acknowledged,
    })
}

fn record(
    finder: &mut Finder,
    connection: &mut Option<BufReader<TcpStream>>,
    id: u64,
) -> Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = finder.connect_once()?;
            // A service that is frozen for long is none to turn away from.
            stream.set_read_timeout(Some(PATIENCE))?;
            connection.insert(BufReader::new(stream))
        }
    };
    stream
        .get_mut()
        .write_all(format!("record {id}\n").as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    ensure!(
        line.trim() == format!("ok {id}"),
        "the ledger answered `{line}`"
    );
    Ok(())
}
