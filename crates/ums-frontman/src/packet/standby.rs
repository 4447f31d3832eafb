//! The standby of an end: a second process that holds all that the end holds, and goes on as the end
//! when that dies.
//!
//! ```text
//!   end ──── descriptors once, then each change of its state ────▶ standby
//!    ✝ ────────────────────── end of file ───────────────────────▶ it is the end now,
//!                                                                   and raises a standby of its own
//! ```
//!
//! What the kernel keeps for an end lives as long as one of the two holds it: its namespace, its
//! device with what waits in it, its UDP socket, its control socket. So the death of one costs what
//! it had read and not passed on, as a lossy link would, and the standby is connected again after a
//! handshake. A standby that dies is replaced by the end. Only when both die at once do the tunnel
//! and the namespace go with them.
//!
//! There are never two ends: a standby takes over when the kernel says that the end's process is
//! dead, however long that takes, and not when it is silent. A standby that can't be told of a change
//! is killed before anybody acts on the change, and replaced.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::control::{EndMode, Role};
use super::core::Core;
use super::launch::{FarLaunch, LAUNCH_BYTES_MAX, NearLaunch};
use super::permit::{Permit, ValidPermits};

/// How many descriptors are handed over: the handles, and the end's own process.
const DESCRIPTORS: usize = 6;

/// Longest message about the standing: a phase, three permits, numbers.
const MESSAGE_BYTES_MAX: usize = 4096;

/// An end that dies again and again, each time younger than this, rests before it goes on.
const YOUNG: Duration = Duration::from_secs(10);

/// The first such rest; each is twice as long as the one before.
const REST_MIN: Duration = Duration::from_millis(10);

/// The longest.
const REST_MAX: Duration = Duration::from_secs(10);

/// A standby ends within this long when its end retires.
const FAREWELL: Duration = Duration::from_secs(1);

/// What an end was started with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Launch {
    Near(NearLaunch),
    Far(FarLaunch),
}

/// What does not change in an end's life.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) launch: Launch,
    /// What QUIC's connections are recognized by: with it the standby tells the other end that the
    /// connections of the dead one are no more.
    pub(crate) secret: Permit,
}

/// What changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) phase: EndMode,
    /// By the system's monotonic clock, milliseconds.
    pub(crate) ends_at_ms: u64,
    pub(crate) permits: Permits,
    /// How many ends have died before this one.
    pub(crate) takeovers: u64,
    /// How many of them, the last ones in a row, died young.
    pub(crate) young_deaths: u32,
}

/// What lets the near end in, as each end knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Permits {
    /// The near end will show this one.
    Near(Permit),
    /// The far end takes these.
    Far(ValidPermits),
}

/// What the kernel keeps for an end.
#[derive(Debug)]
pub(crate) struct Handles {
    pub(crate) setup: File,
    pub(crate) namespace: OwnedFd,
    pub(crate) device: OwnedFd,
    pub(crate) socket: OwnedFd,
    pub(crate) control: OwnedFd,
}

/// What a standby goes on with.
#[derive(Debug)]
pub struct Handover {
    pub(crate) setup: Setup,
    pub(crate) standing: Standing,
    pub(crate) handles: Handles,
}

/// An end's line to its standby.
#[derive(Debug)]
pub(crate) struct Line {
    handles: Handles,
    role: Role,
    standby: Mutex<Option<Standby>>,
}

/// A standby, as its end knows it.
#[derive(Debug)]
struct Standby {
    line: OwnedFd,
    process: OwnedFd,
}

impl Setup {
    pub(crate) fn new(launch: Launch) -> io::Result<Self> {
        let secret = Permit::random()?;
        Ok(Self { launch, secret })
    }

