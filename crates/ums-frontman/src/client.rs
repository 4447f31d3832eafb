//! The agent's side: starting a Frontman and telling it what to do.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::control::{LINE_BYTES_MAX, Limits, Request, Response, Status, Upstreams};

/// A Frontman answers from memory: longer silence means that it is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A Frontman starts in milliseconds; a loaded machine gets much more.
const START_WITHIN: Duration = Duration::from_secs(10);

/// A Frontman that doesn't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("no Frontman answers on {}: it has retired, or was killed", .0.display())]
    NotThere(PathBuf),
    /// The conversation broke off.
    #[error(
        "cannot talk to the Frontman on {}: see `frontman.log` in the state directory",
        .path.display()
    )]
    Talk {
        /// Its control socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("the Frontman refused: {0}")]
    Refused(String),
    /// It can't be started.
    #[error(
        "cannot start the Frontman {}: {reason}; set `bin_dir` to where this release's programs are",
        .binary.display()
    )]
    Start {
        /// The program.
        binary: PathBuf,
        /// What went wrong, in its own words where it had any.
        reason: String,
    },
    /// One is there that serves other ports.
    #[error("the Frontman on {} serves other ports: retire it first", .0.display())]
    OtherPorts(PathBuf),
    /// One is there that belongs to something else.
    #[error(
        "the Frontman on {} is another migration's or the other end: retire it first", .0.display()
    )]
    Other(PathBuf),
}

/// Speaks to one Frontman. Each request is a conversation of its own, so nothing has to be
/// mended after an error.
#[derive(Debug, Clone)]
pub struct FrontmanClient {
    path: PathBuf,
}

impl FrontmanClient {
    /// The Frontman on this control socket; [`ClientError::NotThere`] when nobody answers.
    pub async fn connect(path: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let client = Self { path: path.into() };
        client.status().await?;
        Ok(client)
    }

