//! The part of the Redis protocol (RESP2) that the clients need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};

/// Longest line and largest value accepted: far above what the clients store.
const LEN_MAX: usize = 1 << 20;

/// A connection to a Redis server.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

/// An answer of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Simple(String),
    /// An integer.
    Integer(i64),
    /// A value, or none.
    Bulk(Option<Vec<u8>>),
    /// Several replies.
    Array(Vec<Reply>),
}

impl Connection {
    /// Speaks on an open stream, keeping its timeouts.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            reader: BufReader::new(stream),
        }
    }

    /// Sends one command and waits for its reply.
    pub fn call(&mut self, command: &[&[u8]]) -> Result<Reply> {
        self.send(&encode(command))?;
        self.reply()
    }

    /// Sends encoded commands.
    pub fn send(&mut self, commands: &[u8]) -> Result<()> {
        self.reader
            .get_mut()
            .write_all(commands)
            .context("cannot send to Redis")
    }

    /// Reads one reply; an error reply is an error.
    pub fn reply(&mut self) -> Result<Reply> {
        read_reply(&mut self.reader)
    }
}

/// Encodes a command as the protocol wants it, to be sent alone or with others.
pub fn encode(command: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn read_reply(reader: &mut impl BufRead) -> Result<Reply> {
    let line = read_line(reader)?;
    let (kind, rest) = line.split_at_checked(1).context("an empty reply")?;
    match kind {
        "+" => Ok(Reply::Simple(rest.to_owned())),
        "-" => bail!("Redis refused: {rest}"),
        ":" => Ok(Reply::Integer(rest.parse()?)),
        "$" if rest == "-1" => Ok(Reply::Bulk(None)),
        "$" => {
            let mut value = vec![0; length(rest)? + 2];
            reader.read_exact(&mut value)?;
            ensure!(value.ends_with(b"\r\n"), "a value without its end");
            value.truncate(value.len() - 2);
            Ok(Reply::Bulk(Some(value)))
        }
        "*" => (0..length(rest)?)
            .map(|_| read_reply(reader))
            .collect::<Result<_>>()
            .map(Reply::Array),
        _ => bail!("not a reply: {line:?}"),
    }
}

fn length(text: &str) -> Result<usize> {
    let length: usize = text
        .parse()
        .with_context(|| format!("not a length: {text:?}"))?;
    ensure!(length <= LEN_MAX, "a reply of {length} bytes");
    Ok(length)
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    let count = reader
        .take(LEN_MAX as u64)
        .read_line(&mut line)
        .context("cannot read from Redis")?;
    ensure!(count > 0, "Redis closed the connection");
    line.strip_suffix("\r\n")
        .map(str::to_owned)
        .context("a line without its end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_encoded_as_arrays_of_strings() {
        assert_eq!(
            encode(&[b"GET", b"key"]),
            b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n"
        );
    }

    #[test]
    fn every_kind_of_reply_is_read() {
        let mut text: &[u8] = b"+OK\r\n:7\r\n$-1\r\n*2\r\n$1\r\nx\r\n$0\r\n\r\n";
        assert_eq!(
            read_reply(&mut text).expect("simple"),
            Reply::Simple("OK".to_owned())
        );
        assert_eq!(read_reply(&mut text).expect("integer"), Reply::Integer(7));
        assert_eq!(read_reply(&mut text).expect("none"), Reply::Bulk(None));
        let parts = vec![
            Reply::Bulk(Some(b"x".to_vec())),
            Reply::Bulk(Some(Vec::new())),
        ];
        assert_eq!(read_reply(&mut text).expect("array"), Reply::Array(parts));
        assert!(read_reply(&mut text).is_err(), "the end is no reply");
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in [
            "?\r\n",
            "$99999999999\r\n",
            ":x\r\n",
            "$3\r\nabcdef",
            "-ERR no\r\n",
            "+OK\n",
        ] {
            assert!(read_reply(&mut text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
