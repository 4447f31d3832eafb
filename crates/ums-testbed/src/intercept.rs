//! A gate between a Coordinator and its agent: it lets every request pass until a chosen one comes,
//! and stops that one, before or after its effect, for as long as a test needs to break something.
//!
//! The programs know nothing of it. The gate takes the place of the agent's socket, and connections
//! that the Coordinator kept open are shut so that it comes through the gate. As soon as the chosen
//! request has come, the socket is the agent's own again; what still passes through the gate are
//! the connections that were made meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SocketAddrUnix, getpeername};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// File name of the agent's socket while it is behind a gate.
const BEHIND: &str = "agent-behind-gate.sock";

/// How often it is looked for somebody at the gate.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The largest head of a message; heads have a few short lines.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The largest body, as large as the programs' own limit.
const BODY_BYTES_MAX: usize = 16 << 20;

/// When a request is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before the agent has heard of it.
    Before,
    /// When the agent has answered, before the Coordinator hears of it.
    After,
}

/// Which request is stopped.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// What its path ends with.
    pub operation: &'static str,
    /// Which of those that come, counted from 1.
    pub number: usize,
    /// When.
    pub moment: Moment,
}

/// What becomes of the request that was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// It goes on as if nothing had been.
    On,
    /// The agent gets it twice, one after the other; the second answer counts.
    Twice,
    /// It is lost: the connection breaks.
    Lost,
}

/// An interceptor in its place. Dropping it takes it away and shuts what passes through it.
#[derive(Debug)]
pub struct Interceptor {
    shared: Arc<Shared>,
    reached: Receiver<()>,
    decide: Sender<Passage>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    behind: PathBuf,
    stop: Stop,
    /// Whether the socket's name leads to the agent again.
    aside: AtomicBool,
    /// Whether nobody passes any more.
    gone: AtomicBool,
    seen: Mutex<usize>,
    tell: Mutex<Option<Sender<()>>>,
    decision: Mutex<Option<Receiver<Passage>>>,
    connections: Mutex<Vec<UnixStream>>,
}

impl Interceptor {
    /// Puts an interceptor before the agent's socket at `path`, through which the Coordinator with this
    /// process id will come.
    pub fn close(path: &Path, coordinator: i32, stop: Stop) -> Result<Self> {
        let behind = path.with_file_name(BEHIND);
        // Bound under another name first, so that there is a socket at every moment.
        let new = path.with_file_name("intercept.sock");
        let listener = UnixListener::bind(&new)
            .with_context(|| format!("cannot listen at {}", new.display()))?;
        listener.set_nonblocking(true)?;
        std::fs::hard_link(path, &behind)
            .with_context(|| format!("no agent's socket at {}", path.display()))?;
        std::fs::rename(&new, path)?;
        let (tell, reached) = channel();
        let (decide, decision) = channel();
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            behind,
            stop,
            aside: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            seen: Mutex::new(0),
            tell: Mutex::new(Some(tell)),
            decision: Mutex::new(Some(decision)),
            connections: Mutex::default(),
        });
        let guards = Arc::clone(&shared);
        std::thread::spawn(move || guards.accept(&listener));
        let gate = Self {
            shared,
            reached,
            decide,
        };
        shut_connections(coordinator, path)?;
        Ok(gate)
    }

    /// Waits until the chosen request stands at the gate; the agent's socket is its own again then.
    pub fn wait(&self, patience: Duration) -> Result<()> {
        match self.reached.recv_timeout(patience) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("`{}` did not come to the gate", self.shared.stop.operation)
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the gate was given up"),
        }
    }

    /// Lets the request that was stopped pass.
    pub fn pass(&self, passage: Passage) {
        // Whoever stood there may be gone: then there is nothing to let pass.
        let _ = self.decide.send(passage);
    }
}