    /// Its control socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it stands.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.request(&Request::Status {}).await
    }

    /// Keep connections without leading them anywhere.
    pub async fn hold(&self) -> Result<Status, ClientError> {
        self.request(&Request::Hold {}).await
    }

    /// Lead held and new connections there.
    pub async fn lead(&self, upstreams: Upstreams) -> Result<Status, ClientError> {
        self.request(&Request::Lead { upstreams }).await
    }

    /// Accept nothing more, drain, exit.
    ///
    /// *Idempotence*: from the first call on its socket's name is free for the next Frontman, so a
    /// repetition finds nobody; that counts as done, and gives `None`.
    pub async fn retire(&self, drain: Duration) -> Result<Option<Status>, ClientError> {
        match self
            .request(&Request::Retire {
                drain_seconds: drain.as_secs(),
            })
            .await
        {
            Ok(status) => Ok(Some(status)),
            Err(ClientError::NotThere(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn request(&self, request: &Request) -> Result<Status, ClientError> {
        ask(&self.path, request).await
    }
}

/// Asks the process on a control socket, of whichever mode. Every request is idempotent: it is
/// asked again, once, when the process dies over it, for then its standby answers.
pub(crate) async fn ask<S: DeserializeOwned>(
    path: &Path,
    request: &impl Serialize,
) -> Result<S, ClientError> {
    match ask_once(path, request).await {
        Err(ClientError::Talk { source, .. }) if is_death(&source) => ask_once(path, request).await,
        answer => answer,
    }
}

async fn ask_once<S: DeserializeOwned>(
    path: &Path,
    request: &impl Serialize,
) -> Result<S, ClientError> {
    let talk = |source| ClientError::Talk {
        path: path.to_owned(),
        source,
    };
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) if is_absence(&error) => return Err(ClientError::NotThere(path.to_owned())),
        Err(source) => return Err(talk(source)),
    };
    let answer = timeout(ANSWER_WITHIN, converse(stream, request)).await;
    let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match answer.map_err(talk)? {
        Response::Ok(status) => Ok(*status),
        Response::Error(reason) => Err(ClientError::Refused(reason)),
    }
}

fn is_death(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

async fn converse<S: DeserializeOwned>(
    stream: UnixStream,
    request: &impl Serialize,
) -> io::Result<Response<S>> {
    let (reading, mut writing) = stream.into_split();
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    writing.write_all(&text).await?;
    let mut line = Vec::new();
    let bound = LINE_BYTES_MAX as u64;
    BufReader::new(reading.take(bound))
        .read_until(b'\n', &mut line)
        .await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

/// What a Frontman is started with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The service.
    pub service: String,
    /// The migration that wants it.
    pub owner: String,
    /// Control socket; its directory must exist.
    pub socket: PathBuf,
    /// State file; its directory must exist.
    pub state: PathBuf,
    /// File that its log is appended to; without one the log is dropped.
    pub log: Option<PathBuf>,
    /// For each of the system's ports, where it shall listen; port 0 takes a free one.
    pub ports: BTreeMap<u16, SocketAddr>,
    /// Bounds.
    pub limits: Limits,
}

impl Launch {
    /// The arguments of `ums-frontman`.
    pub fn arguments(&self) -> Vec<String> {
        let limits = &self.limits;
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: String| arguments.push(format!("--{name}={value}"));
        add("service", self.service.clone());
        add("owner", self.owner.clone());
        add("socket", self.socket.display().to_string());
        add("state", self.state.display().to_string());
        for (system_port, listen) in &self.ports {
            add("port", format!("{system_port}={listen}"));
        }
        add("hold-connections", limits.hold_connections.to_string());
        add("hold-bytes", limits.hold_bytes.to_string());
        add("hold-seconds", limits.hold_seconds.to_string());
        add("lead-connections", limits.lead_connections.to_string());
        add("retire-after", limits.retire_after_seconds.to_string());
        add("drain-seconds", limits.drain_seconds.to_string());
        arguments
    }
}

/// Starts a Frontman that outlives its starter, and returns when it listens.
///
/// *Idempotence*: one that answers already, of the same migration and with the same ports, is taken as
/// it is; its state may be another than holding.
///
/// # Errors
/// [`ClientError::Other`] when the one that answers is another migration's: it has to retire first.
pub async fn spawn(
    binary: &Path,
    launch: &Launch,
) -> Result<(FrontmanClient, Status), ClientError> {
    let client = FrontmanClient {
        path: launch.socket.clone(),
    };
    match client.status().await {
        Ok(status) if status.owner != launch.owner => {
            return Err(ClientError::Other(client.path));
        }
        Ok(status) => {
            let served = status.ports.iter().map(|port| &port.system_port);
            if served.eq(launch.ports.keys()) {
                return Ok((client, status));
            }
            return Err(ClientError::OtherPorts(client.path));
        }
        Err(ClientError::NotThere(_)) => {}
        Err(error) => return Err(error),
    }
    let arguments = std::iter::once("connections".to_owned()).chain(launch.arguments());
    let status = start(binary, arguments, None, launch.log.as_deref()).await?;
    Ok((client, status))
}

/// Starts a process that outlives its starter, hands it `input`, and returns what it says when it
/// is ready.
pub(crate) async fn start<S: DeserializeOwned>(
    binary: &Path,
    arguments: impl Iterator<Item = String>,
    input: Option<&[u8]>,
    log: Option<&Path>,
) -> Result<S, ClientError> {
    let failed = |reason: String| ClientError::Start {
        binary: binary.to_owned(),
        reason,
    };
    let stderr = match log {
        None => Stdio::null(),
        Some(path) => {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path);
            file.map_err(|error| failed(format!("its log {}: {error}", path.display())))?
                .into()
        }
    };
    let stdin = match input {
        None => Stdio::null(),
        Some(_) => Stdio::piped(),
    };
    // A process group of its own, so that a signal meant for the starter's terminal spares it.
    let mut child = Command::new(binary)
        .args(arguments)
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(stderr)
        .process_group(0)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let said = timeout(START_WITHIN, async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // If it doesn't read this it says why, or ends.
            let _ = stdin.write_all(input).await;
        }
        let mut line = String::new();
        if let Some(stdout) = stdout {
            let mut stdout = BufReader::new(stdout.take(LINE_BYTES_MAX as u64));
            stdout.read_line(&mut line).await?;
        }
        io::Result::Ok(line)
    });
    let Ok(Ok(line)) = said.await else {
        let _ = child.kill().await;
        return Err(failed(format!("it was not ready within {START_WITHIN:?}")));
    };
    match serde_json::from_str(&line) {
        Ok(Response::Ok(status)) => Ok(*status),
        Ok(Response::Error(reason)) => {
            let _ = child.wait().await;
            Err(failed(reason))
        }
        Err(_) => {
            let _ = child.kill().await;
            Err(failed(
                "it ended, or said what no Frontman says; see its log".to_owned(),
            ))
        }
    }
}
