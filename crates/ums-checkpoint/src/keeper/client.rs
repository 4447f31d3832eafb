//! How an agent speaks to a keeper. Blocking: call it from a thread that may wait.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::protocol::{KeeperConfig, Reply, Request, Status};
use crate::message;

/// How long a new keeper may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How long a keeper may take to be free for one more connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a keeper may take to say what its container is doing: it only looks.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);
/// What a keeper and its guard are called in lists of processes.
pub(super) const PROCESS_NAME: &str = "ums-agent";
/// Pause between two attempts to reach a new keeper.
const START_PAUSE: Duration = Duration::from_millis(1);

/// Why a keeper did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no keeper at the socket, and nobody who could resume what one held: the service does
    /// not exist here, or its keeper was lost.
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
    /// It does not answer now, or we can't ask: whether it lives is not known.
    #[error(
        "the keeper at `{}` does not answer now: it is busy, or this system lacks descriptors or \
         memory; try again",
        path.display()
    )]
    Busy {
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
        matches!(self, Self::Unreachable { .. })
    }

    fn connecting(path: &Path, errno: Errno) -> Self {
        let (path, source) = (path.to_owned(), errno.into());
        match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ECONNREFUSED => {
                Self::Unreachable { path, source }
            }
            _ => Self::Busy { path, source },
        }
    }
}

/// A connection to a keeper.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
    path: PathBuf,
}

impl Keeper {
    /// Connects to the keeper that listens at `path`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where there is none, [`Error::Busy`] where that is not certain.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let failed = |errno| Error::connecting(path, errno);
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(failed)?;
        // While as many wait as can, connecting waits too.
        let patience = TimeVal::new(CONNECT_PATIENCE.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::SendTimeout, &patience).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        message::uninterrupted(|| connect(socket.as_raw_fd(), &address)).map_err(failed)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
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

    /// The connection, for who speaks [`placing`](super::placing) over it.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
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

    /// What the container is doing. A keeper answers that at once, whatever else it does.
    ///
    /// # Errors
    /// [`Error::Busy`] when it does not answer within seconds all the same.
    pub fn status(&self) -> Result<Status, Error> {
        let patience = |seconds| {
            let wait = TimeVal::new(seconds, 0);
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &wait).map_err(|errno| Error::Busy {
                path: self.path.clone(),
                source: errno.into(),
            })
        };
        patience(STATUS_PATIENCE.as_secs() as i64)?;
        let status = self.call(&Request::Status, &[]);
        match status {
            Err(Error::Lost(source)) if source.kind() == io::ErrorKind::WouldBlock => {
                // Its answer may come yet: nothing else can be asked here.
                let path = self.path.clone();
                Err(Error::Busy { path, source })
            }
            status => patience(0).and(status),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_nobody_listening_means_gone() {
        let path = Path::new("/run/ums/services/x/keeper.sock");
        for errno in [Errno::ENOENT, Errno::ECONNREFUSED] {
            assert!(Error::connecting(path, errno).is_gone());
        }
        for errno in [Errno::EAGAIN, Errno::EMFILE, Errno::ENOMEM, Errno::EINTR] {
            let error = Error::connecting(path, errno);
            assert!(!error.is_gone() && error.to_string().contains("busy"));
        }
    }
}
