//! The moment of the freeze, for whoever has to act right before it and right after it.
//!
//! CRIU takes some 75 ms to set itself up, in which the service still runs. Packets must be held
//! from the freeze on, and shall not be held earlier than that; the keeper knows the moment, and
//! knows nothing of packets. So a dump may bring one end of a socket pair: the keeper says that it
//! is about to freeze, waits for leave, freezes, and says that it has. Then CRIU takes the tasks over. What
//! connections send meanwhile the keeper holds itself; before it lets that go, at the end of the dump, it waits
//! for the word that packets are held. If the dump comes to nothing the keeper says so, and lets the service
//! run on once packets pass again.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The keeper is about to freeze the service.
const BEFORE: u8 = b'b';
/// It may.
const LEAVE: u8 = b'l';
/// The service is frozen.
const FROZEN: u8 = b'f';

/// What the service sends and is sent is held.
const HELD: u8 = b'h';
/// The dump has come to nothing: the service is about to run on.
const GIVEN_UP: u8 = b'g';
/// What is held was let go.
const OPEN: u8 = b'o';

/// How long the keeper waits for leave: who gives it runs a few tools, on a loaded machine.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);
/// How long a frozen service waits until its packets are held: one program is run for that.
const HELD_WITHIN: Duration = Duration::from_secs(5);
/// The same for packets that pass again. After that it runs on all the same.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long the other side waits for CRIU to have set itself up, and then for the freeze.
const MOMENT_WITHIN: Duration = Duration::from_secs(120);

/// The keeper's side; without a descriptor nobody is asked.
pub(super) struct KeeperSide(Option<UnixStream>);

impl KeeperSide {
    pub(super) fn new(fd: Option<OwnedFd>) -> Self {
        Self(fd.map(UnixStream::from))
    }

    /// Says that the freeze comes, and waits until it may.
    pub(super) fn before_freeze(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.0 else {
            return Ok(());
        };
        let asked = (|| {
            stream.set_read_timeout(Some(LEAVE_WITHIN))?;
            stream.write_all(&[BEFORE])?;
            expect(stream, LEAVE)
        })();
        asked.map_err(|error| format!("nobody gave leave to freeze the service: {error}"))
    }

    /// Says that the service is frozen, and waits for nobody.
    pub(super) fn frozen(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.0 else {
            return Ok(());
        };
        let told = stream.write_all(&[FROZEN]);
        told.map_err(|error| format!("the agent has gone: {error}"))
    }

    /// Waits until the packets of the frozen service are held.
    pub(super) fn wait_held(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.0 else {
            return Ok(());
        };
        let held = (|| {
            stream.set_read_timeout(Some(HELD_WITHIN))?;
            expect(stream, HELD)
        })();
        held.map_err(|error| format!("the packets of the frozen service are not held: {error}"))
    }

    /// Says that the service is about to run on, and waits for a while until its packets pass.
    pub(super) fn give_up(&mut self) {
        let Some(stream) = &mut self.0 else {
            return;
        };
        let open = (|| {
            stream.set_read_timeout(Some(OPEN_WITHIN))?;
            stream.write_all(&[GIVEN_UP])?;
            loop {
                // What was said before comes first.
                let word = word(stream)?;
                if word == OPEN {
                    return Ok::<_, io::Error>(());
                }
            }
        })();
        if let Err(error) = open {
            tracing::warn!(%error, "the service runs on before its packets are let go");
        }
    }
}

/// The other side: goes along with the freeze.
#[derive(Debug)]
pub struct NodeSide(UnixStream);

impl NodeSide {
    /// One end of a socket pair whose other end goes with the request.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(MOMENT_WITHIN))?;
        Ok(Self(stream))
    }

    /// Waits until the keeper is about to freeze. An error is the end of the dump, which tells its
    /// reason itself.
    pub fn wait_before(&mut self) -> io::Result<()> {
        expect(&mut self.0, BEFORE)
    }

    /// Lets it.
    pub fn give_leave(&mut self) -> io::Result<()> {
        self.0.write_all(&[LEAVE])
    }

    /// Waits until the service is frozen.
    pub fn wait_frozen(&mut self) -> io::Result<()> {
        expect(&mut self.0, FROZEN)
    }

    /// Says that packets are held.
    pub fn say_held(&mut self) -> io::Result<()> {
        self.0.write_all(&[HELD])
    }

    /// Waits for the end of the dump, however long it takes: the keeper's end is closed with it. True
    /// when it has come to nothing, and the service waits to run on: [`say_open`](Self::say_open).
    pub fn wait_end(&mut self) -> io::Result<bool> {
        self.0.set_read_timeout(None)?;
        loop {
            match word(&mut self.0) {
                Ok(GIVEN_UP) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that packets pass.
    pub fn say_open(&mut self) -> io::Result<()> {
        self.0.write_all(&[OPEN])
    }
}

fn word(stream: &mut UnixStream) -> io::Result<u8> {
    let mut word = [0];
    stream.read_exact(&mut word)?;
    Ok(word[0])
}

fn expect(stream: &mut UnixStream, wanted: u8) -> io::Result<()> {
    let word = word(stream)?;
    if word == wanted {
        return Ok(());
    }
    let text = format!("`{}` came instead of `{}`", word as char, wanted as char);
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn each_side_waits_for_the_other() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut handshake = KeeperSide::new(Some(theirs.into()));
        let attending = std::thread::spawn(move || {
            let mut node_side = NodeSide::new(ours).unwrap();
            node_side.wait_before().unwrap();
            node_side.give_leave().unwrap();
            node_side.wait_frozen().unwrap();
            node_side.say_held().unwrap();
            node_side.wait_end().unwrap()
        });
        handshake.before_freeze().unwrap();
        handshake.frozen().unwrap();
        handshake.wait_held().unwrap();
        drop(handshake);
        assert!(!attending.join().unwrap(), "it went well");
    }

    #[test]
    fn a_service_runs_on_once_its_packets_pass() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut handshake = KeeperSide::new(Some(theirs.into()));
        let attending = std::thread::spawn(move || {
            let mut node_side = NodeSide::new(ours).unwrap();
            // The keeper has not heard of this when it gives up.
            node_side.say_held().unwrap();
            let given_up = node_side.wait_end().unwrap();
            node_side.say_open().unwrap();
            given_up
        });
        handshake.give_up();
        assert!(attending.join().unwrap());
        // Nobody is there any more: it is not waited for.
        handshake.give_up();
        assert!(handshake.wait_held().is_err());
    }

    #[test]
    fn who_goes_away_prevents_the_freeze() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let error = KeeperSide::new(Some(theirs.into()))
            .before_freeze()
            .unwrap_err();
        assert!(error.contains("nobody gave leave"), "{error}");
        assert!(KeeperSide::new(None).before_freeze().is_ok());
    }
}
