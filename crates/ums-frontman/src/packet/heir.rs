//! The heir of an end: a second process that holds all that the end holds, and goes on as the end
//! when that dies.
//!
//! ```text
//!   end ──── descriptors once, then each change of its course ────▶ heir
//!    ✝ ────────────────────── end of file ───────────────────────▶ it is the end now,
//!                                                                   and raises an heir of its own
//! ```
//!
//! What the kernel keeps for an end lives as long as one of the two holds it: its namespace, its
//! device with what waits in it, its UDP socket, its control socket. So the death of one costs what
//! it had read and not passed on, as a lossy link would, and the heir is connected again after a
//! handshake. An heir that dies is replaced by the end. Only when both die at once do the tunnel
//! and the namespace go with them.
//!
//! There are never two ends: an heir takes over when the kernel says that the end's process is
//! dead, not when it is silent.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::control::{Phase, Role};
use super::core::Core;
use super::launch::{FarLaunch, LAUNCH_BYTES_MAX, NearLaunch};
use super::permit::{Doorkeeper, Permit};

/// An end's descriptors, in the order in which they are handed over.
const DESCRIPTORS: usize = 5;

/// Longest message about the course: a phase, three permits, numbers.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The end of a process follows the end of its descriptors within this long.
const DEATH_WITHIN: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// An end that dies again and again, each time younger than this, rests before it goes on.
const YOUNG: Duration = Duration::from_secs(10);

/// The first such rest; each is twice as long as the one before.
const REST_MIN: Duration = Duration::from_millis(10);

/// The longest.
const REST_MAX: Duration = Duration::from_secs(10);

/// An heir ends within this long when its end retires.
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
pub(crate) struct Deed {
    pub(crate) launch: Launch,
    /// What QUIC's connections are recognized by: with it the heir tells the other end that the
    /// connections of the dead one are no more.
    pub(crate) secret: Permit,
}

/// What changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Course {
    pub(crate) phase: Phase,
    pub(crate) ends_at: u64,
    pub(crate) permits: Permits,
    /// How many ends have died before this one.
    pub(crate) takeovers: u64,
}

/// What lets the near end in, as each end knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Permits {
    /// The near end will show this one.
    Near(Permit),
    /// The far end takes these.
    Far(Doorkeeper),
}

/// What the kernel keeps for an end.
#[derive(Debug)]
pub(crate) struct Estate {
    pub(crate) deed: File,
    pub(crate) namespace: OwnedFd,
    pub(crate) device: OwnedFd,
    pub(crate) socket: OwnedFd,
    pub(crate) control: OwnedFd,
}

/// What an heir goes on with.
#[derive(Debug)]
pub struct Inheritance {
    pub(crate) deed: Deed,
    pub(crate) course: Course,
    pub(crate) estate: Estate,
}

/// An end's line to its heir.
#[derive(Debug)]
pub(crate) struct Line {
    estate: Estate,
    role: Role,
    to: Mutex<Option<OwnedFd>>,
}

#[derive(Serialize, Deserialize)]
struct Message {
    pid: i32,
    course: Course,
}

impl Deed {
    pub(crate) fn new(launch: Launch) -> io::Result<Self> {
        let secret = Permit::random()?;
        Ok(Self { launch, secret })
    }

