//! The control socket.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::control::{LINE_BYTES_MAX, Request, Response};
use crate::engine::{Control, StartError};
use crate::record;

/// Conversations at one time: the agent needs one.
const CONVERSATIONS_MAX: usize = 16;

/// A conversation that is silent this long is ended.
const SILENCE_MAX: Duration = Duration::from_secs(10);

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

/// Answers requests until it is aborted.
pub(crate) async fn serve(listener: UnixListener, control: Arc<Control>) {
    let places = Arc::new(Semaphore::new(CONVERSATIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) if may_ask(&stream) => {
                let control = control.clone();
                tokio::spawn(async move {
                    converse(stream, &control).await;
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

/// Only root and the Frontman's own user: between bind and chmod the file's mode protects nothing.
fn may_ask(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == Uid::effective().as_raw())
}

async fn converse(stream: UnixStream, control: &Control) {
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
        let response = if whole {
            answer(&line, control)
        } else {
            Response::Error(format!(
                "a request is one line of at most {LINE_BYTES_MAX} bytes"
            ))
        };
        let Ok(mut text) = serde_json::to_vec(&response) else {
            return;
        };
        text.push(b'\n');
        let written = timeout(SILENCE_MAX, writing.write_all(&text)).await;
        if !whole || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

fn answer(line: &[u8], control: &Control) -> Response {
    let done = match serde_json::from_slice(line) {
        Ok(Request::Status {}) => Ok(()),
        Ok(Request::Hold {}) => control.hold(),
        Ok(Request::Lead { upstreams }) => control.lead(upstreams),
        Ok(Request::Retire { drain_seconds }) => {
            control.retire(drain_seconds);
            Ok(())
        }
        Err(error) => return Response::Error(format!("not a request: {error}")),
    };
    match done {
        Ok(()) => Response::Ok(Box::new(control.status())),
        Err(refusal) => Response::Error(refusal.to_string()),
    }
}
