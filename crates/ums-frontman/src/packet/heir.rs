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
//! dead, however long that takes, and not when it is silent. An heir that can't be told of a change
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

use super::control::{Phase, Role};
use super::core::Core;
use super::launch::{FarLaunch, LAUNCH_BYTES_MAX, NearLaunch};
use super::permit::{Doorkeeper, Permit};

/// How many descriptors are handed over: the estate, and the end's own process.
const DESCRIPTORS: usize = 6;

/// Longest message about the course: a phase, three permits, numbers.
const MESSAGE_BYTES_MAX: usize = 4096;

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
    heir: Mutex<Option<Heir>>,
}

/// An heir, as its end knows it.
#[derive(Debug)]
struct Heir {
    line: OwnedFd,
    process: OwnedFd,
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
            heir: Mutex::default(),
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
        let heir = Command::new("/proc/self/exe")
            .arg0(std::env::args_os().next().unwrap_or_default())
            .args([role, "--heir"])
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        let pid = heir.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let process = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let estate = &self.estate;
        let descriptors: [_; DESCRIPTORS] = [
            estate.deed.as_fd(),
            estate.namespace.as_fd(),
            estate.device.as_fd(),
            estate.socket.as_fd(),
            estate.control.as_fd(),
            own.as_fd(),
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let text = serde_json::to_vec(&course)?;
        let text = [IoSlice::new(&text)];
        rustix::net::sendmsg(&ours, &text, &mut ancillary, SendFlags::NOSIGNAL)?;
        *self.heir() = Some(Heir {
            line: ours,
            process,
        });
        Ok(heir)
    }

    /// Tells the heir of a change: from then on no heir is alive that does not know.
    pub(crate) fn tell(&self, course: &Course) {
        let mut heir = self.heir();
        let Some(known) = &*heir else {
            // It is being raised, and will be told then.
            return;
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let told = serde_json::to_vec(course)
            .map_err(io::Error::from)
            .and_then(|text| Ok(rustix::net::send(&known.line, &text, flags)?));
        if let Err(error) = told {
            tracing::warn!(%error, "the heir can't be told of a change: another one will be");
            // Killed before its line is closed: it would take that for the death of this end.
            let _ = pidfd_send_signal(&known.process, Signal::KILL);
            *heir = None;
        }
    }

    /// The control socket. Called inside a runtime.
    pub(crate) fn control(&self) -> io::Result<UnixListener> {
        let listener = std::os::unix::net::UnixListener::from(self.estate.control.try_clone()?);
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    fn heir(&self) -> std::sync::MutexGuard<'_, Option<Heir>> {
        self.heir.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    // What is meant for the end's process group spares it, and if it happens to be stopped when the
    // end dies, the kernel has no reason to hang it up.
    let _ = rustix::process::setsid();
    let raised = Instant::now();
    let mut handed_over = None;
    let mut last: Option<Course> = None;
    while let Some((text, descriptors)) = receive(line.as_fd())? {
        let course: Course = serde_json::from_slice(&text)?;
        if course.phase == Phase::Retiring {
            return Ok(None);
        }
        if handed_over.is_none() {
            handed_over = Some(Estate::from(descriptors)?);
        }
        last = Some(course);
    }
    let (Some((estate, end)), Some(mut course)) = (handed_over, last) else {
        return Ok(None);
    };
    let mut death = [PollFd::new(&end, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut death, None))?;
    course.takeovers += 1;
    course.young_deaths = match raised.elapsed() < YOUNG {
        true => course.young_deaths.saturating_add(1),
        false => 0,
    };
    std::thread::sleep(rest_after(course.young_deaths));
    let deed = Deed::read(&estate.deed)?;
    Ok(Some(Inheritance {
        deed,
        course,
        estate,
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

impl Estate {
    /// From what an end hands over; and the end's own process.
    fn from(descriptors: Vec<OwnedFd>) -> io::Result<(Self, OwnedFd)> {
        let [deed, namespace, device, socket, control, end] =
            <[OwnedFd; DESCRIPTORS]>::try_from(descriptors)
                .map_err(|_| io::Error::other("an heir was not given what it needs"))?;
        let estate = Self {
            deed: deed.into(),
            namespace,
            device,
            socket,
            control,
        };
        Ok((estate, end))
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
