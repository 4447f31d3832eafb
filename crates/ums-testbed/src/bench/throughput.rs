//! How much a service gets done while its memory is sent in rounds, beside before.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use ums_core::report::Outcome;

use super::aims::Aim;
use super::stats::Spread;
use crate::client::resp::{Connection, Reply, encode};
use crate::client::{Load, connect};
use crate::hog::Words;
use crate::testbed::Testbed;
use crate::workload::{REDIS_PORT, start_redis};

/// Values that Redis holds, and their size: 256 MiB, some two seconds of a link of 1 Gbit/s.
const VALUES: u64 = 4096;
const VALUE_LEN: usize = 64 << 10;
/// Values that are set before replies are read.
const AT_ONCE: u64 = 16;
/// Clients, each with one request under way: they keep Redis busy.
const CLIENTS: u64 = 8;
/// How long is counted before the move.
const BEFORE: Duration = Duration::from_secs(3);
/// What a client writes and reads.
const SMALL: [u8; 64] = [b'x'; 64];

/// One move of a busy Redis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThroughputSample {
    /// Which run, from 1.
    pub run: u32,
    /// Answers each second before the move.
    pub before: f64,
    /// Answers each second from the request until the freeze.
    pub during: f64,
    /// How long that was, seconds.
    pub seconds: f64,
}

/// Moves a busy Redis from `a` to `b`. Both Coordinators must run.
pub fn measure(testbed: &Testbed, run: u32) -> Result<ThroughputSample> {
    start_redis(testbed, &testbed.a)?;
    let address = SocketAddr::from((testbed.a.ip(), REDIS_PORT));
    testbed.world.in_network(|| fill(address))?;
    let clients =
        (0..CLIENTS).map(|id| Load::start(&testbed.world, move |stop| busy(address, id, stop)));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    std::thread::sleep(BEFORE);
    let asked = Instant::now();
    let report = testbed.migrate(&testbed.a, &testbed.b, "redis", &[])?;
    let answers: Result<Vec<_>> = clients.into_iter().map(Load::stop).collect();
    // Its Frontman there may still lead clients to b.
    let _ = testbed.a.ums(&["rm", "redis"])?;
    testbed.b.ums_ok(&["rm", "redis"])?;
    let error = report.error.as_deref().unwrap_or("no error is given");
    ensure!(
        report.outcome == Outcome::Completed,
        "a busy Redis did not move: {error}"
    );
    let sample = judge(answers?.concat(), began, asked).context("no answers to count")?;
    Ok(ThroughputSample { run, ..sample })
}

fn fill(address: SocketAddr) -> Result<()> {
    let mut connection = Connection::new(connect(address)?);
    let mut words = Words::new(1);
    let mut value = vec![0; VALUE_LEN];
    for first in (0..VALUES).step_by(usize::try_from(AT_ONCE)?) {
        for index in first..first + AT_ONCE {
            for eight in value.chunks_exact_mut(8) {
                eight.copy_from_slice(&words.word().to_ne_bytes());
            }
            let key = format!("large:{index}");
            connection.send(&encode(&[b"SET", key.as_bytes(), &value]))?;
        }
        for _ in 0..AT_ONCE {
            let reply = connection.reply()?;
            ensure!(reply == Reply::Simple("OK".to_owned()), "SET: {reply:?}");
        }
    }
    Ok(())
}

/// Sets and gets one after the other on one connection; when each answer came.
fn busy(address: SocketAddr, id: u64, stop: &AtomicBool) -> Result<Vec<Instant>> {
    let mut connection = Connection::new(connect(address)?);
    let key = format!("small:{id}");
    let mut answers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        connection.call(&[b"SET", key.as_bytes(), &SMALL])?;
        answers.push(Instant::now());
        let found = connection.call(&[b"GET", key.as_bytes()])?;
        answers.push(Instant::now());
        ensure!(found == Reply::Bulk(Some(SMALL.to_vec())), "GET: {found:?}");
    }
    Ok(answers)
}

/// Rates before `asked` and from there to the longest gap, which is the freeze.
fn judge(mut answers: Vec<Instant>, began: Instant, asked: Instant) -> Option<ThroughputSample> {
    answers.sort_unstable();
    let after = answers.partition_point(|came| *came < asked);
    let gaps = answers.get(after..)?.windows(2);
    let frozen = gaps.max_by_key(|pair| pair[1] - pair[0])?[0];
    let count = |from: Instant, to: Instant| {
        let within = |came: &&Instant| **came >= from && **came < to;
        let seconds = (to - from).as_secs_f64();
        (
            answers.iter().filter(within).count() as f64 / seconds,
            seconds,
        )
    };
    let ((before, _), (during, seconds)) = (count(began, asked), count(asked, frozen));
    (seconds > 0.0).then_some(ThroughputSample {
        run: 0,
        before,
        during,
        seconds,
    })
}

/// The aim: the rounds take little from the service.
pub fn aim(samples: &[ThroughputSample]) -> Aim {
    let shares = samples.iter().map(|sample| sample.during / sample.before);
    Aim::least(
        "throughput of a busy Redis of 256 MiB during the rounds, share of before",
        0.85,
        Spread::of(shares),
    )
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_rounds_end_where_the_longest_gap_begins() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let every = |from: u64, to: u64, step: usize| (from..to).step_by(step).map(at);
        let answers = every(0, 1000, 1)
            .chain(every(1000, 2001, 2))
            .chain(every(2100, 2300, 1));
        let sample = judge(answers.collect(), began, at(1000)).unwrap();
        assert!((sample.before - 1000.0).abs() < 5.0, "{sample:?}");
        assert!((sample.during - 500.0).abs() < 5.0, "{sample:?}");
        assert!((sample.seconds - 1.0).abs() < 0.01, "{sample:?}");
        assert_eq!(judge(Vec::new(), began, at(1000)), None);
    }
}
