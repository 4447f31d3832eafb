//! What a client sees of a move: one that asks all the time, from before it until after it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::stats::quantile;
use crate::client::Load;
use crate::hog::Request;
use crate::namespace::Namespace;

/// How often it asks: the gap is known that well.
const PERIOD: Duration = Duration::from_millis(1);
/// How long one attempt to connect may take.
const CONNECT_WITHIN: Duration = Duration::from_millis(100);
/// How long it asks before the move.
pub const LEAD: Duration = Duration::from_secs(5);
/// How long it asks after the move.
pub const TAIL: Duration = Duration::from_secs(10);

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When it was asked for.
    pub asked: Instant,
    /// When it came.
    pub came: Instant,
}

/// What it saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// The longest time between two answers, milliseconds.
    pub gap_ms: f64,
    /// Before that gap, 99 of 100 answers took at most so long, milliseconds.
    pub before_p99_ms: f64,
    /// The same for those after it.
    pub after_p99_ms: f64,
}

/// Clients that ask, each from another network namespace; a service answers in one of them at a time.
#[derive(Debug)]
pub struct Clients(Vec<Load<Vec<Answer>>>);

impl Clients {
    /// Starts one client in each of these places, and returns after [`LEAD`].
    ///
    /// `patience` is how long one may wait for an answer on a connection that stays open before it tries
    /// another one.
    pub fn start(places: &[(&Namespace, SocketAddr)], patience: Duration) -> Result<Self> {
        let start = |(namespace, address): &(&Namespace, SocketAddr)| {
            let address = *address;
            Load::start(namespace, move |stop| Ok(ask(address, patience, stop)))
        };
        let clients = places.iter().map(start).collect::<Result<_>>()?;
        std::thread::sleep(LEAD);
        Ok(Self(clients))
    }

    /// Lets them ask on for [`TAIL`], and tells what they saw; `None` when they have had no answer before
    /// or after.
    pub fn stop(self) -> Result<Option<Seen>> {
        std::thread::sleep(TAIL);
        let all: Result<Vec<Vec<Answer>>> = self.0.into_iter().map(Load::stop).collect();
        Ok(judge(all?.concat()))
    }
}

/// Asks on one connection after the other until `stop` is set.
fn ask(address: SocketAddr, patience: Duration, stop: &AtomicBool) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        if connection.is_none() {
            connection = connect(address, patience);
        }
        match connection.as_mut().map(exchange) {
            Some(Ok(())) => answers.push(Answer {
                asked,
                came: Instant::now(),
            }),
            _ => connection = None,
        }
        std::thread::sleep(PERIOD);
    }
    answers
}

fn connect(address: SocketAddr, patience: Duration) -> Option<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_WITHIN).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    Some(BufReader::new(stream))
}

fn exchange(connection: &mut BufReader<TcpStream>) -> Result<()> {
    let line = format!("{}\n", Request::Ping.word());
    connection.get_mut().write_all(line.as_bytes())?;
    let mut answer = String::new();
    match connection.read_line(&mut answer)? {
        0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        _ => Ok(()),
    }
}

/// What these answers, of all clients, tell.
fn judge(mut answers: Vec<Answer>) -> Option<Seen> {
    answers.sort_by_key(|answer| answer.came);
    let gap = |at: usize| answers[at].came.duration_since(answers[at - 1].came);
    let widest = (1..answers.len()).max_by_key(|at| gap(*at))?;
    let p99 = |answers: &[Answer]| {
        let took = |answer: &Answer| answer.came.duration_since(answer.asked);
        let mut all: Vec<f64> = answers.iter().map(|one| ms(took(one))).collect();
        all.sort_by(f64::total_cmp);
        quantile(&all, 0.99)
    };
    // The one that ends the gap is the gap.
    let (before, after) = (
        &answers[..widest],
        &answers[(widest + 1).min(answers.len())..],
    );
    Some(Seen {
        gap_ms: ms(gap(widest)),
        before_p99_ms: p99(before)?,
        after_p99_ms: p99(after)?,
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_gap_is_the_longest_time_without_an_answer_from_anybody() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let answer = |asked, came| Answer {
            asked: at(asked),
            came: at(came),
        };
        // The last answer of one, the first of the other, whichever comes first in the list.
        let answers = vec![
            answer(400, 402),
            answer(403, 407),
            answer(0, 1),
            answer(1, 2),
            answer(200, 300),
        ];
        let seen = judge(answers).expect("answers");
        assert!((seen.gap_ms - 298.0).abs() < 1e-6, "{seen:?}");
        assert!((seen.before_p99_ms - 1.0).abs() < 1e-6, "{seen:?}");
        assert!((seen.after_p99_ms - 3.98).abs() < 1e-6, "{seen:?}");
    }

    #[test]
    fn who_never_hears_again_has_seen_nothing() {
        let began = Instant::now();
        let only = Answer {
            asked: began,
            came: began,
        };
        assert_eq!(judge(Vec::new()), None);
        assert_eq!(judge(vec![only]), None);
        assert_eq!(judge(vec![only, only]), None);
    }
}
