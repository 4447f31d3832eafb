//! A small HTTP/1.1 service: counts what it answers, and proves that the answer is to the request.
//!
//! `GET /<nonce>` is answered with `{"count":…,"nonce":"…","checksum":"…"}`.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use clap::Parser;
use ums_testbed::client::http::checksum;

/// Connections served at once; one more is closed at once.
const CONNECTIONS_MAX: usize = 256;

/// Longest line of a request.
const LINE_LEN_MAX: u64 = 8 * 1024;

/// Most header lines of a request.
const HEADERS_MAX: usize = 64;

#[derive(Parser)]
#[command(about = "An HTTP service that counts its answers")]
struct Cli {
    /// Where to answer
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
}

#[derive(Default)]
struct Service {
    answered: AtomicU64,
    connections: AtomicUsize,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let listener = TcpListener::bind(cli.listen)
        .with_context(|| format!("cannot listen on {}", cli.listen))?;
    let service = Arc::new(Service::default());
    for stream in listener.incoming().flatten() {
        if service.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            service.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let service = Arc::clone(&service);
        std::thread::spawn(move || {
            // A client that goes away or sends nonsense loses its connection, and no more.
            let _ = service.serve(stream);
            service.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

impl Service {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        while let Some(path) = read_request(&mut reader)? {
            let count = self.answered.fetch_add(1, Ordering::Relaxed) + 1;
            writer.write_all(answer(&path, count).as_bytes())?;
        }
        Ok(())
    }
}

fn answer(path: &str, count: u64) -> String {
    let nonce: String = path
        .trim_start_matches('/')
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .collect();
    let checksum = checksum(&nonce, count);
    let body = format!("{{\"count\":{count},\"nonce\":\"{nonce}\",\"checksum\":\"{checksum}\"}}\n");
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The path of the next request; `None` when there is none or it is not one.
fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let Some(line) = read_line(reader)? else {
        return Ok(None);
    };
    let mut words = line.split(' ');
    let (Some("GET"), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    for _ in 0..HEADERS_MAX {
        match read_line(reader)? {
            Some(line) if line.is_empty() => return Ok(Some(path.to_owned())),
            Some(_) => {}
            None => return Ok(None),
        }
    }
    Ok(None)
}

fn read_line(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    std::io::Read::take(reader, LINE_LEN_MAX).read_line(&mut line)?;
    Ok(line.ends_with('\n').then(|| line.trim_end().to_owned()))
}
