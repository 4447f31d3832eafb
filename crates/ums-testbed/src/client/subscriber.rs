//! A Redis publisher and its subscriber, each on a connection that it keeps: every message has to
//! arrive, in order, once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::held::{connect, summary};
use super::load::{Pace, Summary};
use super::resp::{Connection, Reply, encode};

/// Where the messages go.
const CHANNEL: &[u8] = b"ums:messages";

/// Messages published at once.
const BATCH: u64 = 10;

/// Publishes until `stop` is set; a message that is lost, late or doubled is an error.
pub fn run(address: SocketAddr, period: Duration, stop: &AtomicBool) -> Result<Summary> {
    let mut subscriber = Connection::new(connect(address)?);
    let mut publisher = Connection::new(connect(address)?);
    let reply = subscriber.call(&[b"SUBSCRIBE", CHANNEL])?;
    ensure!(
        reply == Reply::Array(vec![bulk(b"subscribe"), bulk(CHANNEL), Reply::Integer(1)]),
        "SUBSCRIBE answered {reply:?}"
    );
    let (mut pace, mut published) = (Pace::new(period), 0);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        let batch = published..published + BATCH;
        let commands = batch.clone().flat_map(publish);
        publisher.send(&commands.collect::<Vec<u8>>())?;
        for number in batch {
            let receivers = publisher.reply()?;
            ensure!(
                receivers == Reply::Integer(1),
                "{receivers:?} received message {number}, not the one subscriber"
            );
            let message = subscriber.reply()?;
            let expected = [
                bulk(b"message"),
                bulk(CHANNEL),
                bulk(number.to_string().as_bytes()),
            ];
            ensure!(
                message == Reply::Array(expected.to_vec()),
                "message {number} is due, {message:?} came"
            );
            pace.answered();
        }
        published += BATCH;
    }
    // What was sent twice would come before this answer.
    let last = subscriber.call(&[b"PING"])?;
    ensure!(
        last == Reply::Array(vec![bulk(b"pong"), bulk(b"")]),
        "after {published} messages came another: {last:?}"
    );
    Ok(summary("redis subscriber", published, &pace))
}

fn publish(number: u64) -> Vec<u8> {
    encode(&[b"PUBLISH", CHANNEL, number.to_string().as_bytes()])
}

fn bulk(value: &[u8]) -> Reply {
    Reply::Bulk(Some(value.to_vec()))
}
