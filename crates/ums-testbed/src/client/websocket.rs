//! A WebSocket client: messages with sequence numbers, echoed on one connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tungstenite::Message;

use super::held::{connect, summary};
use super::load::{Pace, Summary};

/// Exchanges messages at a steady rate until `stop` is set, and closes in good order.
pub fn run(address: SocketAddr, period: Duration, stop: &AtomicBool) -> Result<Summary> {
    let stream = connect(address)?;
    let shaken = tungstenite::client(format!("ws://{address}/"), stream);
    // The error would hold the half-made connection, which is of no use here.
    let (mut socket, _) = shaken.map_err(|error| anyhow!("no WebSocket: {error}"))?;
    let (mut pace, mut messages) = (Pace::new(period), 0);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        let message = Message::text(format!("message {messages}"));
        socket.send(message.clone()).context("cannot send")?;
        let answer = socket
            .read()
            .with_context(|| format!("no answer to message {messages}"))?;
        ensure!(
            answer == message,
            "message {messages} came back as {answer}"
        );
        messages += 1;
        pace.answered();
    }
    socket.close(None)?;
    loop {
        match socket.read() {
            // The other side agrees.
            Ok(message) => ensure!(message.is_close(), "after the last message came {message}"),
            Err(tungstenite::Error::ConnectionClosed) => break,
            Err(error) => return Err(error).context("it was not closed in good order"),
        }
    }
    Ok(summary("websocket", messages, &pace))
}
