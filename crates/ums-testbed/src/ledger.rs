//! The ledger: a service that tells the truth about itself for ever.
//!
//! It acknowledges a record on TCP only after it has appended it to its file in a volume, durably,
//! and keeps it in memory too. Beside records it appends a *tick*, a number and the time, every few
//! milliseconds, as long as it executes. So its file is a trail of its execution: two instances
//! that go on from the same state write the same next number at different times, into the files of
//! two systems, and neither file is then the beginning of the other ([`crate::witness`]).
//!
//! It refuses to start where a ledger lies already, and to go on when somebody else has appended.
//!
//! Lines of the file: `t NUMBER NANOSECONDS` and `r ID NANOSECONDS`, by the wall clock, which is one
//! for all namespaces of a machine. Lines of the protocol: `record ID`, answered with `ok` and the
//! id, and `verify`, answered with [`Account`] as JSON.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// How often the ledger ticks: the longest execution that leaves no trace.
pub const PERIOD: Duration = Duration::from_millis(2);

/// Name of the ledger's volume, and where it is inside.
pub const VOLUME: (&str, &str) = ("data", "/data");

/// Name of the file in the volume.
pub const FILE: &str = "ledger";

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the ledger says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Ticks written.
    pub ticks: u64,
    /// Records held in memory.
    pub records: u64,
    /// What differs between memory and file, or in memory itself; `None` when nothing does.
    pub wrong: Option<String>,
}

/// What a ledger's file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trail {
    /// The last tick; ticks count from 1 without a gap.
    pub ticks: u64,
    /// Ids of the records, as they were appended.
    pub records: Vec<u64>,
}

impl Trail {
    /// Reads a ledger's file, whose last line may be cut off.
    ///
    /// # Errors
    /// When a line is no line of a ledger, or ticks do not follow each other: then an instance went
    /// on from a state that was not the last one.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut trail = Self::default();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        let text = std::str::from_utf8(&bytes[..whole.map_or(0, |end| end + 1)])?;
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["t", number, _] => {
                    let number: u64 = number.parse()?;
                    ensure!(
                        number == trail.ticks + 1,
                        "tick {number} follows tick {}",
                        trail.ticks
                    );
                    trail.ticks = number;
                }
                ["r", id, _] => trail.records.push(id.parse()?),
                _ => bail!("`{line}` is no line of a ledger"),
            }
        }
        Ok(trail)
    }
}

/// The earliest time at which it can have gone on at `offset`, nanoseconds since the Unix epoch: what
/// the second line there says. The first one may bear a time that was read before a freeze.
pub fn time_after(bytes: &[u8], offset: usize) -> Option<u64> {
    let rest = std::str::from_utf8(bytes.get(offset..)?).ok()?;
    let mut whole = rest
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole.nth(1)?.trim().rsplit(' ').next()?.parse().ok()
}

/// Asks the ledger at `address`, from the network namespace of the calling thread.
pub fn verify(address: SocketAddr) -> Result<Account> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("cannot reach the ledger at {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"verify\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("the ledger answered `{}`", line.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_is_read_up_to_its_last_whole_line() {
        let trail = Trail::read(b"t 1 10\nr 1 11\nt 2 12\nr 2").expect("a trail");
        assert_eq!((trail.ticks, trail.records), (2, vec![1]));
        assert_eq!(Trail::read(b"").expect("an empty one"), Trail::default());
    }

    #[test]
    fn a_trail_that_goes_on_from_an_old_state_is_refused() {
        for bad in ["t 1 10\nt 2 11\nt 2 12\n", "t 1 10\nt 3 11\n", "x 1 2\n"] {
            assert!(Trail::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_second_line_tells_when_it_went_on() {
        let bytes = b"t 1 10\nt 2 12\nt 3 14\nt 4";
        assert_eq!(time_after(bytes, 7), Some(14));
        assert_eq!(time_after(bytes, 14), None);
        assert_eq!(time_after(bytes, bytes.len() + 1), None);
    }
}
