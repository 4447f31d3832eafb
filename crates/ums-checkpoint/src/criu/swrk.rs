//! One run of `criu swrk`: CRIU as a child that takes one request over a socket pair.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use prost::Message;

use super::patience::{Patience, Waited};
use super::reason::Reason;
use super::rpc::{Notify, Opts, Request, RequestType, Response};
use super::watch::{Killer, LastMoment, Watched};
use crate::message::own;

/// The largest RPC message that we take from CRIU, bytes. Its answers are a few hundred.
const MESSAGE_LEN_MAX: usize = 64 * 1024;

/// Inherited descriptors get numbers from here on, clear of those that CRIU opens for itself first.
const FIRST_INHERITED: i32 = 20;

/// Lines of CRIU's log in the error of one that hangs.
const STUCK_LINES: usize = 12;

/// Held by whoever starts a program in a process that also runs CRIU: see [`Criu::spawn`].
pub(crate) fn starting() -> MutexGuard<'static, ()> {
    static STARTING: Mutex<()> = Mutex::new(());
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a run of CRIU failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program can't be started.
    #[error("can't start `{program}`: is the C/R bundle installed (`ums doctor`)?")]
    Spawn {
        /// What was tried.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It can't be watched.
    #[error(
        "the keeper can't trace CRIU: does it have CAP_SYS_PTRACE, and is no other tracer on its \
         programs?"
    )]
    Watch(#[source] io::Error),
    /// CRIU does nothing any more, or takes too long for what takes everybody a moment.
    #[error("CRIU hung when it should {during}; its log ends:\n{log}")]
    Stuck {
        /// The request.
        during: &'static str,
        /// End of CRIU's log.
        log: String,
    },
    /// It can't be waited for.
    #[error("no waiting for CRIU")]
    Wait(#[source] io::Error),
    /// CRIU went away.
    #[error("CRIU ended when it should {during}: {reason}")]
    Lost {
        /// The request.
        during: &'static str,
        /// What its log says of it.
        reason: Reason,
    },
    /// CRIU said no.
    #[error("CRIU could not {during}: {reason}")]
    Failed {
        /// The request.
        during: &'static str,
        /// Why.
        reason: Reason,
    },
    /// Something that is not CRIU's RPC.
    #[error("CRIU sent a message that is not its RPC: is it version 4.2.1 or later?")]
    Malformed(#[source] prost::DecodeError),
    /// Our own answer to a notification was a veto.
    #[error("{0}")]
    Vetoed(String),
    /// The socket pair could not be made or used.
    #[error("no socket to CRIU")]
    Socket(#[from] Errno),
}

/// Environment and place to run CRIU in.
pub struct Criu {
    /// The C/R bundle's `bin` directory: `criu` and the programs that it executes.
    pub bin: std::path::PathBuf,
    /// How long CRIU may do nothing.
    pub patience: Patience,
}

/// A running `criu swrk`.
pub struct Swrk {
    process: Watched,
    patience: Patience,
    /// When the next message must be there at the latest.
    end: Option<Instant>,
    socket: OwnedFd,
    inherited: Vec<i32>,
}

impl Criu {
    /// Starts `criu swrk` in the cgroups that `place` puts it into before it does anything, with
    /// the descriptors of `inherit`, whose numbers in CRIU are [`Swrk::inherited`].
    ///
    /// Some descriptors of a request CRIU finds in our process (the directories), others have to
    /// be its own (the page socket, what stands for resources of the image).
    ///
    /// `last_moment` is called when CRIU is about to end, of whatever cause: see [`watch`](super::watch).
    pub fn spawn(
        self,
        place: impl FnOnce(u32) -> io::Result<()>,
        inherit: &[BorrowedFd<'_>],
        last_moment: Option<LastMoment>,
    ) -> Result<Swrk, Error> {
        // Copies without close-on-exec, which no other thread may leak to a program that it starts.
        // They are closed here once CRIU has them.
        let _alone = starting();
        let copy = |fd: &BorrowedFd<'_>| fcntl(fd, FcntlArg::F_DUPFD(FIRST_INHERITED)).map(own);
        let copies: Vec<OwnedFd> = inherit.iter().map(copy).collect::<Result<_, _>>()?;
        let inherited = copies.iter().map(AsRawFd::as_raw_fd).collect();
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let program = self.bin.join("criu");
        // CRIU takes its end as standard input: the one descriptor that Command hands over
        // without unsafe code.
        let mut child = Command::new(&program)
            .args(["swrk", "0"])
            .env_clear()
            .env("PATH", &self.bin)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| Error::Spawn {
                program: program.display().to_string(),
                source,
            })?;
        if let Err(source) = place(child.id()) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Spawn {
                program: "criu in its cgroup".to_owned(),
                source,
            });
        }
        let process = Watched::new(child, last_moment).map_err(Error::Watch)?;
        Ok(Swrk {
            process,
            patience: self.patience,
            end: None,
            socket: ours,
            inherited,
        })
    }
}

impl Swrk {
    /// A `criu swrk` that somebody else has started, at the other end of `socket`, with descriptors of
    /// these numbers. Directories of a request it finds in the process that has made the socket pair.
    ///
    /// # Errors
    /// It has ended.
    pub fn of_another(
        socket: OwnedFd,
        id: u32,
        inherited: Vec<i32>,
        patience: Patience,
    ) -> io::Result<Self> {
        Ok(Self {
            process: Watched::of_another(id)?,
            patience,
            end: None,
            socket,
            inherited,
        })
    }

    /// Numbers in CRIU of the descriptors that it was started with, in their order.
    pub fn inherited(&self) -> &[i32] {
        &self.inherited
    }

    /// CRIU's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether CRIU is still there: not exited, not killed.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    fn send(
        &mut self,
        request: &Request,
        during: &'static str,
        log: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let bytes = request.encode_to_vec();
        match send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(lost(during, log)),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(
        &mut self,
        during: &'static str,
        log: &dyn Fn() -> String,
    ) -> Result<Response, Error> {
        let mut buffer = vec![0; MESSAGE_LEN_MAX];
        let waited = self.patience.wait(self.id(), self.end.take(), |look| {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let look = PollTimeout::try_from(look).unwrap_or(PollTimeout::ZERO);
            match poll(&mut fds, look) {
                Ok(ready) => Ok(ready > 0),
                Err(Errno::EINTR) => Ok(false),
                Err(errno) => Err(errno.into()),
            }
        });
        match waited.map_err(Error::Wait)? {
            Waited::Ready => {}
            Waited::InVain => {
                let log = end_of(&log(), STUCK_LINES);
                return Err(Error::Stuck { during, log });
            }
        }
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) if len > 0 => Response::decode(&buffer[..len]).map_err(Error::Malformed),
            _ => Err(lost(during, log)),
        }
    }

    /// The next message must come within this time, whatever CRIU does.
    pub fn must_answer_within(&mut self, time: Duration) {
        self.end = Some(Instant::now() + time);
    }

    /// What ends CRIU, for another thread.
    pub fn killer(&self) -> io::Result<Killer> {
        self.process.killer()
    }

    /// Makes one request and answers CRIU's notifications until it is over.
    ///
    /// `log` gives what CRIU has logged so far. `on_notify` is called for each notification with its name while CRIU waits; an error vetoes
    /// (which CRIU honours for `post-dump` and `post-restore` alone) and becomes the result.
    pub fn run(
        &mut self,
        kind: RequestType,
        opts: Opts,
        log: &dyn Fn() -> String,
        mut on_notify: impl FnMut(&mut Swrk, &Notify) -> Result<(), String>,
    ) -> Result<Response, Error> {
        let during = match kind {
            RequestType::Dump => "checkpoint the service",
            RequestType::Restore => "restore the service",
            _ => "serve the request",
        };
        let request = Request {
            kind: kind as i32,
            opts: Some(opts),
            notify_success: None,
        };
        self.send(&request, during, log)?;
        let mut veto = None;
        loop {
            let response = self.receive(during, log)?;
            if response.kind != RequestType::Notify as i32 {
                return match veto {
                    Some(reason) => Err(Error::Vetoed(reason)),
                    None if response.success => Ok(response),
                    None => Err(Error::Failed {
                        during,
                        reason: Reason::of(&log()),
                    }),
                };
            }
            let notify = response.notify.unwrap_or_default();
            let verdict = on_notify(self, &notify);
            let answer = Request {
                kind: RequestType::Notify as i32,
                opts: None,
                notify_success: Some(verdict.is_ok()),
            };
            self.send(&answer, during, log)?;
            veto = veto.or(verdict.err());
        }
    }

    /// Ends CRIU if it still runs, and collects it.
    pub fn end(self) {
        drop(self.socket);
        drop(self.process);
    }
}

fn lost(during: &'static str, log: &dyn Fn() -> String) -> Error {
    let reason = Reason::of(&log());
    Error::Lost { during, reason }
}

/// What CRIU has logged in `dir`; nothing where it has not come to that.
pub fn log_text(dir: &Path, name: &str) -> String {
    let text = std::fs::read(dir.join(name)).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// The last `lines` lines of a log that tell of errors; of all where none does.
pub fn end_of(log: &str, lines: usize) -> String {
    let telling = |line: &&str| line.contains("Error") || line.contains("Warn");
    let mut wanted: Vec<&str> = log.lines().filter(telling).collect();
    if wanted.is_empty() {
        wanted = log.lines().collect();
    }
    wanted[wanted.len().saturating_sub(lines)..].join("\n")
}
