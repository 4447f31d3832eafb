//! An HTTP client on kept-alive connections that checks every answer.
//!
//! A request counts as failed only if it is never answered or answered wrongly: one whose
//! connection was closed under it is made again on a new connection, as browsers and proxies do
//! with requests that may be repeated (RFC 9110 section 9.2.2).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::load::{Finder, Pace, REQUEST_PATIENCE, Summary};

/// Largest answer accepted.
const BODY_LEN_MAX: usize = 64 * 1024;

/// Most header lines accepted.
const HEADERS_MAX: usize = 64;

/// What the service proves with: FNV-1a over the request's nonce and the answer's count.
pub fn checksum(nonce: &str, count: u64) -> String {
    let bytes = nonce.bytes().chain(count.to_le_bytes());
    let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    format!("{hash:016x}")
}

/// Makes requests on one connection until `stop` is set. `name` must differ between clients.
pub fn run(
    name: &str,
    addresses: &[SocketAddr],
    period: Duration,
    stop: &AtomicBool,
) -> Result<Summary> {
    let mut client = Client {
        finder: Finder::new(addresses),
        connection: None,
        last_count: 0,
    };
    let mut pace = Pace::new(period);
    let mut summary = Summary {
        name: name.to_owned(),
        ..Summary::default()
    };
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        summary.requests += 1;
        let nonce: String = format!("{name}{}", summary.requests);
        let nonce: String = nonce.chars().filter(char::is_ascii_alphanumeric).collect();
        summary.failed += u64::from(!client.request(&nonce));
        pace.answered();
    }
    summary.reconnects = client.finder.reconnects();
    summary.longest_gap_ms = pace.longest_ms();
    Ok(summary)
}

/// What a service that checks itself tells of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Health {
    /// Checks that it has made.
    pub checks: u64,
    /// Those that found damage.
    pub bad: u64,
}

/// Asks a service for its health, from the network namespace of the calling thread.
pub fn health(address: SocketAddr) -> Result<Health> {
    let mut connection = BufReader::new(Finder::new(&[address]).connect()?);
    let body = get(&mut connection, "health")?;
    serde_json::from_slice(&body).context("it does not tell its health")
}

#[derive(Deserialize)]
struct Answer {
    count: u64,
    nonce: String,
    checksum: String,
}

struct Client {
    finder: Finder,
    connection: Option<BufReader<TcpStream>>,
    last_count: u64,
}

impl Client {
    /// One request, repeated on a new connection when the connection is lost; true if it was
    /// answered rightly.
    fn request(&mut self, nonce: &str) -> bool {
        let start = Instant::now();
        while start.elapsed() < REQUEST_PATIENCE {
            match self.attempt(nonce) {
                Ok(body) => return self.is_right(nonce, &body),
                Err(_) => {
                    self.connection = None;
                    self.finder.try_next();
                }
            }
        }
        false
    }

    /// The answer must be to this request, and the service must not have begun anew.
    fn is_right(&mut self, nonce: &str, body: &[u8]) -> bool {
        let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
            return false;
        };
        let newer = answer.count > self.last_count;
        self.last_count = answer.count;
        newer && answer.nonce == nonce && answer.checksum == checksum(nonce, answer.count)
    }

    fn attempt(&mut self, nonce: &str) -> Result<Vec<u8>> {
        if self.connection.is_none() {
            self.connection = Some(BufReader::new(self.finder.connect()?));
        }
        let connection = self.connection.as_mut().context("just made")?;
        get(connection, nonce)
    }
}

/// Makes one request, and returns the answer's body.
pub(super) fn get(connection: &mut BufReader<TcpStream>, path: &str) -> Result<Vec<u8>> {
    let request = format!("GET /{path} HTTP/1.1\r\nHost: service\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes())?;
    read_answer(connection)
}

fn read_answer(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let status = read_line(reader)?;
    ensure!(status.starts_with("HTTP/1.1 200 "), "answered {status:?}");
    let mut length = None;
    for _ in 0..HEADERS_MAX {
        let line = read_line(reader)?;
        if line.is_empty() {
            let length: usize = length.context("an answer without its length")?;
            ensure!(length <= BODY_LEN_MAX, "an answer of {length} bytes");
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            return Ok(body);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse()?);
        }
    }
    anyhow::bail!("more than {HEADERS_MAX} header lines")
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.take(BODY_LEN_MAX as u64).read_line(&mut line)?;
    ensure!(line.ends_with('\n'), "the connection was closed");
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_length() {
        let mut text: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 503 No\r\n";
        assert_eq!(read_answer(&mut text).expect("whole"), b"hi");
        assert!(read_answer(&mut text).is_err(), "503 is no answer");
    }

    #[test]
    fn a_wrong_answer_is_seen() {
        let mut client = Client {
            finder: Finder::new(&[]),
            connection: None,
            last_count: 0,
        };
        let body = |nonce: &str, count| {
            let checksum = checksum(nonce, count);
            format!("{{\"count\":{count},\"nonce\":\"{nonce}\",\"checksum\":\"{checksum}\"}}")
        };
        assert!(client.is_right("a", body("a", 3).as_bytes()));
        assert!(
            !client.is_right("b", body("a", 4).as_bytes()),
            "another's answer"
        );
        assert!(
            !client.is_right("b", body("b", 2).as_bytes()),
            "the service began anew"
        );
        assert!(!client.is_right("b", b"{}"));
    }
}
