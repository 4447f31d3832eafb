//! A UDP client: datagrams with sequence numbers, echoed. UDP promises nothing, so what is lost is
//! counted; what comes twice, out of order or changed is an error.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::held::summary;
use super::load::{ANSWER_PATIENCE, Pace, Summary};
use crate::streams::Content;

/// Bytes after the sequence number.
const PAYLOAD: usize = 56;

/// Sends at a steady rate until `stop` is set, and then waits for what is still under way. Lost
/// datagrams are the summary's `failed`. Late ones are not: nobody promises an order (RFC 768), and
/// at a switch new datagrams may have a shorter way than those that were held.
pub fn run(address: SocketAddr, period: Duration, stop: &AtomicBool) -> Result<Summary> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    let mut flow = Flow::default();
    let mut pace = Pace::new(period);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        let sent = socket.send(&datagram(flow.sent));
        sent.with_context(|| format!("cannot send datagram {}", flow.sent))?;
        flow.sent += 1;
        flow.receive(&socket, &mut pace)?;
    }
    let stopped = Instant::now();
    while flow.is_incomplete() && stopped.elapsed() < ANSWER_PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
        flow.receive(&socket, &mut pace)?;
    }
    Ok(Summary {
        failed: flow.lost(),
        ..summary("udp", flow.sent, &pace)
    })
}

fn datagram(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(size_of::<u64>() + PAYLOAD, 0);
    Content::new(number).fill(&mut bytes[size_of::<u64>()..]);
    bytes
}

#[derive(Debug, Default)]
struct Flow {
    sent: u64,
    /// Above all numbers that have come.
    next: u64,
    /// Numbers below that have not come.
    missing: BTreeSet<u64>,
    /// How many came after one that was sent after them.
    late: u64,
}

impl Flow {
    fn is_incomplete(&self) -> bool {
        self.lost() > 0
    }

    /// What has not come until now.
    fn lost(&self) -> u64 {
        self.missing.len() as u64 + (self.sent - self.next)
    }

    /// Takes what has come.
    fn receive(&mut self, socket: &UdpSocket, pace: &mut Pace) -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            match socket.recv(&mut buffer) {
                Ok(count) => self.take(&buffer[..count])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("refused"),
            }
            pace.answered();
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let number = bytes.first_chunk().copied().map(u64::from_le_bytes);
        let number = number.context("a datagram without a number")?;
        ensure!(
            number < self.sent && bytes == datagram(number),
            "datagram {number} is not what was sent"
        );
        if number < self.next {
            ensure!(self.missing.remove(&number), "datagram {number} came twice");
            self.late += 1;
        } else {
            self.missing.extend(self.next..number);
            self.next = number + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_datagrams_are_counted_and_wrong_ones_refused() {
        let mut flow = Flow {
            sent: 5,
            ..Flow::default()
        };
        for number in [0, 1, 3] {
            flow.take(&datagram(number)).expect("in order");
        }
        assert!(flow.take(&datagram(3)).is_err(), "twice");
        assert!(flow.take(&datagram(5)).is_err(), "never sent");
        let mut changed = datagram(4);
        changed[20] ^= 1;
        assert!(flow.take(&changed).is_err(), "changed");
        flow.take(&datagram(4)).expect("the last one");
        assert_eq!((flow.lost(), flow.late), (1, 0));
        flow.take(&datagram(2)).expect("late");
        assert_eq!((flow.lost(), flow.late), (0, 1));
    }
}
