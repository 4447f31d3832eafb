//! The control socket.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::control::{LINE_BYTES_MAX, Request, Response, Status};
use crate::engine::{Control, StartError};
use crate::record;

/// Conversations at one time: the agent needs one.
const CONVERSATIONS_MAX: u32 = 16;

/// A conversation that is silent this long is ended.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// At the end, who asked last gets this long to take the answer.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Rest after a failed accept.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Takes the control socket, unless a Frontman answers there; one that was killed left its file.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, StartError> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(StartError::AlreadyThere(path.to_owned()));
    }
    let bound = record::remove(path).and_then(|()| {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    bound.map_err(|source| StartError::File {
        path: path.to_owned(),
        source,
    })
}

/// Who answers requests, each a line.
pub(crate) trait Answer: Send + Sync + 'static {
    /// Does what a line asks, and returns the answering line.
    fn answer(&self, line: &[u8]) -> impl Future<Output = Vec<u8>> + Send;

    /// The line that refuses for this reason.
    fn refuse(reason: String) -> Vec<u8>;
}

/// The line for an answer.
pub(crate) fn line(response: &impl Serialize) -> Vec<u8> {
    // Our own types can't fail to become JSON; an empty line would only end the conversation.
    let mut text = serde_json::to_vec(response).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Holds conversations.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    places: Arc<Semaphore>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(CONVERSATIONS_MAX as usize)),
        }
    }
}

impl Server {
    /// Answers requests until it is aborted.
    pub(crate) async fn serve(self, listener: UnixListener, to: Arc<impl Answer>) {
        loop {
            let accepted = listener.accept().await;
            let Ok(place) = self.places.clone().acquire_owned().await else {
                return;
            };
            match accepted {
                Ok((stream, _)) if may_ask(&stream) => {
                    let to = to.clone();
                    tokio::spawn(async move {
                        converse(stream, &*to).await;
                        drop(place);
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Returns when no conversation is under way, or they take too long.
    pub(crate) async fn idle(&self) {
        let _ = timeout(LAST_WORDS, self.places.acquire_many(CONVERSATIONS_MAX)).await;
    }
}

/// Only root and the Frontman's own user: between bind and chmod the file's mode protects nothing.
fn may_ask(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == Uid::effective().as_raw())
}

async fn converse(stream: UnixStream, to: &impl Answer) {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reading).take(LINE_BYTES_MAX as u64);
        match timeout(SILENCE_MAX, bounded.read_until(b'\n', &mut line)).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => return,
        }
        let whole = line.last() == Some(&b'\n');
        let text = if whole {
            to.answer(&line).await
        } else {
            refuse(
                to,
                format!("a request is one line of at most {LINE_BYTES_MAX} bytes"),
            )
        };
        let written = timeout(SILENCE_MAX, writing.write_all(&text)).await;
        if !whole || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

fn refuse<A: Answer>(_: &A, reason: String) -> Vec<u8> {
    A::refuse(reason)
}

impl Answer for Control {
    async fn answer(&self, text: &[u8]) -> Vec<u8> {
        let done = match serde_json::from_slice(text) {
            Ok(Request::Status {}) => Ok(()),
            Ok(Request::Hold {}) => self.hold(),
            Ok(Request::Lead { upstreams }) => self.lead(upstreams),
            Ok(Request::Retire { drain_seconds }) => {
                self.retire(drain_seconds);
                Ok(())
            }
            Err(error) => return Self::refuse(format!("not a request: {error}")),
        };
        match done {
            Ok(()) => line(&Response::Ok(Box::new(self.status()))),
            Err(refusal) => Self::refuse(refusal.to_string()),
        }
    }

    fn refuse(reason: String) -> Vec<u8> {
        line(&Response::<Status>::Error(reason))
    }
}