    /// A file that holds it, and that only those see who are handed its descriptor.
    pub(crate) fn keep(&self) -> io::Result<File> {
        let mut file = File::from(rustix::fs::memfd_create("ums-deed", MemfdFlags::CLOEXEC)?);
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
    pub(crate) fn new(role: Role, estate: Estate) -> Self {
        Self {
            estate,
            role,
            to: Mutex::default(),
        }
    }

    /// Starts an heir. When this returns it will have what it needs, whenever the end dies.
    pub(crate) fn raise(&self, course: Course) -> io::Result<Child> {
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
        // A process group of its own: what is meant for the end's spares it.
        let heir = Command::new("/proc/self/exe")
            .arg0(std::env::args_os().next().unwrap_or_default())
            .args([role, "--heir"])
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        let estate = &self.estate;
        let descriptors: [_; DESCRIPTORS] = [
            estate.deed.as_fd(),
            estate.namespace.as_fd(),
            estate.device.as_fd(),
            estate.socket.as_fd(),
            estate.control.as_fd(),
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let text = message(course)?;
        let text = [IoSlice::new(&text)];
        rustix::net::sendmsg(&ours, &text, &mut ancillary, SendFlags::NOSIGNAL)?;
        *self.to() = Some(ours);
        Ok(heir)
    }

    /// Tells the heir of a change. An error means that it doesn't know.
    pub(crate) fn tell(&self, course: Course) -> io::Result<()> {
        match &*self.to() {
            Some(heir) => {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                rustix::net::send(heir, &message(course)?, flags)?;
                Ok(())
            }
            // It is being raised, and will be told then.
            None => Ok(()),
        }
    }

    /// The control socket. Called inside a runtime.
    pub(crate) fn control(&self) -> io::Result<UnixListener> {
        let listener = std::os::unix::net::UnixListener::from(self.estate.control.try_clone()?);
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    fn to(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn message(course: Course) -> io::Result<Vec<u8>> {
    let pid = getpid().as_raw_nonzero().get();
    Ok(serde_json::to_vec(&Message { pid, course })?)
}

/// Sees to it that the end has an heir, until it is retiring.
pub(crate) async fn keep(core: Arc<Core>, first: io::Result<Child>) {
    let mut rest = REST_MIN;
    let mut raised = Some(first);
    loop {
        match raised.take().unwrap_or_else(|| core.raise_heir()) {
            Ok(heir) => {
                let raised = Instant::now();
                if stand_by(&core, heir).await {
                    return;
                }
                if raised.elapsed() >= YOUNG {
                    rest = REST_MIN;
                }
            }
            Err(error) => tracing::error!(%error, "cannot start an heir"),
        }
        tokio::select! {
            () = sleep(rest) => {}
            () = core.retiring() => return,
        }
        rest = (rest * 2).min(REST_MAX);
    }
}

/// Returns when the heir is no more; whether that was because the end is retiring.
async fn stand_by(core: &Core, mut heir: Child) -> bool {
    tokio::select! {
        _ = heir.wait() => {
            tracing::warn!("the heir died");
            return false;
        }
        () = core.heir_is_behind.notified() => {
            let _ = heir.kill().await;
            return false;
        }
        () = core.retiring() => {}
    }
    if timeout(FAREWELL, heir.wait()).await.is_err() {
        let _ = heir.kill().await;
    }
    true
}

/// Waits as the heir of the end at the other side of `line`. `None` when that has retired: there is
/// nothing to go on with. Blocks.
pub fn wait(line: impl AsFd) -> io::Result<Option<Inheritance>> {
    let raised = Instant::now();
    let mut estate = None;
    let mut known: Option<(Message, OwnedFd)> = None;
    while let Some((text, descriptors)) = receive(line.as_fd())? {
        let message: Message = serde_json::from_slice(&text)?;
        if message.course.phase == Phase::Retiring {
            return Ok(None);
        }
        if estate.is_none() {
            estate = Some(Estate::from(descriptors)?);
        }
        let process = match known {
            Some((_, process)) => process,
            None => match watch(message.pid) {
                Ok(process) => process,
                // It has died already.
                Err(rustix::io::Errno::SRCH) => return inherit(estate, message.course, raised),
                Err(error) => return Err(error.into()),
            },
        };
        known = Some((message, process));
    }
    let Some((message, process)) = known else {
        return Ok(None);
    };
    let mut death = [PollFd::new(&process, PollFlags::IN)];
    if rustix::io::retry_on_intr(|| poll(&mut death, Some(&DEATH_WITHIN)))? == 0 {
        return Err(io::Error::other("the end lives, and has left its heir"));
    }
    inherit(estate, message.course, raised)
}

fn inherit(
    estate: Option<Estate>,
    mut course: Course,
    raised: Instant,
) -> io::Result<Option<Inheritance>> {
    let Some(estate) = estate else {
        return Ok(None);
    };
    if course.takeovers > 0 && raised.elapsed() < YOUNG {
        let doublings = u32::try_from(course.takeovers - 1).unwrap_or(u32::MAX);
        let rest = REST_MIN.saturating_mul(2_u32.saturating_pow(doublings));
        std::thread::sleep(rest.min(REST_MAX));
    }
    course.takeovers += 1;
    let deed = Deed::read(&estate.deed)?;
    Ok(Some(Inheritance {
        deed,
        course,
        estate,
    }))
}

fn watch(pid: i32) -> Result<OwnedFd, rustix::io::Errno> {
    let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
    pidfd_open(pid, PidfdFlags::empty())
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

impl Estate {
    fn from(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let [deed, namespace, device, socket, control] =
            <[OwnedFd; DESCRIPTORS]>::try_from(descriptors)
                .map_err(|_| io::Error::other("an heir was not given what it needs"))?;
        Ok(Self {
            deed: deed.into(),
            namespace,
            device,
            socket,
            control,
        })
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            deed: self.deed.try_clone()?,
            namespace: self.namespace.try_clone()?,
            device: self.device.try_clone()?,
            socket: self.socket.try_clone()?,
            control: self.control.try_clone()?,
        })
    }
}
