//! The streams service: what it is asked, and how each byte it sends or reads is told from every
//! other.
//!
//! A connection begins with one line, a [`Request`]. A stream has an id, from which both sides make
//! its bytes, so that each can check every one that the other sends; an [`Account`] says how many
//! there were, and their BLAKE3 hash.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::hog::Words;

/// Longest request line: a word and two numbers, with room to spare.
pub const LINE_LEN_MAX: u64 = 128;

/// Bytes at a stream's end: its count and its hash.
pub const TRAILER_LEN: usize = 8 + blake3::OUT_LEN;

/// The datagram that the service sends before anything else to the server that it calls.
pub const GREETING: &[u8] = b"started";

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Send everything back.
    Echo,
    /// Send the stream of this id at this rate (KiB/s; 0: as fast as it goes) until it is
    /// finished, then its account, in [`TRAILER_LEN`] bytes.
    Download(u64, u64),
    /// Read to the end, at this rate until it is finished, then answer with the account.
    Upload(u64, u64),
    /// Close this direction at once, and read to the end; the account has to be asked for.
    Collect(u64),
    /// Tell how much of a stream there was until now.
    Account(u64),
    /// Let a stream end if it is sent, and run freely if it is read.
    Finish(u64),
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => write!(f, "echo"),
            Self::Download(id, rate) => write!(f, "download {id} {rate}"),
            Self::Upload(id, rate) => write!(f, "upload {id} {rate}"),
            Self::Collect(id) => write!(f, "collect {id}"),
            Self::Account(id) => write!(f, "account {id}"),
            Self::Finish(id) => write!(f, "finish {id}"),
        }
    }
}

impl FromStr for Request {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let word = words.next().context("an empty request")?;
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>()?;
        Ok(match (word, numbers[..].as_ref()) {
            ("echo", []) => Self::Echo,
            ("download", &[id, rate]) => Self::Download(id, rate),
            ("upload", &[id, rate]) => Self::Upload(id, rate),
            ("collect", &[id]) => Self::Collect(id),
            ("account", &[id]) => Self::Account(id),
            ("finish", &[id]) => Self::Finish(id),
            _ => bail!("not a request: {line:?}"),
        })
    }
}

/// The bytes of one stream, in order.
#[derive(Debug, Clone)]
pub struct Content {
    words: Words,
    word: [u8; 8],
    /// Bytes of `word` that are used up.
    used: usize,
}

impl Content {
    /// From the beginning.
    pub fn new(id: u64) -> Self {
        Self {
            // Ids are small numbers; the generator wants seeds with many bits set.
            words: Words::new((id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            word: [0; 8],
            used: 8,
        }
    }

    /// The next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            if self.used == self.word.len() {
                (self.word, self.used) = (self.words.word().to_le_bytes(), 0);
            }
            *byte = self.word[self.used];
            self.used += 1;
        }
    }

    /// Whether these are the next bytes.
    pub fn is_next(&mut self, bytes: &[u8]) -> bool {
        let mut expected = vec![0; bytes.len()];
        self.fill(&mut expected);
        expected == bytes
    }
}

/// How much of a stream was sent or read, and its hash until there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3 of them.
    pub hash: blake3::Hash,
}

impl Account {
    /// Of the stream's first bytes, as they have to be.
    pub fn expected(id: u64, bytes: u64) -> Self {
        let (mut content, mut ledger, mut left) = (Content::new(id), Ledger::default(), bytes);
        let mut buffer = [0; 4096];
        while left > 0 {
            let count = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            content.fill(&mut buffer[..count]);
            ledger.add(&buffer[..count]);
            left -= count as u64;
        }
        ledger.account()
    }

    /// As it stands at the end of a download.
    pub fn trailer(&self) -> [u8; TRAILER_LEN] {
        let mut trailer = [0; TRAILER_LEN];
        trailer[..8].copy_from_slice(&self.bytes.to_le_bytes());
        trailer[8..].copy_from_slice(self.hash.as_bytes());
        trailer
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bytes, self.hash)
    }
}

impl FromStr for Account {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let words = line.trim_end().split_once(' ');
        let (bytes, hash) = words.with_context(|| format!("not an account: {line:?}"))?;
        Ok(Self {
            bytes: bytes.parse()?,
            hash: hash.parse()?,
        })
    }
}

/// Keeps a stream's account.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    hasher: blake3::Hasher,
}

impl Ledger {
    /// More bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Until now.
    pub fn account(&self) -> Account {
        Account {
            bytes: self.hasher.count(),
            hash: self.hasher.finalize(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let requests = [
            Request::Echo,
            Request::Download(1, 2),
            Request::Upload(3, 0),
            Request::Collect(4),
            Request::Account(5),
            Request::Finish(6),
        ];
        for request in requests {
            assert_eq!(request.to_string().parse::<Request>().ok(), Some(request));
        }
        let account = Account::expected(1, 5000);
        assert_eq!(account.to_string().parse::<Account>().ok(), Some(account));
        for nonsense in ["", "echo 1", "download 1", "upload x 1", "account -1"] {
            assert!(nonsense.parse::<Request>().is_err(), "{nonsense:?}");
        }
    }

    #[test]
    fn content_is_the_same_however_it_is_cut_and_differs_between_streams() {
        let mut whole = [0; 100];
        Content::new(7).fill(&mut whole);
        let mut cut = Content::new(7);
        assert!(cut.is_next(&whole[..3]) && cut.is_next(&whole[3..50]));
        assert!(!cut.is_next(&whole[51..60]), "a byte is missing");
        assert!(!Content::new(8).is_next(&whole));
    }

    #[test]
    fn an_account_is_of_every_byte() {
        let mut ledger = Ledger::default();
        let (mut content, mut bytes) = (Content::new(3), [0; 777]);
        content.fill(&mut bytes);
        ledger.add(&bytes);
        assert_eq!(ledger.account(), Account::expected(3, 777));
        bytes[5] ^= 1;
        let mut other = Ledger::default();
        other.add(&bytes);
        assert_ne!(other.account(), Account::expected(3, 777));
    }
}
