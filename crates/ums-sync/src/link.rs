//! Reading and writing frames on a connection, with a limit on every wait.

use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::frame::{Frame, FrameError, HEADER_LEN, Header};

/// How a connection fails, whichever end sees it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The operating system or TLS reported an error.
    #[error("{operation} failed")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Why.
        #[source]
        source: Arc<Error>,
    },
    /// Nothing moved for as long as is tolerated.
    #[error(
        "{operation} made no progress for {seconds} s; the peer hangs or the network between is \
         cut"
    )]
    Stalled {
        /// What was being done.
        operation: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The peer closed the connection, between two frames or inside one.
    #[error("the peer closed the connection {at}")]
    Ended {
        /// Where in the stream.
        at: &'static str,
    },
    /// What arrived is not the protocol.
    #[error("the peer sent what is not the protocol")]
    Frame(#[from] FrameError),
}

/// The most silence of a side that is alive; less when the other tolerates less.
const ALIVE_EVERY_MAX: Duration = Duration::from_secs(5);

/// How often to say that one is alive when one has nothing else to say.
pub(crate) fn alive_every(idle: Duration) -> Duration {
    (idle / 3).min(ALIVE_EVERY_MAX)
}

/// Writes all of `bytes`; each step forward may take as long as `idle`.
pub(crate) async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    mut bytes: &[u8],
    idle: Duration,
) -> Result<(), LinkError> {
    while !bytes.is_empty() {
        let written = limited("writing", idle, writer.write(bytes)).await?;
        if written == 0 {
            return Err(LinkError::Ended {
                at: "while it was written to",
            });
        }
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Writes one frame and sees it off.
pub(crate) async fn write_frame(
    writer: &mut (impl AsyncWrite + Unpin),
    frame: &Frame<'_>,
    idle: Duration,
) -> Result<(), LinkError> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes)?;
    write_all(writer, &bytes, idle).await?;
    flush(writer, idle).await
}

/// Sees off what was written.
pub(crate) async fn flush(
    writer: &mut (impl AsyncWrite + Unpin),
    idle: Duration,
) -> Result<(), LinkError> {
    limited("writing", idle, writer.flush()).await
}

/// Reads one frame's header, and its payload into `payload`, which gets its exact length.
pub(crate) async fn read_frame(
    reader: &mut (impl AsyncRead + Unpin),
    payload: &mut Vec<u8>,
    idle: Duration,
) -> Result<Header, LinkError> {
    let header = read_header(reader, idle).await?;
    read_payload(reader, &header, payload, idle).await?;
    Ok(header)
}

/// Reads one frame's header.
pub(crate) async fn read_header(
    reader: &mut (impl AsyncRead + Unpin),
    idle: Duration,
) -> Result<Header, LinkError> {
    let mut head = [0; HEADER_LEN];
    let first = read_some(reader, &mut head, idle).await?;
    if first == 0 {
        return Err(LinkError::Ended {
            at: "between two frames",
        });
    }
    read_exact(reader, &mut head[first..], idle).await?;
    Ok(Header::decode(head)?)
}

/// Reads the payload behind a header into `payload`, which gets its exact length.
pub(crate) async fn read_payload(
    reader: &mut (impl AsyncRead + Unpin),
    header: &Header,
    payload: &mut Vec<u8>,
    idle: Duration,
) -> Result<(), LinkError> {
    payload.resize(header.length, 0);
    read_exact(reader, payload, idle).await
}

async fn read_exact(
    reader: &mut (impl AsyncRead + Unpin),
    mut into: &mut [u8],
    idle: Duration,
) -> Result<(), LinkError> {
    while !into.is_empty() {
        match read_some(reader, into, idle).await? {
            0 => {
                return Err(LinkError::Ended {
                    at: "inside a frame",
                });
            }
            read => into = &mut into[read..],
        }
    }
    Ok(())
}

async fn read_some(
    reader: &mut (impl AsyncRead + Unpin),
    into: &mut [u8],
    idle: Duration,
) -> Result<usize, LinkError> {
    match limited("reading", idle, reader.read(into)).await {
        // TLS without its closing message: the peer is gone all the same.
        Err(LinkError::Io { source, .. }) if source.kind() == ErrorKind::UnexpectedEof => Ok(0),
        read => read,
    }
}

async fn limited<T>(
    operation: &'static str,
    idle: Duration,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(idle, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(source)) => Err(LinkError::Io {
            operation,
            source: Arc::new(source),
        }),
        Err(_) => Err(LinkError::Stalled {
            operation,
            seconds: idle.as_secs(),
        }),
    }
}
