//! The memory hog: a process that fills memory with random data, and writes down the time every
//! millisecond, so that it can tell afterwards how long it did not run.
//!
//! It answers lines on TCP with one JSON value each: `status`, `reset` (forget the gaps seen),
//! `verify` (compare every word of the memory with what was written), `ping` (at once).

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// How often the hog writes down the time.
pub const PERIOD: Duration = Duration::from_millis(1);

/// Longest wait for an answer: verifying 1 GiB in an unoptimised build takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the hog knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Times written down since it started.
    pub stamps: u64,
    /// The last one, nanoseconds of the wall clock.
    pub last_ns: u64,
    /// The longest time between two since the last reset, milliseconds.
    pub largest_gap_ms: f64,
    /// When that gap began, nanoseconds of the wall clock.
    pub gap_began_ns: u64,
    /// Random data held, MiB.
    pub mib: u64,
    /// Whether the memory is as it was written; `None` unless that was asked.
    pub intact: Option<bool>,
}

/// A request to the hog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// How it is.
    Status,
    /// Forget the gaps seen.
    Reset,
    /// Compare the memory with what was written.
    Verify,
    /// Whether it is there.
    Ping,
}

impl Request {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Reset => "reset",
            Self::Verify => "verify",
            Self::Ping => "ping",
        }
    }

    /// The request of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Status, Self::Reset, Self::Verify, Self::Ping]
            .into_iter()
            .find(|known| known.word() == word)
    }
}

/// Asks the hog at `address`, from the network namespace of the calling thread.
pub fn ask(address: SocketAddr, request: Request) -> Result<Status> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("cannot reach the hog at {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", request.word()).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    ensure!(
        !line.is_empty(),
        "the hog at {address} closed the connection unanswered"
    );
    serde_json::from_str(&line).with_context(|| format!("the hog answered `{}`", line.trim()))
}

/// A stream of random words that can be made again: xorshift64 (Marsaglia).
#[derive(Debug, Clone)]
pub struct Words(u64);

impl Words {
    /// The stream of this seed; zero would yield nothing but zeros and is replaced.
    pub fn new(seed: u64) -> Self {
        Self(if seed == 0 {
            0x9E37_79B9_7F4A_7C15
        } else {
            seed
        })
    }

    /// The next word.
    #[inline]
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The longest time between two stamps, and when it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Stamps seen.
    pub stamps: u64,
    /// The last stamp, nanoseconds.
    pub last_ns: u64,
    /// The longest gap, nanoseconds.
    pub largest_ns: u64,
    /// The stamp before it.
    pub began_ns: u64,
}

impl Gaps {
    /// Takes one more stamp.
    pub fn stamp(&mut self, now_ns: u64) {
        let gap = now_ns.saturating_sub(self.last_ns);
        if self.stamps > 0 && gap > self.largest_ns {
            (self.largest_ns, self.began_ns) = (gap, self.last_ns);
        }
        self.stamps += 1;
        self.last_ns = now_ns;
    }

    /// Forgets the gaps, but not when the last stamp was.
    pub fn reset(&mut self) {
        (self.largest_ns, self.began_ns) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gap_is_kept_until_it_is_forgotten() {
        let mut gaps = Gaps::default();
        for now in [1_000, 1_010, 1_050, 1_060] {
            gaps.stamp(now);
        }
        assert_eq!((gaps.largest_ns, gaps.began_ns), (40, 1_010));
        gaps.reset();
        gaps.stamp(1_090);
        assert_eq!((gaps.largest_ns, gaps.began_ns), (30, 1_060));
    }

    #[test]
    fn words_can_be_made_again_and_do_not_compress() {
        let words = |seed| {
            let mut words = Words::new(seed);
            (0..4096).map(move |_| words.word())
        };
        assert!(words(7).eq(words(7)));
        let distinct: std::collections::BTreeSet<u64> = words(7).collect();
        assert_eq!(distinct.len(), 4096);
    }
}