    /// A file that holds it, and that only those see who are handed its descriptor.
    pub(crate) fn keep(&self) -> io::Result<File> {
        let mut file = File::from(rustix::fs::memfd_create("ums-setup", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file)
    }

    fn read(mut file: &File) -> io::Result<Self> {
        let mut text = Vec::new();
        file.rewind()?;
        file.take(2 * LAUNCH_BYTES_MAX).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

impl Line {
    pub(crate) fn new(role: Role, handles: Handles) -> Self {
        Self {
            handles,
            role,
            standby: Mutex::default(),
        }
    }

    /// Starts a standby. When this returns it will have what it needs, whenever the end dies.
    pub(crate) fn raise(&self, standing: Standing) -> io::Result<Child> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let role = match self.role {
            Role::Near => "near",
            Role::Far => "far",
        };
        let standby = Command::new("/proc/self/exe")
            .arg0(std::env::args_os().next().unwrap_or_default())
            .args([role, "--standby"])
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        let pid = standby.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let process = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let handles = &self.handles;
        let descriptors: [_; DESCRIPTORS] = [
            handles.setup.as_fd(),
            handles.namespace.as_fd(),
            handles.device.as_fd(),
            handles.socket.as_fd(),
            handles.control.as_fd(),
            own.as_fd(),
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let text = serde_json::to_vec(&standing)?;
        let text = [IoSlice::new(&text)];
        rustix::net::sendmsg(&ours, &text, &mut ancillary, SendFlags::NOSIGNAL)?;
        *self.standby() = Some(Standby {
            line: ours,
            process,
        });
        Ok(standby)
    }

    /// Tells the standby of a change: from then on no standby is alive that does not know.
    pub(crate) fn tell(&self, standing: &Standing) {
        let mut standby = self.standby();
        let Some(known) = &*standby else {
            // It is being raised, and will be told then.
            return;
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let told = serde_json::to_vec(standing)
            .map_err(io::Error::from)
            .and_then(|text| Ok(rustix::net::send(&known.line, &text, flags)?));
        if let Err(error) = told {
            tracing::warn!(%error, "the standby can't be told of a change: another one will be");
            // Killed before its line is closed: it would take that for the death of this end.
            let _ = pidfd_send_signal(&known.process, Signal::KILL);
            *standby = None;
        }
    }

    /// The control socket. Called inside a runtime.
    pub(crate) fn control(&self) -> io::Result<UnixListener> {
        let listener = std::os::unix::net::UnixListener::from(self.handles.control.try_clone()?);
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    fn standby(&self) -> std::sync::MutexGuard<'_, Option<Standby>> {
        self.standby.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees to it that the end has a standby, until it is retiring.
pub(crate) async fn keep(core: Arc<Core>, first: io::Result<Child>) {
    let mut rest = REST_MIN;
    let mut raised = Some(first);
    loop {
        match raised.take().unwrap_or_else(|| core.start_standby()) {
            Ok(standby) => {
                let raised = Instant::now();
                if stand_by(&core, standby).await {
                    return;
                }
                if raised.elapsed() >= YOUNG {
                    rest = REST_MIN;
                }
            }
            Err(error) => tracing::error!(%error, "cannot start a standby"),
        }
        tokio::select! {
            () = sleep(rest) => {}
            () = core.retiring() => return,
        }
        rest = (rest * 2).min(REST_MAX);
    }
}

/// Returns when the standby is no more; whether that was because the end is retiring.
async fn stand_by(core: &Core, mut standby: Child) -> bool {
    tokio::select! {
        _ = standby.wait() => {
            tracing::warn!("the standby died");
            return false;
        }
        () = core.retiring() => {}
    }
    if timeout(FAREWELL, standby.wait()).await.is_err() {
        let _ = standby.kill().await;
    }
    true
}

/// Waits as the standby of the end at the other side of `line`. `None` when that has retired: there is
/// nothing to go on with. Blocks.
pub fn wait(line: impl AsFd) -> io::Result<Option<Handover>> {
    // What is meant for the end's process group spares it, and if it happens to be stopped when the
    // end dies, the kernel has no reason to hang it up.
    let _ = rustix::process::setsid();
    let raised = Instant::now();
    let mut handed_over = None;
    let mut last: Option<Standing> = None;
    while let Some((text, descriptors)) = receive(line.as_fd())? {
        let standing: Standing = serde_json::from_slice(&text)?;
        if standing.phase == EndMode::Retiring {
            return Ok(None);
        }
        if handed_over.is_none() {
            handed_over = Some(Handles::from(descriptors)?);
        }
        last = Some(standing);
    }
    let (Some((handles, end)), Some(mut standing)) = (handed_over, last) else {
        return Ok(None);
    };
    let mut death = [PollFd::new(&end, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut death, None))?;
    standing.takeovers += 1;
    standing.young_deaths = match raised.elapsed() < YOUNG {
        true => standing.young_deaths.saturating_add(1),
        false => 0,
    };
    std::thread::sleep(rest_after(standing.young_deaths));
    let setup = Setup::read(&handles.setup)?;
    Ok(Some(Handover {
        setup,
        standing,
        handles,
    }))
}

/// How long to rest after so many young deaths in a row: one may be chance.
fn rest_after(young_deaths: u32) -> Duration {
    match young_deaths.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => REST_MIN
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(REST_MAX),
    }
}

/// The next message and its descriptors; `None` at the end.
fn receive(line: std::os::fd::BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut text = vec![0; MESSAGE_BYTES_MAX];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = rustix::io::retry_on_intr(|| {
        let text = &mut [IoSliceMut::new(&mut text)];
        rustix::net::recvmsg(line, text, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let length = match length {
        Ok(received) => received.bytes,
        // What the end had not read when it died.
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(error) => return Err(error.into()),
    };
    if length == 0 {
        return Ok(None);
    }
    text.truncate(length);
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    Ok(Some((text, descriptors.collect())))
}

impl Handles {
    /// From what an end hands over; and the end's own process.
    fn from(descriptors: Vec<OwnedFd>) -> io::Result<(Self, OwnedFd)> {
        let [setup, namespace, device, socket, control, end] =
            <[OwnedFd; DESCRIPTORS]>::try_from(descriptors)
                .map_err(|_| io::Error::other("a standby was not given what it needs"))?;
        let handles = Self {
            setup: setup.into(),
            namespace,
            device,
            socket,
            control,
        };
        Ok((handles, end))
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            setup: self.setup.try_clone()?,
            namespace: self.namespace.try_clone()?,
            device: self.device.try_clone()?,
            socket: self.socket.try_clone()?,
            control: self.control.try_clone()?,
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn one_young_death_costs_no_rest_and_many_a_bounded_one() {
        assert_eq!(rest_after(0), Duration::ZERO);
        assert_eq!(rest_after(1), Duration::ZERO);
        assert_eq!(rest_after(2), REST_MIN);
        assert_eq!(rest_after(4), 4 * REST_MIN);
        assert_eq!(rest_after(u32::MAX), REST_MAX);
    }
}
