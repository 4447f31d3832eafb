//! How an agent speaks to a keeper. Blocking: call it from a thread that may wait.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::protocol::{KeeperConfig, Reply, Request, Status};
use crate::message;

/// How long a new keeper may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// What a keeper and its guard are called in lists of processes.
pub(super) const PROCESS_NAME: &str = "ums-agent";
/// Pause between two attempts to reach a new keeper.
const START_PAUSE: Duration = Duration::from_millis(1);

/// Why a keeper did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no keeper at the socket: the service does not exist here, or its keeper was lost.
    #[error(
        "no keeper answers at `{}`: it was killed, and nothing can be asked of its service but \
         `ums rm`",
        path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not do it.
    #[error("{reason}")]
    Failed {
        /// Cause and remedy.
        reason: String,
        /// The state now.
        status: Box<Status>,
    },
    /// It went away during the request: whether the request took effect is unknown.
    #[error(
        "the keeper was lost during the request; see what killed it (the kernel's log), and what \
         became of the service (`ums list`)"
    )]
    Lost(#[source] io::Error),
    /// It could not be started.
    #[error("the keeper could not be started: {0}; `ums doctor` says what this host lacks")]
    Start(String),
}

impl Error {
    /// Whether it is certain that no keeper lives there, and that what it held can't be resumed by
    /// anybody: there is no socket, or nobody listens at it.
    pub fn is_gone(&self) -> bool {
        let Self::Unreachable { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        )
    }
}

/// A connection to a keeper.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
}

impl Keeper {
    /// Connects to the keeper that listens at `path`.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let unreachable = |errno: nix::Error| Error::Unreachable {
            path: path.to_owned(),
            source: errno.into(),
        };
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(unreachable)?;
        let address = UnixAddr::new(path).map_err(unreachable)?;
        connect(socket.as_raw_fd(), &address).map_err(unreachable)?;
        Ok(Self { socket })
    }

    /// Starts a keeper by running `program` with the configuration as its last argument, in a
    /// session of its own, and connects to it.
    pub fn start(program: &[String], config: &KeeperConfig) -> Result<Self, Error> {
        let start = |error: io::Error| Error::Start(error.to_string());
        let (first, rest) = program
            .split_first()
            .ok_or_else(|| Error::Start("no program".into()))?;
        let errors = std::fs::File::create(config.log.with_extension("keeper")).map_err(start)?;
        let json = serde_json::to_string(config).map_err(|error| start(error.into()))?;
        let mut child = Command::new(first)
            .arg0(PROCESS_NAME)
            .args(rest)
            .arg(json)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(start)?;
        let end = Instant::now() + START_PATIENCE;
        loop {
            match Self::connect(&config.socket) {
                Ok(keeper) => {
                    // Whoever started it may live longer: collect it when it ends.
                    std::thread::spawn(move || child.wait());
                    return Ok(keeper);
                }
                Err(error) => {
                    let gone = !matches!(child.try_wait(), Ok(None));
                    if gone || Instant::now() > end {
                        let _ = child.kill();
                        let _ = child.wait();
                        let path = config.log.with_extension("keeper");
                        let said = std::fs::read_to_string(path).unwrap_or_default();
                        return Err(Error::Start(format!("{error}: {}", said.trim())));
                    }
                }
            }
            std::thread::sleep(START_PAUSE);
        }
    }

    /// Makes one request and waits for its answer.
    pub fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Status, Error> {
        message::send(self.socket.as_fd(), request, fds).map_err(Error::Lost)?;
        match message::receive::<Reply>(self.socket.as_fd()).map_err(Error::Lost)? {
            Some((Reply::Done(status), _)) => Ok(status),
            Some((Reply::Failed { reason, status }, _)) => Err(Error::Failed {
                reason,
                status: Box::new(status),
            }),
            None => Err(Error::Lost(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// What the container is doing.
    pub fn status(&self) -> Result<Status, Error> {
        self.call(&Request::Status, &[])
    }
}
