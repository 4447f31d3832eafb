//! The log pump: a process that reads what a service writes to its standard output and standard
//! error, and appends it to the service's log.
//!
//! It is a process apart because a pipe whose reader is gone kills who writes to it (SIGPIPE): a
//! service shall go on when its keeper is killed, also one that logs. It ends when nobody is left
//! who could write: the service and its keeper. A pump that is killed is started again by the
//! keeper, which keeps the pipes' other ends open meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};

use crate::criu::swrk::starting;
use crate::message;

/// A log is cut back to nothing when it has grown to this, bytes: a chatty service must not fill
/// the disk of a node.
const LOG_LEN_MAX: u64 = 16 << 20;
/// Pause before a pump that ended is started again, so that one that ends at once is not started
/// over and over in a moment.
const RESTART_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// The message with which a pump gets the pipes' read ends.
#[derive(Debug, Serialize, Deserialize)]
struct Pipes;

/// Starts a pump that appends to `log`, and returns the write ends for a service's standard output
/// and standard error.
///
/// # Errors
/// When it can't be started: a service whose output nobody reads would stop or die of it.
pub(super) fn start(program: &[String], log: &Path) -> io::Result<[OwnedFd; 2]> {
    let (out, out_writer) = io::pipe()?;
    let (err, err_writer) = io::pipe()?;
    let pump = Pump {
        program: program.to_vec(),
        log: log.to_owned(),
        readers: [out.into(), err.into()],
    };
    let child = pump.spawn()?;
    std::thread::spawn(move || pump.keep(child));
    Ok([out_writer.into(), err_writer.into()])
}

struct Pump {
    program: Vec<String>,
    log: PathBuf,
    readers: [OwnedFd; 2],
}

impl Pump {
    fn spawn(&self) -> io::Result<Child> {
        let (first, rest) = self.program.split_first().ok_or(io::ErrorKind::NotFound)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let mut command = Command::new(first);
        command
            .arg0(super::client::PROCESS_NAME)
            .args(rest)
            .arg(&self.log)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = {
            let _alone = starting();
            command.spawn()?
        };
        let [out, err] = &self.readers;
        message::send(ours.as_fd(), &Pipes, &[out.as_fd(), err.as_fd()])?;
        Ok(child)
    }

    /// Starts it again whenever it is killed, as long as the keeper lives.
    fn keep(&self, mut child: Child) {
        loop {
            let ended = child.wait();
            tracing::warn!(?ended, log = %self.log.display(), "the log's pump has ended");
            loop {
                std::thread::sleep(RESTART_PAUSE);
                match self.spawn() {
                    Ok(new) => {
                        child = new;
                        break;
                    }
                    Err(error) => tracing::error!(%error, "no pump for the service's log"),
                }
            }
        }
    }
}

/// Runs a pump: its standard input is the socket to its keeper, from which it gets the pipes, of
/// standard output and standard error, and appends to these files. Returns when nobody can write to the
/// pipes any more.
pub fn run(logs: [&Path; 2]) -> io::Result<()> {
    // A session of its own: what kills the keeper's process group does not kill the pump.
    let _ = nix::unistd::setsid();
    let (Pipes, fds) =
        message::receive(io::stdin().as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let threads: Vec<_> = fds
        .into_iter()
        .zip(logs)
        .map(|(fd, log)| {
            let mut log = OpenOptions::new().create(true).append(true).open(log)?;
            Ok(std::thread::spawn(move || {
                copy(&mut File::from(fd), &mut log)
            }))
        })
        .collect::<io::Result<_>>()?;
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn copy(pipe: &mut File, log: &mut File) {
    let mut buffer = [0; 8192];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => {
                let is_full = |of: std::fs::Metadata| of.is_file() && of.len() > LOG_LEN_MAX;
                if log.metadata().is_ok_and(is_full) {
                    let _ = log.set_len(0);
                }
                // A log that can't be written must not stop the service.
                let _ = log.write_all(&buffer[..len]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
