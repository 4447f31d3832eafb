//! An HTTP client that asks for files whose content it knows, on one kept-alive connection.

use std::io::BufReader;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::held::{connect, summary};
use super::http::get;
use super::load::{Pace, Summary};
use crate::hog::Words;

/// How many files there are.
pub const COUNT: u64 = 64;

/// Words in each: 32 KiB.
const WORDS: usize = 4096;

/// The name of a file.
pub fn name(index: u64) -> String {
    format!("page{index}")
}

/// What is in it.
pub fn content(index: u64) -> Vec<u8> {
    let mut words = Words::new(index + 1);
    (0..WORDS)
        .flat_map(|_| words.word().to_le_bytes())
        .collect()
}

/// Asks for one file after the other until `stop` is set.
pub fn run(address: SocketAddr, period: Duration, stop: &AtomicBool) -> Result<Summary> {
    let mut connection = BufReader::new(connect(address)?);
    let (mut pace, mut requests) = (Pace::new(period), 0);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        let index = requests % COUNT;
        let body = get(&mut connection, &name(index));
        let body = body.with_context(|| format!("request {requests}"))?;
        ensure!(
            body == content(index),
            "request {requests}: another content"
        );
        requests += 1;
        pace.answered();
    }
    Ok(summary("pages", requests, &pace))
}

/// Asks for every file once, on a connection of its own, from the network namespace of the calling
/// thread.
pub fn all(address: SocketAddr) -> Result<()> {
    let mut connection = BufReader::new(connect(address)?);
    for index in 0..COUNT {
        let body = get(&mut connection, &name(index))?;
        ensure!(body == content(index), "{} is not what it was", name(index));
    }
    Ok(())
}
