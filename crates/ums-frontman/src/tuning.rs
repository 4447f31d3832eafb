//! Options of the sockets between which bytes are copied.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;

/// Data that stays unacknowledged this long means that the peer is dead: far beyond what a live
/// path needs to recover, well below TCP's own quarter of an hour.
const USER_TIMEOUT_MS: u32 = 60_000;

/// An idle connection is probed after this time, so that a peer that vanished frees its place.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;

/// Time between probes.
const KEEPALIVE_INTERVAL_SECONDS: u32 = 10;

/// Probes without an answer before the connection counts as dead.
const KEEPALIVE_PROBES: u32 = 6;

/// Passes small writes on at once, and notices peers that are dead.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(
        &socket,
        sockopt::TcpKeepInterval,
        &KEEPALIVE_INTERVAL_SECONDS,
    )?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    setsockopt(&socket, sockopt::TcpUserTimeout, &USER_TIMEOUT_MS)?;
    Ok(())
}

/// Closes with a reset instead of an orderly end, so that the peer can't take what it has
/// received for everything there was.
pub(crate) fn reset(stream: TcpStream) {
    // Failing means that the connection is gone already, which is what was wanted.
    let _ = stream.set_zero_linger();
}
