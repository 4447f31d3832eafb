//! The first process of an outer container: hands signals on, starts the agent and starts it again, collects
//! whoever has lost its parent, and ends with the exit code of the service.
//!
//! It has one thread and does nothing that could fail for the service's size; the agent may be killed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::settings::Settings;
use super::told::Told;
use super::view::{self, Namespaces};

/// Pause before an agent that has ended is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// How long the rest of what the service has said may take to get out after its end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The first process.
pub(super) struct First {
    settings: String,
    log: File,
    own: Namespaces,
    signals: SignalFd,
    agent: Pid,
    told: BufReader<std::process::ChildStdout>,
    service: Option<Running>,
    moving: bool,
    waiting: BTreeSet<i32>,
}

struct Running {
    init: i32,
    process: OwnedFd,
}

/// What comes next.
enum Next {
    Signal(i32),
    Told,
}

impl First {
    /// Blocks signals, and starts the agent.
    pub(super) fn start(settings: &Settings, log: File) -> anyhow::Result<Self> {
        let all = SigSet::all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
        let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let settings = serde_json::to_string(settings)?;
        let (agent, told) = agent(&settings, &log)?;
        Ok(Self {
            settings,
            log,
            own: Namespaces::of("self")?,
            signals,
            agent,
            told,
            service: None,
            moving: false,
            waiting: BTreeSet::new(),
        })
    }

    /// Goes on until there is nothing left to do here; gives the container's exit code.
    pub(super) fn run(mut self) -> anyhow::Result<u8> {
        loop {
            let code = match self.next()? {
                Next::Signal(number) if number == Signal::SIGCHLD as i32 => {
                    self.collect();
                    None
                }
                Next::Signal(number) => self.signal(number),
                Next::Told => self.told()?,
            };
            if let Some(code) = code {
                self.end();
                return Ok(code);
            }
        }
    }

    fn next(&mut self) -> anyhow::Result<Next> {
        if self.told.buffer().contains(&b'\n') {
            return Ok(Next::Told);
        }
        loop {
            if let Some(signal) = self.signals.read_signal()? {
                return Ok(Next::Signal(i32::try_from(signal.ssi_signo)?));
            }
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.told.get_ref().as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                polled => polled?,
            };
            let readable = |at: usize| fds[at].revents().unwrap_or(PollFlags::empty());
            // That it has hung up is told by the agent's end, which comes as a signal.
            if !readable(0).contains(PollFlags::POLLIN) && readable(1).contains(PollFlags::POLLIN) {
                return Ok(Next::Told);
            }
            if !readable(0).contains(PollFlags::POLLIN) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// A signal to the container is one to the service. While that is being moved it waits: it belongs to
    /// wherever the service is afterwards, and is not lost if that is here.
    fn signal(&mut self, number: i32) -> Option<u8> {
        let ends = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT].map(|it| it as i32);
        match &self.service {
            Some(_) if self.moving => {
                self.waiting.insert(number);
                None
            }
            Some(service) => {
                service.send(number);
                None
            }
            None => ends.contains(&number).then_some(0),
        }
    }

    fn told(&mut self) -> anyhow::Result<Option<u8>> {
        let mut line = String::new();
        // An agent that is killed leaves half a line.
        if self.told.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(None);
        }
        match serde_json::from_str(&line).with_context(|| format!("the agent said {line:?}"))? {
            Told::Runs { init, moving } => self.runs(init, moving),
            Told::Nothing => self.nothing(),
            Told::End { code } => return Ok(Some(code)),
        }
        Ok(None)
    }

    fn runs(&mut self, init: i32, moving: bool) {
        self.moving = moving;
        if self.service.as_ref().is_none_or(|it| it.init != init) {
            self.go_home();
            self.service = Running::of(init);
            // Without it `docker exec` reaches the outer container's files, and not the service's.
            if let Err(error) = view::enter(init) {
                eprintln!("ums-agent: the service's namespaces can't be entered: {error}");
                self.go_home();
            }
        }
        if let (Some(service), false) = (&self.service, moving) {
            std::mem::take(&mut self.waiting)
                .into_iter()
                .for_each(|number| service.send(number));
        }
    }

    /// What waited for the service has gone with it, or was meant for nobody.
    fn nothing(&mut self) {
        self.moving = false;
        self.waiting.clear();
        if self.service.take().is_some() {
            self.go_home();
        }
    }

    fn go_home(&self) {
        if let Err(error) = self.own.enter() {
            eprintln!("ums-agent: the container's own namespaces can't be entered again: {error}");
        }
    }

    /// Collects who has ended; an agent that has is started again.
    fn collect(&mut self) {
        while let Some(pid) = ended() {
            if pid != self.agent {
                continue;
            }
            self.go_home();
            (self.agent, self.told) = loop {
                std::thread::sleep(RESTART_PAUSE);
                match agent(&self.settings, &self.log) {
                    Ok(started) => break started,
                    // The service goes on without it.
                    Err(error) => eprintln!("ums-agent: {error:#}"),
                }
            };
            if let Some(service) = &self.service {
                let _ = view::enter(service.init);
            }
        }
    }

    /// Ends the agent, which may be killed at any time, and waits for the rest of what the service has said.
    fn end(&self) {
        let _ = nix::sys::signal::kill(self.agent, Signal::SIGKILL);
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

impl Running {
    fn of(init: i32) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(init)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { init, process })
    }

    /// One that has ended is told nothing: the agent tells of its end.
    fn send(&self, number: i32) {
        if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
            let _ = pidfd_send_signal(&self.process, signal);
        }
    }
}

/// Somebody who has ended.
fn ended() -> Option<Pid> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(status) => status.pid(),
        Err(_) => None,
    }
}

/// Starts the agent, which tells by its standard output.
fn agent(
    settings: &str,
    log: &File,
) -> anyhow::Result<(Pid, BufReader<std::process::ChildStdout>)> {
    let mut child = Command::new("/proc/self/exe")
        .arg0("ums-agent")
        .args(["outer-agent", settings])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        // Of the terminal's signals it gets none.
        .process_group(0)
        .spawn()
        .context("the agent can't be started")?;
    let told = child.stdout.take().context("no standard output")?;
    Ok((
        Pid::from_raw(i32::try_from(child.id())?),
        BufReader::new(told),
    ))
}
