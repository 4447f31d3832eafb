//! What the two ends say to each other on the control stream: a length of two bytes, then JSON.

use std::io;

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::permit::Permit;
use super::quic::CLOSE_RETIRED;

/// The protocol of this module; another one is refused.
pub(crate) const VERSION: u32 = 1;

/// Longest message: the longest has a permit and a name.
const MESSAGE_BYTES_MAX: usize = 2048;

/// Messages that wait to be read; more wait in the stream.
const WAITING_MAX: usize = 4;

/// The last message arrives within this long, or the path is broken.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the near end says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum FromNear {
    /// First.
    Hello {
        version: u32,
        migration: String,
        permit: Permit,
        /// [`Limits::retire_after_seconds`](super::control::Limits::retire_after_seconds) of the near end.
        retire_after_seconds: u64,
    },
    /// The next permit has arrived.
    Confirm {},
    /// Packets are led from now on: the far end's time begins anew.
    Lead {},
    /// The near end ends, and the far end shall.
    Retire {},
}

/// What the far end says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum FromFar {
    /// Admitted, and what to show the next time.
    Welcome { permit: Permit },
    /// Not admitted, and why.
    Refused { reason: String },
    /// Connections from before the move still live: the near end's time begins anew.
    Renew {},
    /// The service is gone: the near end has nothing to stand for.
    Gone {},
}

/// Writes one message.
pub(crate) async fn write<T: Serialize>(to: &mut SendStream, message: &T) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u16::try_from(text.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    to.write_all(&bytes).await.map_err(io::Error::from)
}

/// Reads one message.
///
/// *Cancel safety*: none; the stream is unusable afterwards.
pub(crate) async fn read<T: DeserializeOwned>(from: &mut RecvStream) -> io::Result<T> {
    let mut length = [0; 2];
    from.read_exact(&mut length)
        .await
        .map_err(io::Error::other)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "a message of {length} bytes is longer than {MESSAGE_BYTES_MAX}"
        )));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text).await.map_err(io::Error::other)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Reads messages one after the other; the channel closes when the stream ends or makes no sense.
pub(crate) fn incoming<T: DeserializeOwned + Send + 'static>(
    mut from: RecvStream,
) -> mpsc::Receiver<T> {
    let (said, messages) = mpsc::channel(WAITING_MAX);
    tokio::spawn(async move {
        let reading = async {
            while let Ok(message) = read(&mut from).await {
                if said.send(message).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = said.closed() => {}
        }
    });
    messages
}

/// Says the last message and closes, when the other end has it or doesn't answer.
pub(crate) async fn farewell<T: Serialize>(
    connection: &Connection,
    to: &mut SendStream,
    message: &T,
) {
    let said = async {
        write(to, message).await?;
        to.finish().map_err(io::Error::other)?;
        to.stopped().await.map_err(io::Error::other)
    };
    // An error means that there is nobody to say it to.
    let _ = timeout(FAREWELL, said).await;
    connection.close(CLOSE_RETIRED, b"retired");
}
