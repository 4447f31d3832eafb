//! The moment of the freeze, for whoever has to act right before it and right after it.
//!
//! CRIU takes some 75 ms to set itself up, in which the service still runs. Packets must be held
//! from the freeze on, and shall not be held earlier than that; the keeper knows the moment, and
//! knows nothing of packets. So a dump may bring one end of a socket pair: the keeper says that it
//! is about to freeze, waits for leave, freezes, and says that it has.

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

/// How long the keeper waits for leave: who gives it runs a few tools, on a loaded machine.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);
/// How long the other side waits for CRIU to have set itself up, and then for the freeze.
const MOMENT_WITHIN: Duration = Duration::from_secs(120);

/// The keeper's side; without a descriptor nobody is asked.
pub(super) struct Gate(Option<UnixStream>);

impl Gate {
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
        told.map_err(|error| format!("nobody attends the freeze any more: {error}"))
    }
}

/// The other side: attends the freeze.
#[derive(Debug)]
pub struct Attendant(UnixStream);

impl Attendant {
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
}

fn expect(stream: &mut UnixStream, wanted: u8) -> io::Result<()> {
    let mut word = [0];
    stream.read_exact(&mut word)?;
    if word[0] == wanted {
        return Ok(());
    }
    let text = format!("`{}` came instead of `{}`", word[0] as char, wanted as char);
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_freeze_waits_for_leave_and_the_attendant_for_the_freeze() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut gate = Gate::new(Some(theirs.into()));
        let attending = std::thread::spawn(move || {
            let mut attendant = Attendant::new(ours).unwrap();
            attendant.wait_before().unwrap();
            attendant.give_leave().unwrap();
            attendant.wait_frozen().unwrap();
        });
        gate.before_freeze().unwrap();
        gate.frozen().unwrap();
        attending.join().unwrap();
    }

    #[test]
    fn who_goes_away_prevents_the_freeze() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let error = Gate::new(Some(theirs.into())).before_freeze().unwrap_err();
        assert!(error.contains("nobody gave leave"), "{error}");
        assert!(Gate::new(None).before_freeze().is_ok());
    }
}
