//! A client that increments a counter at a steady rate and knows whether each increment was
//! applied exactly once.
//!
//! It is the counter's only writer, so the counter's value tells it, after a connection was
//! lost, whether the increment in flight was applied. A value below what was acknowledged is a
//! lost increment, one above what was sent is one applied twice.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::load::{Finder, Pace, REQUEST_PATIENCE, Summary};
use super::resp::{Connection, Reply};

/// The key it increments where nobody says otherwise.
const KEY: &str = "ums:counter";

/// What the client found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    /// What it saw.
    pub summary: Summary,
    /// Increments acknowledged but not in the counter.
    pub lost: u64,
    /// Increments in the counter beyond those made.
    pub doubled: u64,
    /// The counter's value, as it should be and was at the end.
    pub value: u64,
}

/// Increments until `stop` is set.
pub fn run(addresses: &[SocketAddr], period: Duration, stop: &AtomicBool) -> Result<Counted> {
    run_key(KEY, addresses, period, stop)
}

/// The same with a key that nobody else increments.
pub fn run_key(
    key: &'static str,
    addresses: &[SocketAddr],
    period: Duration,
    stop: &AtomicBool,
) -> Result<Counted> {
    let mut client = Client::connect(key, addresses)?;
    let mut pace = Pace::new(period);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        client.increment();
        pace.answered();
    }
    let value = client.read()?;
    client.compare(value, 0..=0);
    let summary = Summary {
        name: "redis counter".to_owned(),
        requests: client.requests,
        failed: client.failed,
        reconnects: client.finder.reconnects(),
        longest_gap_ms: pace.longest_ms(),
    };
    Ok(Counted {
        summary,
        lost: client.lost,
        doubled: client.doubled,
        value,
    })
}

struct Client {
    key: &'static str,
    finder: Finder,
    connection: Option<Connection>,
    /// The counter's value as acknowledged.
    expected: u64,
    requests: u64,
    failed: u64,
    lost: u64,
    doubled: u64,
}

impl Client {
    fn connect(key: &'static str, addresses: &[SocketAddr]) -> Result<Self> {
        let finder = Finder::new(addresses);
        let mut client = Self {
            key,
            finder,
            connection: None,
            expected: 0,
            requests: 0,
            failed: 0,
            lost: 0,
            doubled: 0,
        };
        client.expected = client.read()?;
        Ok(client)
    }

    /// Makes one increment, and goes on until it knows that it was applied, or gives up.
    fn increment(&mut self) {
        self.requests += 1;
        let start = Instant::now();
        let mut in_flight = false;
        while start.elapsed() < REQUEST_PATIENCE {
            match self.attempt(&mut in_flight) {
                Ok(true) => return,
                Ok(false) => {}
                Err(_) => {
                    self.connection = None;
                    self.finder.try_next();
                }
            }
        }
        self.failed += 1;
    }

    /// One try; true once the increment is known to be applied. `in_flight` says whether an
    /// earlier try may have been.
    fn attempt(&mut self, in_flight: &mut bool) -> Result<bool> {
        if *in_flight {
            let value = self.read()?;
            *in_flight = false;
            let applied = value > self.expected;
            self.compare(value, 0..=1);
            return Ok(applied);
        }
        let key = self.key.as_bytes();
        let connection = self.connection()?;
        *in_flight = true;
        let Reply::Integer(value) = connection.call(&[b"INCR", key])? else {
            bail!("no integer")
        };
        *in_flight = false;
        let value = u64::try_from(value).context("a negative counter")?;
        self.compare(value, 1..=1);
        Ok(true)
    }

    /// Judges a value that is due to contain `new` increments beyond those acknowledged. What is
    /// found wrong is counted once: the value found is the new truth.
    fn compare(&mut self, value: u64, new: RangeInclusive<u64>) {
        self.lost += (self.expected + new.start()).saturating_sub(value);
        self.doubled += value.saturating_sub(self.expected + new.end());
        self.expected = value;
    }

    fn read(&mut self) -> Result<u64> {
        let key = self.key.as_bytes();
        let reply = self.connection()?.call(&[b"GET", key])?;
        let Reply::Bulk(value) = reply else {
            bail!("GET answered {reply:?}")
        };
        let text = value.map_or(Ok("0".to_owned()), String::from_utf8)?;
        text.parse()
            .with_context(|| format!("the counter is {text:?}"))
    }

    fn connection(&mut self) -> Result<&mut Connection> {
        if self.connection.is_none() {
            self.connection = Some(Connection::new(self.finder.connect()?));
        }
        self.connection.as_mut().context("just made")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(expected: u64) -> Client {
        Client {
            key: KEY,
            finder: Finder::new(&[]),
            connection: None,
            expected,
            requests: 0,
            failed: 0,
            lost: 0,
            doubled: 0,
        }
    }

    #[test]
    fn an_increment_in_flight_may_or_may_not_be_applied() {
        let mut one = client(5);
        one.compare(6, 0..=1);
        one.compare(6, 0..=1);
        assert_eq!((one.expected, one.lost, one.doubled), (6, 0, 0));
    }

    #[test]
    fn lost_and_doubled_increments_are_found() {
        let mut one = client(5);
        one.compare(3, 0..=0);
        assert_eq!((one.lost, one.doubled), (2, 0));
        one.compare(3, 1..=1);
        assert_eq!(
            (one.lost, one.doubled),
            (3, 0),
            "an acknowledged one is missing"
        );
        one.compare(6, 0..=1);
        assert_eq!((one.lost, one.doubled), (3, 2));
    }
}
