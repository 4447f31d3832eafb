//! A Redis client that sends its next batch of writes before the last one is answered: no write may
//! be lost, doubled or out of order.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::held::{connect, summary};
use super::load::{Pace, Summary};
use super::resp::{Connection, Reply, encode};

/// A number that each write increments.
const COUNTER: &[u8] = b"ums:pipeline:counter";

/// A list to which each write appends its number.
const LIST: &[u8] = b"ums:pipeline:list";

/// Writes in a batch, each of two commands.
const BATCH: i64 = 25;

/// Elements read at once when the list is compared.
const PAGE: i64 = 1000;

/// Writes until `stop` is set, then compares all that Redis has with all that was sent.
pub fn run(address: SocketAddr, period: Duration, stop: &AtomicBool) -> Result<Summary> {
    let mut connection = Connection::new(connect(address)?);
    let (mut pace, mut sent, mut answered) = (Pace::new(period), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        let batch: Vec<u8> = (sent + 1..=sent + BATCH).flat_map(write).collect();
        connection.send(&batch)?;
        sent += BATCH;
        // One batch is always under way.
        read_answers(&mut connection, &mut pace, &mut answered, sent - BATCH)?;
    }
    read_answers(&mut connection, &mut pace, &mut answered, sent)?;
    compare(&mut connection, sent)?;
    Ok(summary("redis pipeline", 2 * sent.unsigned_abs(), &pace))
}

fn write(number: i64) -> Vec<u8> {
    let append = encode(&[b"RPUSH", LIST, number.to_string().as_bytes()]);
    [encode(&[b"INCR", COUNTER]), append].concat()
}

/// Both commands answer with what there is now: the number of this write.
fn read_answers(
    connection: &mut Connection,
    pace: &mut Pace,
    answered: &mut i64,
    until: i64,
) -> Result<()> {
    while *answered < until {
        *answered += 1;
        for command in ["INCR", "RPUSH"] {
            let reply = connection.reply()?;
            ensure!(
                reply == Reply::Integer(*answered),
                "{command} number {answered} answered {reply:?}"
            );
        }
        pace.answered();
    }
    Ok(())
}

fn compare(connection: &mut Connection, count: i64) -> Result<()> {
    for first in (0..count).step_by(PAGE as usize) {
        let range = [first, first + PAGE - 1].map(|index| index.to_string());
        let found =
            connection.call(&[b"LRANGE", LIST, range[0].as_bytes(), range[1].as_bytes()])?;
        let expected = (first + 1..=count.min(first + PAGE))
            .map(|number| Reply::Bulk(Some(number.to_string().into_bytes())));
        ensure!(
            found == Reply::Array(expected.collect()),
            "the list differs from what was sent, from element {first} on"
        );
    }
    let length = connection.call(&[b"LLEN", LIST])?;
    ensure!(
        length == Reply::Integer(count),
        "{count} were sent, the list has {length:?}"
    );
    Ok(())
}
