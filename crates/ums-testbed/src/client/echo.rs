//! Clients of the echo: one that is busy, many that are idle, and one that the service itself has
//! called.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::held::{open, summary};
use super::load::{Pace, REQUEST_PATIENCE, Summary};
use crate::streams::{Content, Request};
use crate::tools::wait_for;

/// Bytes of a message.
const MESSAGE: usize = 64;

/// Exchanges messages at a steady rate on one connection until `stop` is set.
pub fn run(address: SocketAddr, period: Duration, stop: &AtomicBool) -> Result<Summary> {
    let mut echo = Echo::open(address, 0)?;
    echo.exchange_until(stop, period)
        .with_context(|| format!("after {} messages", echo.messages))?;
    Ok(echo.summary("echo"))
}

/// Opens `count` connections, exchanges a message on each, leaves them idle until `stop` is set,
/// and then exchanges another one on each.
pub fn crowd(address: SocketAddr, count: u64, stop: &AtomicBool) -> Result<Summary> {
    let open = |id| Echo::open(address, id);
    let mut all: Vec<Echo> = (1..=count).map(open).collect::<Result<_>>()?;
    all.iter_mut().try_for_each(Echo::exchange)?;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5));
    }
    for echo in &mut all {
        echo.exchange()
            .with_context(|| format!("idle connection {} of {count}", echo.id))?;
    }
    // Nobody has waited for anything meanwhile: there are no gaps to tell of.
    Ok(summary(
        "idle connections",
        2 * count,
        &Pace::new(Duration::ZERO),
    ))
}

/// Waits for the service's call at `listener`, and exchanges messages until `stop` is set; `answered`
/// is set after the first. A second call would mean that the first one was lost.
pub fn called(
    listener: &TcpListener,
    period: Duration,
    answered: &AtomicBool,
    stop: &AtomicBool,
) -> Result<Summary> {
    listener.set_nonblocking(true)?;
    let call = || listener.accept().ok();
    let (stream, _) = wait_for("the service's call", REQUEST_PATIENCE, call)?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REQUEST_PATIENCE))?;
    let mut echo = Echo::on(stream, 0);
    echo.exchange()
        .context("the first message on the service's call")?;
    answered.store(true, Ordering::Relaxed);
    echo.exchange_until(stop, period)
        .with_context(|| format!("after {} messages", echo.messages))?;
    ensure!(listener.accept().is_err(), "the service has called again");
    Ok(echo.summary("outgoing"))
}

/// One exchange on a new connection.
pub fn once(address: SocketAddr) -> Result<()> {
    Echo::open(address, 0)?.exchange()
}

/// A connection to a service that sends back what it gets.
pub struct Echo {
    id: u64,
    stream: TcpStream,
    content: Content,
    messages: u64,
    pace: Pace,
}

impl Echo {
    /// Connects; `id` makes what is sent different from what others send.
    pub fn open(address: SocketAddr, id: u64) -> Result<Self> {
        Ok(Self::on(open(address, Request::Echo)?, id))
    }

    fn on(stream: TcpStream, id: u64) -> Self {
        Self {
            id,
            stream,
            content: Content::new(id),
            messages: 0,
            pace: Pace::new(Duration::ZERO),
        }
    }

    fn exchange_until(&mut self, stop: &AtomicBool, period: Duration) -> Result<()> {
        self.pace = Pace::new(period);
        while !stop.load(Ordering::Relaxed) {
            self.pace.wait();
            self.exchange()?;
        }
        Ok(())
    }

    /// Sends a message unlike any before, and reads it back.
    pub fn exchange(&mut self) -> Result<()> {
        let (mut message, mut answer) = ([0; MESSAGE], [0; MESSAGE]);
        self.content.fill(&mut message);
        self.stream.write_all(&message).context("cannot send")?;
        self.stream.read_exact(&mut answer).context("no answer")?;
        ensure!(message == answer, "another message came back");
        self.messages += 1;
        self.pace.answered();
        Ok(())
    }

    fn summary(&self, name: &str) -> Summary {
        summary(name, self.messages, &self.pace)
    }
}
