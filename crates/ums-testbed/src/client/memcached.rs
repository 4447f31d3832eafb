//! A client of memcached, in its text protocol (`protocol.txt` of its source), on one connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::held::{connect, summary};
use super::load::{Pace, Summary};
use crate::hog::Words;

/// Values set before their answers are read.
const BATCH: u64 = 500;

/// Longest line accepted.
const LINE_LEN_MAX: u64 = 1024;

/// Words in a value.
const WORDS: usize = 64;

/// Sets `count` values.
pub fn set(address: SocketAddr, count: u64) -> Result<()> {
    let mut connection = Connection::open(address)?;
    for first in (0..count).step_by(BATCH as usize) {
        let indexes = first..count.min(first + BATCH);
        let commands: Vec<u8> = indexes
            .clone()
            .flat_map(|index| set_command(&key(index), &value(index)))
            .collect();
        connection.send(&commands)?;
        for _ in indexes {
            connection.expect("STORED")?;
        }
    }
    Ok(())
}

/// Compares `count` values with what was set; returns how many are missing or different.
pub fn wrong(address: SocketAddr, count: u64) -> Result<u64> {
    let mut connection = Connection::open(address)?;
    let mut wrong = 0;
    for index in 0..count {
        let found = connection.get(&key(index))?;
        wrong += u64::from(found.as_deref() != Some(&value(index)[..]));
    }
    Ok(wrong)
}

/// Increments a number of its own and replaces a value until `stop` is set. `name` must differ
/// between clients.
pub fn run(
    name: &str,
    address: SocketAddr,
    period: Duration,
    stop: &AtomicBool,
) -> Result<Summary> {
    let mut connection = Connection::open(address)?;
    let (number, changing) = (format!("number:{name}"), format!("changing:{name}"));
    connection.send(&set_command(&number, b"0"))?;
    connection.expect("STORED")?;
    let (mut pace, mut rounds) = (Pace::new(period), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        rounds += 1;
        connection.send(format!("incr {number} 1\r\n").as_bytes())?;
        connection.expect(&rounds.to_string())?;
        connection.send(&set_command(&changing, &value(rounds)))?;
        connection.expect("STORED")?;
        let found = connection.get(&changing)?;
        ensure!(
            found.as_deref() == Some(&value(rounds)[..]),
            "round {rounds}: another value"
        );
        pace.answered();
    }
    Ok(summary("memcached", rounds, &pace))
}

fn key(index: u64) -> String {
    format!("key:{index:08}")
}

fn value(index: u64) -> Vec<u8> {
    let mut words = Words::new(index + 1);
    (0..WORDS)
        .flat_map(|_| words.word().to_le_bytes())
        .collect()
}

fn set_command(key: &str, value: &[u8]) -> Vec<u8> {
    let head = format!("set {key} 0 0 {}\r\n", value.len());
    [head.as_bytes(), value, b"\r\n"].concat()
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        Ok(Self(BufReader::new(connect(address)?)))
    }

    fn send(&mut self, commands: &[u8]) -> Result<()> {
        self.0.get_mut().write_all(commands).context("cannot send")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.by_ref().take(LINE_LEN_MAX).read_line(&mut line)?;
        let whole = line.strip_suffix("\r\n").map(str::to_owned);
        whole.context("memcached closed the connection")
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(
            line == expected,
            "memcached answered {line}, not {expected}"
        );
        Ok(())
    }

    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        self.send(format!("get {key}\r\n").as_bytes())?;
        let line = self.line()?;
        if line == "END" {
            return Ok(None);
        }
        let head = format!("VALUE {key} 0 ");
        let length = line.strip_prefix(&head).context("not a value")?;
        let length: usize = length.parse()?;
        ensure!(length <= WORDS * 8, "a value of {length} bytes");
        let mut value = vec![0; length + 2];
        self.0.read_exact(&mut value)?;
        value.truncate(length);
        self.expect("END")?;
        Ok(Some(value))
    }
}
