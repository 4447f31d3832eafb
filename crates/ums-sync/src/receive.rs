//! The destination's end of a data path.
//!
//! ```text
//!  one task: read, decrypt ──► bounded queue ──► blocking thread: hash, check, unpack ──► Sink
//!       └─ answers: Alive, Settled, Failed, Delivered ◄────────────────────┘
//! ```

mod apply;
mod sink;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use ums_core::id::MigrationId;
use ums_core::report::Bytes;

use crate::frame::{
    Counts, Digest, Frame, FrameError, FrameType, HELLO_LEN, Header, Hello, VERSIONS, reason_of,
    shortened,
};
use crate::link::{
    LinkError, alive_every, flush, read_frame, read_header, read_payload, write_frame,
};
use crate::meter::Meter;
use crate::pool::Pool;
use apply::Apply;

pub use sink::{Block, FileOperation, PageContent, Sink, SinkError};

/// Frames that wait for the sink: at most 8 MiB, usually 2.
const QUEUE_DEPTH: usize = 8;

/// After a failure was reported: how long and how much is read and thrown away, so that the
/// report isn't lost to a connection reset before the source has read it.
const DRAIN_WAIT: Duration = Duration::from_secs(2);
const DRAIN_BYTES: u64 = 64 * 1024 * 1024;

/// Why a data path came to nothing, as the destination sees it.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection failed.
    #[error("the data path from the source broke; nothing was restored, migrate again")]
    Link(#[from] LinkError),
    /// Something else came first.
    #[error(
        "the source opened the data path with a {frame} frame instead of Hello; run the same release \
         on both systems"
    )]
    NoHello {
        /// The frame.
        frame: &'static str,
    },
    /// No version of the protocol is common to both.
    #[error(
        "the source speaks versions {theirs:?} of the protocol, this system {VERSIONS:?}; upgrade \
         the older of the two"
    )]
    Version {
        /// Oldest and newest of the source.
        theirs: (u16, u16),
    },
    /// The stream ended before its end.
    #[error(
        "the stream stopped after {frames} frames without its end; the source failed or the \
         network between was cut: nothing was restored, migrate again"
    )]
    Truncated {
        /// How many frames had arrived.
        frames: u64,
        /// How it stopped.
        #[source]
        source: LinkError,
    },
    /// The source gave up.
    #[error("the source abandoned the transfer: {reason}")]
    Abandoned {
        /// In its own words.
        reason: String,
    },
    /// A frame that is not as the protocol says.
    #[error(
        "frame {frames} of the stream is malformed; nothing was restored: run the same release on \
         both systems, and migrate again"
    )]
    Malformed {
        /// Its number.
        frames: u64,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// A frame where it has no place.
    #[error("a {frame} frame has no place here: {reason}")]
    Misplaced {
        /// The frame.
        frame: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// More arrived than may.
    #[error(
        "more {what} arrives than the {limit} that were announced; raise the limit or see {see}"
    )]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much was allowed.
        limit: u64,
        /// Where to look.
        see: &'static str,
    },
    /// Pages or file content that can't be unpacked.
    #[error("a block could not be unpacked: {reason}; nothing was restored, migrate again")]
    Unpack {
        /// Why.
        reason: String,
    },
    /// The end doesn't fit what came before it.
    #[error("what arrived is not what was sent: {what}; nothing was restored, migrate again")]
    Differs {
        /// What doesn't agree.
        what: String,
    },
    /// What arrived could not be put in its place.
    #[error("{what} could not be put in its place")]
    Sink {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: SinkError,
    },
    /// The thread that puts things in their place is gone.
    #[error("the receiver's own thread ended unexpectedly; see its log")]
    Thread,
}

/// What the destination allows a stream. Each is checked before anything is allocated for it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Memory of the service, zero pages included, bytes.
    pub memory_bytes_max: u64,
    /// Content of files, bytes.
    pub file_bytes_max: u64,
    /// Entries of all trees, removals included.
    pub entries_max: u64,
    /// All metadata images together, bytes.
    pub image_bytes_max: u64,
    /// Number of metadata images.
    pub images_max: usize,
}

