//! The keeper's end of the stream over which pages come that have stayed at the source.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::store::Index;
use crate::supply;
use crate::uffd::Wanted;

/// How long an answer that has begun may take to be whole, and a question to be taken: both are between two
/// processes of one system.
const STREAM_PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing may come at all. The pager beside us gives up by itself, much earlier; this is for one that
/// does nothing any more.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// Asks for pages, and takes them.
pub(super) struct Supplied {
    stream: UnixStream,
    heard: Instant,
}

impl Supplied {
    /// A stream is needed where pages are away, and only there.
    pub(super) fn new(stream: Option<OwnedFd>, away: &Index) -> Result<Option<Self>, String> {
        match (stream, away.is_empty()) {
            (_, true) => Ok(None),
            (None, false) => {
                Err("pages of the service are at the source, and nobody brings them".to_owned())
            }
            (Some(stream), false) => {
                let stream = UnixStream::from(stream);
                let patient = stream
                    .set_read_timeout(Some(STREAM_PATIENCE))
                    .and_then(|()| stream.set_write_timeout(Some(STREAM_PATIENCE)));
                patient.map_err(|error| error.to_string())?;
                let heard = Instant::now();
                Ok(Some(Self { stream, heard }))
            }
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn ask(&mut self, wanted: &[Wanted]) -> Result<(), String> {
        if wanted.is_empty() {
            return Ok(());
        }
        let questions: Vec<u8> = wanted.iter().flat_map(supply::question).collect();
        self.stream
            .write_all(&questions)
            .map_err(|error| lost(&error))
    }

    /// Takes an answer, which has begun to come.
    pub(super) fn take(&mut self) -> Result<(u64, Vec<u8>), String> {
        let (place, content) = supply::read(&mut self.stream).map_err(|error| lost(&error))?;
        self.heard = Instant::now();
        Ok((place, content?))
    }

    /// Gives up when nothing has come for long that is `awaited`.
    pub(super) fn must_go_on(&mut self, awaited: bool) -> Result<(), String> {
        if !awaited {
            self.heard = Instant::now();
        }
        match self.heard.elapsed() > SILENCE_MAX {
            true => Err("the pager brings nothing any more".to_owned()),
            false => Ok(()),
        }
    }
}

fn lost(error: &std::io::Error) -> String {
    format!("the pager that brings pages from the source is lost ({error})")
}