impl Drop for Interceptor {
    fn drop(&mut self) {
        self.shared.step_aside();
        self.shared.gone.store(true, Ordering::SeqCst);
        for stream in lock(&self.shared.connections).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &UnixListener) {
        // Who came while the gate stood is let through after it has stepped aside, too.
        while !self.gone.load(Ordering::SeqCst) {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(LOOK_EVERY);
                continue;
            };
            let guard = Arc::clone(&self);
            // A connection that breaks is for its two ends to notice.
            std::thread::spawn(move || drop(guard.serve(stream)));
        }
    }

    /// The socket is the agent's own again.
    fn step_aside(&self) {
        if !self.aside.swap(true, Ordering::SeqCst) {
            // One that was started meanwhile has its own socket there, and no name behind.
            let _ = std::fs::rename(&self.behind, &self.path);
        }
    }

    fn serve(&self, near: UnixStream) -> Result<()> {
        near.set_nonblocking(false)?;
        let far = UnixStream::connect(&self.behind).or_else(|_| UnixStream::connect(&self.path))?;
        {
            let mut connections = lock(&self.connections);
            connections.push(near.try_clone()?);
            connections.push(far.try_clone()?);
        }
        let served = self.exchanges(&near, &far);
        let _ = near.shutdown(Shutdown::Both);
        let _ = far.shutdown(Shutdown::Both);
        served
    }

    fn exchanges(&self, near: &UnixStream, far: &UnixStream) -> Result<()> {
        let (mut from_near, mut from_far) = (BufReader::new(near), BufReader::new(far));
        let (mut to_near, mut to_far) = (near, far);
        while let Some(request) = Message::read(&mut from_near)? {
            let stopped = self.is_chosen(&request.first_line());
            let mut passage = Passage::On;
            if stopped && self.stop.moment == Moment::Before {
                passage = self.stand();
            }
            ensure!(passage != Passage::Lost, "the request was lost");
            to_far.write_all(&request.0)?;
            let mut answer = Message::read(&mut from_far)?.context("no answer")?;
            if stopped && self.stop.moment == Moment::After {
                passage = self.stand();
            }
            ensure!(passage != Passage::Lost, "the answer was lost");
            if passage == Passage::Twice {
                to_far.write_all(&request.0)?;
                answer = Message::read(&mut from_far)?.context("no second answer")?;
            }
            to_near.write_all(&answer.0)?;
        }
        Ok(())
    }

    fn is_chosen(&self, first_line: &str) -> bool {
        let path = first_line.split(' ').nth(1).unwrap_or_default();
        if !path.ends_with(self.stop.operation) {
            return false;
        }
        let mut seen = lock(&self.seen);
        *seen += 1;
        *seen == self.stop.number
    }

    fn stand(&self) -> Passage {
        self.step_aside();
        let (tell, decision) = (lock(&self.tell).take(), lock(&self.decision).take());
        let told = tell.is_some_and(|tell| tell.send(()).is_ok());
        match decision {
            // A test that is over lets nothing pass any more.
            Some(decision) if told => decision.recv().unwrap_or(Passage::Lost),
            _ => Passage::Lost,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An HTTP/1.1 message with a length, as the programs send them.
struct Message(Vec<u8>);

impl Message {
    /// The next one; `None` when there will be none.
    fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let mut bytes = Vec::new();
        let mut length = 0;
        loop {
            let begin = bytes.len();
            if from.read_until(b'\n', &mut bytes)? == 0 {
                ensure!(begin == 0, "a message was cut off");
                return Ok(None);
            }
            ensure!(bytes.len() <= HEAD_BYTES_MAX, "a head without an end");
            let line = String::from_utf8_lossy(&bytes[begin..]).to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            ensure!(
                !line.starts_with("transfer-encoding:"),
                "a message without a length"
            );
            if line.trim().is_empty() {
                break;
            }
        }
        ensure!(length <= BODY_BYTES_MAX, "a body of {length} bytes");
        let head = bytes.len();
        bytes.resize(head + length, 0);
        from.read_exact(&mut bytes[head..])?;
        Ok(Some(Self(bytes)))
    }

    fn first_line(&self) -> String {
        let end = self.0.iter().position(|byte| *byte == b'\r');
        String::from_utf8_lossy(&self.0[..end.unwrap_or_default()]).into_owned()
    }
}

/// Shuts the connections of a process to the socket of this name, as if its server had closed them.
fn shut_connections(pid: i32, socket: &Path) -> Result<()> {
    let name = socket.file_name().context("a socket has a name")?;
    let process = Pid::from_raw(pid).context("a process id")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    for entry in descriptors.flatten() {
        let link = std::fs::read_link(entry.path()).unwrap_or_default();
        if !link.to_string_lossy().starts_with("socket:") {
            continue;
        }
        let number = entry.file_name().to_string_lossy().parse()?;
        // It may have been closed meanwhile.
        let Ok(stream) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let peer = getpeername(&stream).ok().flatten();
        let peer = peer.and_then(|address| SocketAddrUnix::try_from(address).ok());
        let leads_there = peer.as_ref().and_then(SocketAddrUnix::path_bytes);
        let leads_there = leads_there.is_some_and(|path| path.ends_with(name.as_encoded_bytes()));
        if leads_there {
            UnixStream::from(stream).shutdown(Shutdown::Both)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn messages_are_read_one_by_one() {
        let bytes = b"POST /a/run HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /b HTTP/1.1\r\n\r\n";
        let mut from = &bytes[..];
        let first = Message::read(&mut from).expect("whole").expect("one");
        assert_eq!(first.first_line(), "POST /a/run HTTP/1.1");
        assert!(first.0.ends_with(b"\r\n\r\n{}"));
        let second = Message::read(&mut from).expect("whole").expect("another");
        assert_eq!(second.first_line(), "GET /b HTTP/1.1");
        assert!(Message::read(&mut from).expect("the end").is_none());
        assert!(Message::read(&mut &bytes[..30]).is_err(), "it is cut off");
    }

    #[test]
    fn a_request_is_stopped_and_lost() {
        let directory = std::env::temp_dir().join(format!("ums-gate-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let path = directory.join("agent.sock");
        let agent = UnixListener::bind(&path).expect("a socket");
        let own = i32::try_from(std::process::id()).expect("a process id");
        let stop = Stop {
            operation: "/run",
            number: 1,
            moment: Moment::Before,
        };
        let gate = Interceptor::close(&path, own, stop).expect("a gate");
        let mut coordinator = UnixStream::connect(&path).expect("it lets us come");
        coordinator
            .write_all(b"POST /x/run HTTP/1.1\r\n\r\n")
            .expect("written");
        gate.wait(Duration::from_secs(10)).expect("it came");
        drop(UnixStream::connect(&path).expect("the agent's own socket"));
        gate.pass(Passage::Lost);
        let mut answer = Vec::new();
        coordinator.read_to_end(&mut answer).expect("an end");
        assert!(answer.is_empty(), "nothing comes back");
        drop((gate, agent));
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