impl Default for Limits {
    /// Limits for metadata and the number of files; memory and files are for the caller to say.
    fn default() -> Self {
        Self {
            memory_bytes_max: 0,
            file_bytes_max: 0,
            entries_max: 10_000_000,
            image_bytes_max: 256 * 1024 * 1024,
            images_max: 4096,
        }
    }
}

/// The stream arrived whole, and the source has been told.
#[derive(Debug)]
pub struct Received<S> {
    /// The sink, finished.
    pub sink: S,
    /// BLAKE3 of the stream, on which both sides agree.
    pub digest: Digest,
    /// What arrived.
    pub counts: Counts,
    /// The same in the report's terms.
    pub bytes: Bytes,
}

/// A source that has said what it wants, and waits to be let in.
pub struct Pending<C> {
    stream: C,
    hello: Hello,
    version: u16,
    idle: Duration,
}

/// Waits for a source to say what it wants. One whose version is unknown is refused here.
///
/// Who is at the other end, the connection's certificate has told already: `ums_tls::accept`.
pub async fn accept<C>(mut stream: C, idle: Duration) -> Result<Pending<C>, ReceiveError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let header = read_header(&mut stream, idle).await?;
    // Who it is for is not known yet: nothing else is read, and no more than it takes.
    if header.frame != FrameType::Hello {
        let frame = header.frame.name();
        return Err(ReceiveError::NoHello { frame });
    }
    if header.length > HELLO_LEN {
        let (frame, extra) = (header.frame.name(), header.length - HELLO_LEN);
        return Err(LinkError::Frame(FrameError::Trailing { frame, extra }).into());
    }
    let mut payload = Vec::new();
    read_payload(&mut stream, &header, &mut payload, idle).await?;
    let hello = match Frame::decode(header, &payload).map_err(LinkError::from)? {
        Frame::Hello(hello) => hello,
        other => {
            return Err(ReceiveError::NoHello {
                frame: other.kind().name(),
            });
        }
    };
    let version = hello.version_max.min(VERSIONS.1);
    if version < hello.version_min.max(VERSIONS.0) {
        let error = ReceiveError::Version {
            theirs: (hello.version_min, hello.version_max),
        };
        Pending {
            stream,
            hello,
            version,
            idle,
        }
        .refuse(&error.to_string())
        .await?;
        return Err(error);
    }
    Ok(Pending {
        stream,
        hello,
        version,
        idle,
    })
}

impl<C> Pending<C>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    /// The migration that the source speaks of.
    pub fn migration(&self) -> MigrationId {
        MigrationId(self.hello.migration)
    }

    /// The permit it shows. Compare it in constant time or by its hash, and use it up.
    pub fn permit(&self) -> [u8; 32] {
        self.hello.permit
    }

    /// Refuses the stream.
    pub async fn refuse(mut self, reason: &str) -> Result<(), ReceiveError> {
        let reason = shortened(reason.to_owned());
        write_frame(
            &mut self.stream,
            &Frame::Refused { reason: &reason },
            self.idle,
        )
        .await?;
        let _ = tokio::time::timeout(DRAIN_WAIT, self.stream.shutdown()).await;
        Ok(())
    }

    /// Receives the whole stream into `sink`, verifies it, and confirms it to the source.
    ///
    /// # Memory
    ///
    /// Beside what the sink keeps: at most eight frames of 1 MiB wait, and metadata images up to
    /// their limit until each is whole.
    ///
    /// # Errors
    ///
    /// The source is told the reason, unless the connection itself is what broke. The sink is
    /// dropped without [`Sink::finish`]: whatever it has put in place must go. If only the
    /// confirmation could not be sent, that is an error too: the source then counts the stream as
    /// undelivered.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection; the sink is dropped as after an error.
    pub async fn welcome<S: Sink>(
        mut self,
        limits: Limits,
        meter: Meter,
        sink: S,
    ) -> Result<Received<S>, ReceiveError> {
        let welcome = Frame::Welcome {
            version: self.version,
        };
        write_frame(&mut self.stream, &welcome, self.idle).await?;
        let (mut reader, mut writer) = tokio::io::split(self.stream);
        let (reply, replies) = mpsc::channel(1);
        let drive = drive(
            &mut reader,
            self.idle,
            Apply::new(sink, limits, meter),
            reply,
        );
        let (outcome, told) = tokio::join!(drive, tell(&mut writer, self.idle, replies));
        if outcome.is_err() {
            if told.is_ok() {
                let _ = writer.shutdown().await;
                drain(&mut reader).await;
            }
            return outcome;
        }
        told?;
        let _ = tokio::time::timeout(DRAIN_WAIT, writer.shutdown()).await;
        outcome
    }
}

