//! Many keys, set once, compared after each move.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};

use super::load::Finder;
use super::resp::{Connection, Reply, encode};
use crate::hog::Words;

/// Commands sent before their replies are read: enough to fill a round trip.
const BATCH: u64 = 1000;

/// Sets `count` keys.
pub fn set(addresses: &[SocketAddr], count: u64) -> Result<()> {
    let mut connection = Connection::new(Finder::new(addresses).connect()?);
    in_batches(count, |indexes| {
        let commands: Vec<u8> = indexes
            .clone()
            .flat_map(|index| encode(&[b"SET", key(index).as_bytes(), value(index).as_bytes()]))
            .collect();
        connection.send(&commands)?;
        for _ in indexes {
            let reply = connection.reply()?;
            ensure!(
                reply == Reply::Simple("OK".to_owned()),
                "SET answered {reply:?}"
            );
        }
        Ok(())
    })
}

/// Compares `count` keys with what was set; returns how many are missing or different.
pub fn wrong(addresses: &[SocketAddr], count: u64) -> Result<u64> {
    let mut connection = Connection::new(Finder::new(addresses).connect()?);
    let mut wrong = 0;
    in_batches(count, |indexes| {
        let commands: Vec<u8> = indexes
            .clone()
            .flat_map(|index| encode(&[b"GET", key(index).as_bytes()]))
            .collect();
        connection.send(&commands)?;
        for index in indexes {
            let Reply::Bulk(found) = connection.reply()? else {
                bail!("GET answered no value")
            };
            wrong += u64::from(found.as_deref() != Some(value(index).as_bytes()));
        }
        Ok(())
    })?;
    Ok(wrong)
}

fn in_batches(count: u64, mut work: impl FnMut(std::ops::Range<u64>) -> Result<()>) -> Result<()> {
    (0..count)
        .step_by(BATCH as usize)
        .try_for_each(|first| work(first..count.min(first + BATCH)))
}

fn key(index: u64) -> String {
    format!("key:{index:08}")
}

fn value(index: u64) -> String {
    let mut words = Words::new(index + 1);
    format!("{:016x}{:016x}", words.word(), words.word())
}
