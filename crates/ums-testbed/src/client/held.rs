//! What clients that keep their connection have in common.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};

use super::load::{ANSWER_PATIENCE, Pace, REQUEST_PATIENCE, Summary};
use crate::streams::{Account, LINE_LEN_MAX, Request};

/// Opens the connection. What it does later may wait as long as a request may.
pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, ANSWER_PATIENCE)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REQUEST_PATIENCE))?;
    stream.set_write_timeout(Some(REQUEST_PATIENCE))?;
    Ok(stream)
}

/// Opens a connection to the streams service and says what it is for.
pub(crate) fn open(address: SocketAddr, request: Request) -> Result<TcpStream> {
    let mut stream = connect(address)?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    Ok(stream)
}

/// What a client tells whose connection held and whose every byte was right.
pub(crate) fn summary(name: &str, requests: u64, pace: &Pace) -> Summary {
    Summary {
        name: name.to_owned(),
        requests,
        longest_gap_ms: pace.longest_ms(),
        ..Summary::default()
    }
}

/// Asks how much of a stream the service has sent or read, from the network namespace of the
/// calling thread.
pub fn account(address: SocketAddr, id: u64) -> Result<Account> {
    ask(address, Request::Account(id))?.parse()
}

/// Lets a stream end, or run freely.
pub fn finish(address: SocketAddr, id: u64) -> Result<()> {
    ask(address, Request::Finish(id)).map(|_| ())
}

fn ask(address: SocketAddr, request: Request) -> Result<String> {
    read_line(&mut open(address, request)?).with_context(|| format!("`{request}` at {address}"))
}

/// Reads one line that ends the connection or is the last thing on it.
pub(crate) fn read_line(stream: &mut TcpStream) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stream)
        .take(LINE_LEN_MAX)
        .read_line(&mut line)?;
    ensure!(line.ends_with('\n'), "closed unanswered");
    Ok(line)
}