/// What the destination says beside that it lives.
enum Reply {
    /// Once for each `Settle`.
    Settled,
    /// The last word, as the one below.
    Delivered(Digest),
    Failed(String),
}

/// Reads frames and hands them to the thread of `apply`, until either is over.
async fn drive<C, S: Sink>(
    reader: &mut ReadHalf<C>,
    idle: Duration,
    apply: Apply<S>,
    reply: mpsc::Sender<Reply>,
) -> Result<Received<S>, ReceiveError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (queue, mut frames) = mpsc::channel(QUEUE_DEPTH);
    let pool = Pool::default();
    let kept = pool.clone();
    let settled = reply.clone();
    let mut thread = tokio::task::spawn_blocking(move || apply.run(&mut frames, &kept, &settled));
    let reading = read_frames(reader, queue, &pool, idle);
    let (read, applied) = tokio::select! {
        biased;
        applied = &mut thread => (Ok(()), applied),
        read = reading => (read, (&mut thread).await),
    };
    let outcome = match (applied, read) {
        (Err(_), _) => Err(ReceiveError::Thread),
        // The thread only knows that nothing more came; the reader knows why.
        (Ok(Err(ReceiveError::Truncated { frames, .. })), Err(source)) => {
            Err(ReceiveError::Truncated { frames, source })
        }
        (Ok(applied), _) => applied,
    };
    let last = match &outcome {
        Ok(received) => Reply::Delivered(received.digest),
        Err(error) => Reply::Failed(reason_of(error)),
    };
    let _ = reply.send(last).await;
    outcome
}

async fn read_frames(
    reader: &mut (impl AsyncRead + Unpin),
    queue: mpsc::Sender<(Header, Vec<u8>)>,
    pool: &Pool,
    idle: Duration,
) -> Result<(), LinkError> {
    loop {
        let mut payload = pool.take();
        let header = read_frame(reader, &mut payload, idle).await?;
        let last = matches!(header.frame, FrameType::End | FrameType::Failed);
        // A queue that is gone means that the thread has failed, and says why itself.
        if queue.send((header, payload)).await.is_err() || last {
            return Ok(());
        }
    }
}

/// Says `Alive`, and what there is to say, until there is a last word.
async fn tell(
    writer: &mut WriteHalf<impl AsyncRead + AsyncWrite + Unpin>,
    idle: Duration,
    mut replies: mpsc::Receiver<Reply>,
) -> Result<(), LinkError> {
    loop {
        let reply = match tokio::time::timeout(alive_every(idle), replies.recv()).await {
            Err(_) => {
                write_frame(writer, &Frame::Alive, idle).await?;
                continue;
            }
            Ok(reply) => reply,
        };
        match reply {
            Some(Reply::Settled) => {
                write_frame(writer, &Frame::Settled, idle).await?;
                flush(writer, idle).await?;
                continue;
            }
            Some(Reply::Delivered(digest)) => {
                write_frame(writer, &Frame::Delivered { digest }, idle).await?;
            }
            Some(Reply::Failed(reason)) => {
                write_frame(writer, &Frame::Failed { reason: &reason }, idle).await?;
            }
            None => {}
        }
        return flush(writer, idle).await;
    }
}

/// Reads on until the source has noticed.
async fn drain(reader: &mut (impl AsyncRead + Unpin)) {
    let mut limited = reader.take(DRAIN_BYTES);
    let throw_away = async {
        let mut buffer = vec![0; 64 * 1024];
        while limited.read(&mut buffer).await? > 0 {}
        io::Result::Ok(())
    };
    // Whatever comes of it, the failure has been reported as well as can be.
    let _ = tokio::time::timeout(DRAIN_WAIT, throw_away).await;
}
