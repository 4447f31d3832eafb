//! The source's end of a data path.
//!
//! ```text
//!  PageWriter ─┐ blocking threads: read, drop zero pages, compress, hash
//!  FileWriter ─┼─► bounded queue ─► one task: limit the rate, encrypt, write
//!  ImageWriter ┘                    └─ and reads what the destination answers
//! ```

mod adapt;
mod images;
mod packer;
mod pages;
mod producer;
mod task;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use ums_core::id::MigrationId;
use ums_core::report::Bytes;

use crate::frame::{
    AWAY_VERSION, Counts, Digest, Frame, FrameError, Hello, ROUNDS_VERSION, SHARED_ROUNDS_VERSION,
    VERSIONS, shortened,
};
use crate::link::{LinkError, read_frame, write_frame};
use crate::meter::Meter;
use task::Message;

pub use images::ImageWriter;
pub(crate) use packer::Packer;
pub use pages::PageWriter;
pub(crate) use producer::{Batch, Producer};

/// Batches of frames that wait for the network. A batch holds at most one block of pages, or a
/// little more than 256 KiB of files.
const QUEUE_DEPTH: usize = 16;

/// Why a data path came to nothing, as the source sees it. Clones share the cause, so that every
/// writer reports the same one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    /// The connection failed.
    #[error(
        "the data path to the destination broke; see whether the agent there and the link are well, \
         and migrate again"
    )]
    Link(#[from] LinkError),
    /// The destination didn't let the stream begin.
    #[error("the destination refused the data path: {reason}")]
    Refused {
        /// In its own words.
        reason: String,
    },
    /// The destination stopped the stream.
    #[error("the destination could not take what was sent: {reason}")]
    Failed {
        /// In its own words.
        reason: String,
    },
    /// The destination answered what makes no sense at this place.
    #[error(
        "the destination sent a {frame} frame where it has no place; run the same release on both \
         systems"
    )]
    Unexpected {
        /// The frame.
        frame: &'static str,
    },
    /// The destination chose a version that was not offered.
    #[error(
        "the destination wants version {version} of the protocol, which was not offered; run the \
         same release on both systems"
    )]
    Version {
        /// What it chose.
        version: u16,
    },
    /// The destination confirmed something else than was sent.
    #[error(
        "the destination confirmed a digest that is not that of what was sent; migrate again, and \
         run the same release on both systems"
    )]
    Differs,
    /// What was to be sent doesn't fit the protocol.
    #[error("this can't be sent")]
    Unsendable(#[from] FrameError),
    /// What was to be sent could not be read.
    #[error("reading {what} failed")]
    Read {
        /// What was read.
        what: String,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The stream was to end while something was still writing to it.
    #[error("the data path can't be finished while pages, images or files are being written")]
    StillWriting,
    /// The data path was closed on this side.
    #[error("the data path was closed on this side")]
    Closed,
}

/// How the source sends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a read or a write may make no progress. Not less than 15 s where the peer is
    /// another system's: it may say as little as one `Alive` every 5 s.
    pub idle: Duration,
    /// Bytes per second to stay below.
    pub bandwidth: Option<NonZeroU64>,
    /// Where to count; readable while the stream flows.
    pub meter: Meter,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(30),
            bandwidth: None,
            meter: Meter::default(),
        }
    }
}

/// The stream was delivered whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// BLAKE3 of the stream, on which both sides agreed.
    pub digest: Digest,
    /// What was sent.
    pub counts: Counts,
    /// The same in the report's terms.
    pub bytes: Bytes,
}

/// The source's end of one data path.
///
/// # Memory
///
/// What waits for the network is bounded: 16 batches of at most 256 KiB and one frame (4 MiB; at
/// the very most 12 MiB when every file has half a MiB of extended attributes), as many buffers
/// kept for reuse, 256 KiB each for coalescing, for TLS and for the socket's input, and for each
/// [`PageWriter`] a compressor (about 1.5 MiB). What grows with the service is the manifest of its
/// changed files alone, see [`crate::files::Manifest`].
///
/// # Cancel safety
///
/// Dropping it closes the connection; the destination sees a stream without an end and throws
/// everything away.
pub struct Sender {
    version: u16,
    producer: Producer,
    task: Option<JoinHandle<Result<Delivered, SendError>>>,
}

impl Sender {
    /// Opens the data path on a connection: says what it is for, and waits to be let in.
    ///
    /// The connection is written to by a task of its own from then on.
    pub async fn open<S>(
        mut stream: S,
        migration: MigrationId,
        permit: [u8; 32],
        settings: Settings,
    ) -> Result<Self, SendError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (version_min, version_max) = VERSIONS;
        let hello = Hello {
            version_min,
            version_max,
            migration: migration.0,
            permit,
        };
        write_frame(&mut stream, &Frame::Hello(hello), settings.idle).await?;
        let mut payload = Vec::new();
        let header = read_frame(&mut stream, &mut payload, settings.idle).await?;
        let version = match Frame::decode(header, &payload)? {
            Frame::Welcome { version } if (version_min..=version_max).contains(&version) => version,
            Frame::Welcome { version } => return Err(SendError::Version { version }),
            Frame::Refused { reason } => {
                return Err(SendError::Refused {
                    reason: reason.to_owned(),
                });
            }
            other => {
                return Err(SendError::Unexpected {
                    frame: other.kind().name(),
                });
            }
        };
        let (queue, messages) = mpsc::channel(QUEUE_DEPTH);
        let producer = Producer::new(queue, settings.meter.clone());
        let task = task::Task::new(producer.shared(), messages, settings);
        Ok(Self {
            version,
            producer,
            task: Some(tokio::spawn(task.run(stream))),
        })
    }

    /// Whether the destination takes pages while the service runs, and their confirmation in the freeze.
    pub fn takes_rounds(&self) -> bool {
        self.version >= ROUNDS_VERSION
    }

    /// Whether it takes those of shared memory too.
    pub fn takes_shared_rounds(&self) -> bool {
        self.version >= SHARED_ROUNDS_VERSION
    }

    /// Whether the destination knows of pages that stay here until the service runs there.
    pub fn takes_away(&self) -> bool {
        self.version >= AWAY_VERSION
    }

    /// A writer of pages, for a blocking thread.
    pub fn pages(&self) -> PageWriter {
        PageWriter::new(self.producer.clone())
    }

    /// A writer of metadata images, for a blocking thread.
    pub fn images(&self) -> ImageWriter {
        ImageWriter::new(self.producer.clone())
    }

    /// A writer of files, for a blocking thread: see [`crate::files`].
    pub fn files(&self) -> crate::files::FileWriter {
        crate::files::FileWriter::new(self.producer.clone())
    }

    /// Sends one whole metadata image.
    pub async fn image(&self, name: &str, bytes: &[u8]) -> Result<(), SendError> {
        for batch in images::batches(&self.producer, name, bytes) {
            self.producer.send(batch?).await?;
        }
        Ok(())
    }

    /// What was moved so far.
    pub fn meter(&self) -> &Meter {
        &self.producer.shared().meter
    }

    /// Waits until the data path has failed, and says why. Pending as long as all is well.
    ///
    /// # Cancel safety
    ///
    /// It can be dropped and called again.
    pub async fn failed(&self) -> SendError {
        self.producer.closed().await
    }

    /// Waits until all that was sent so far is in its place at the destination, and what stands by
    /// itself is verified and durable there: nothing of it is left for the freeze.
    ///
    /// Takes as long as the destination's disk does; it says that it lives meanwhile.
    ///
    /// # Errors
    /// As of any writer: why the data path is gone.
    pub async fn settle(&self) -> Result<(), SendError> {
        let mut settled = self.producer.shared().settled.subscribe();
        let before = *settled.borrow();
        let mut batch = Batch::default();
        batch.push(&Frame::Settle)?;
        self.producer.send(batch).await?;
        tokio::select! {
            _ = settled.wait_for(|count| *count > before) => Ok(()),
            failure = self.producer.closed() => Err(failure),
        }
    }

    /// Ends the stream and waits until the destination has everything and has verified it.
    ///
    /// All writers must have been dropped: what came after the end would be lost.
    pub async fn finish(mut self) -> Result<Delivered, SendError> {
        if self.producer.writers() > 1 {
            return Err(SendError::StillWriting);
        }
        self.producer.send_message(Message::End).await?;
        self.over().await
    }

    /// Tells the destination that nothing more will come, and why.
    pub async fn abandon(mut self, reason: &str) {
        let reason = shortened(reason.to_owned());
        if self
            .producer
            .send_message(Message::Abandon(reason))
            .await
            .is_ok()
        {
            // The answer, if there is any, is that the stream is over.
            let _ = self.over().await;
        }
    }

    async fn over(&mut self) -> Result<Delivered, SendError> {
        match self.task.take() {
            Some(task) => task.await.unwrap_or(Err(SendError::Closed)),
            None => Err(SendError::Closed),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}
