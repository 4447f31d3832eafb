//! What CRIU does not carry, and we do: looked at while the service is frozen before the dump, set
//! again after the restore, before the service's first instruction.
//!
//! Most of it is done from outside, on copies of the service's descriptors (`pidfd_getfd(2)`) and by
//! the ids of its threads; what a thread alone can set, CRIU is started with and hands on
//! ([`Inherited`]), and what a process alone can be asked and told, it is (`inside`). What was seen
//! goes into one image file beside CRIU's. The restore has three moments, all after CRIU has made every
//! descriptor:
//!
//! - [`Carry::hold`] at `post-restore`, before the migration is committed: everything that stays as it
//!   is set however long the service is held;
//! - [`Carry::resume`] at `pre-resume`, when nothing but the first instruction follows: what depends on
//!   the time, and what the other end of a connection notices;
//! - `Carry::tell` when CRIU has let go of the processes, which are frozen for it.
//!
//! What can't be set is returned as [`Lost`], which the report tells.
//!
//! Before that, two things are done about what CRIU would refuse: what is over in a moment is looked for
//! ([`passing`]), so that the service can be frozen at another one; and settings that stand in CRIU's way
//! are changed while it dumps ([`Eased`]).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ums_core::facts::{Loss, LossKind};

use crate::freezer::Freezer;
use crate::memory_dir::MemoryDir;
use crate::unix_queue::{self, Changed};
use crate::watches::Paths;

mod clock;
mod descriptor;
mod ease;
mod error;
mod event;
mod exclusive;
mod inherit;
mod inner;
mod ipc;
mod multicast;
mod netlink;
mod notify;
mod oddity;
mod option;
mod passing;
mod polling;
mod process;
pub(crate) mod raw;
mod room;
mod sched;
mod segment;
mod socket;
mod task;
mod timer;

pub use ease::Eased;
pub use inherit::{Inherited, differing};
pub(crate) use inner::Known;
pub use inner::not_asked;
pub use netlink::{OWN_DEVICES, is_only_ours};
pub use notify::{telling_directories, unread_events};
pub use oddity::{Oddity, look};
pub use passing::{Moment, passing};
pub(crate) use process::threads_of;
pub use process::{Process, processes};

use clock::Offsets;
use descriptor::{Kind, Place, Reach};
use option::Nature;

/// Name of the image file.
pub const NAME: &str = "ums-carry.json";

/// State of a service that CRIU does not carry. What a later version adds is empty when read from an
/// earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Carry {
    timers: Vec<timer::Timer>,
    sockets: socket::Sockets,
    multicast: Vec<multicast::Multicast>,
    events: Vec<event::Event>,
    watches: Vec<notify::Watch>,
    exclusive: Vec<exclusive::Exclusive>,
    polling: Vec<polling::Polling>,
    ipc: Vec<ipc::Object>,
    threads: Vec<task::Thread>,
    processes: Vec<task::Whole>,
    inherited: inherit::Family,
    inner: Vec<inner::Inner>,
    failed: Vec<error::Failed>,
    /// What was seen that nobody carries, to be told with what can't be set.
    noticed: Vec<Lost>,
}

/// Something of a service that could not be set again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// What kind of thing it is; keepers of an earlier release don't tell.
    #[serde(default = "unknown")]
    pub kind: LossKind,
    /// Process id inside the service's PID namespace; 0 when it is nobody's in particular.
    pub pid: i32,
    /// What it is, and why it could not be set.
    pub detail: String,
}

fn unknown() -> LossKind {
    LossKind::Other
}

impl Lost {
    fn new(kind: LossKind, pid: i32, detail: String) -> Self {
        Self { kind, pid, detail }
    }
}

impl From<Lost> for Loss {
    fn from(Lost { kind, pid, detail }: Lost) -> Self {
        Self { kind, pid, detail }
    }
}

/// Looks at the processes of a frozen service; `paths` are those of what it watches.
///
/// # Errors
/// When the state of a process can't be read at all, which then must not be dumped.
pub(crate) fn capture(processes: &[Process], paths: &Paths) -> io::Result<Carry> {
    let (reach, offsets) = (Reach::new(processes), offsets(processes)?);
    let mut carry = Carry::default();
    let mut sockets = socket::Collector::default();
    let groups = groups(processes)?;
    for (place, kind) in descriptor::all(processes)? {
        let copy = reach.get(place)?;
        match kind {
            Kind::Epoll => carry.polling.extend(polling::capture(&copy, place)),
            Kind::Event => carry.events.extend(event::capture(&copy, place)?),
            Kind::Notify => {
                let (watches, unread) = notify::capture(&copy, place, paths)?;
                carry.watches.extend(watches);
                carry.noticed.extend(unread);
            }
            Kind::Terminal => carry.exclusive.extend(exclusive::capture(&copy, place)),
            Kind::Timer => carry.timers.push(timer::capture(&copy, place, offsets)?),
            Kind::Socket => {
                let nature = sockets.add(&copy, place)?;
                let multicast = multicast::capture(&copy, place, nature, &groups)?;
                carry.multicast.extend(multicast);
                carry.failed.extend(error::capture(&copy, place, nature)?);
                carry.noticed.extend(notice(&copy, place, nature)?);
                if nature.domain == nix::libc::AF_UNIX {
                    for (place, kind, it) in descriptor::in_flight(&copy, place)? {
                        carry.add_in_flight((&it, place, kind), &mut sockets, &groups)?;
                    }
                }
            }
        }
    }
    carry.sockets = sockets.finish();
    let usual = task::Usual::here()?;
    for process in processes {
        carry.threads.extend(task::threads(*process, &usual)?);
        carry.processes.extend(task::whole(*process)?);
    }
    carry.inherited = inherit::Family::of(processes)?;
    carry.ipc = ipc::capture(processes)?;
    Ok(carry)
}

/// What of a socket of a frozen process is lost.
///
/// # Errors
/// It can't be dumped as it is: CRIU would leave out a part of its stream without a word.
fn notice(socket: &OwnedFd, place: Place, nature: Nature) -> io::Result<Vec<Lost>> {
    let Place { pid, fd, .. } = place;
    if nature.is_tcp() && (oddity::is_urgent(socket, nature) || oddity::hides_more(socket, nature)?)
    {
        return Err(io::Error::other(format!(
            "process {pid} has not read an urgent byte (MSG_OOB) of the connection behind descriptor \
             {fd}: migrate again when it has"
        )));
    }
    let lost = |(kind, what): (LossKind, &str)| Lost {
        kind,
        pid,
        detail: format!("the socket behind descriptor {fd}: {what}"),
    };
    // CRIU has the last word of what it can't dump.
    let told = oddity::of(socket, nature)
        .into_iter()
        .filter_map(|oddity| match oddity {
            Oddity::Unread => Some((LossKind::UnreadDatagrams, "what it had not read")),
            Oddity::Unaccepted => {
                Some((LossKind::UnacceptedConnection, "what it had not accepted"))
            }
            Oddity::PendingError => Some((LossKind::PendingError, "not at all")),
            // All of them are looked at below.
            Oddity::Sender | Oddity::Empty => None,
            Oddity::Uncarried(_) | Oddity::Urgent | Oddity::Ring | Oddity::SharedPort => None,
        });
    let told = told.map(lost);
    Ok(told.chain(messages(socket, place, nature)?).collect())
}

/// Messages in a unix socket that are not given again as they are.
fn messages(socket: &OwnedFd, place: Place, nature: Nature) -> io::Result<Vec<Lost>> {
    if nature.domain != nix::libc::AF_UNIX {
        return Ok(Vec::new());
    }
    let Place { pid, fd, .. } = place;
    let Changed {
        named,
        empty,
        behind,
        errors,
    } = unix_queue::changed(socket)?;
    let urgent = usize::from(unix_queue::is_urgent(socket));
    let told = [
        (urgent, LossKind::UrgentData, "urgent bytes (MSG_OOB)"),
        (
            behind,
            LossKind::UnreadDatagrams,
            "messages behind one without content",
        ),
        (named, LossKind::PeerName, "senders' names of messages"),
        (empty, LossKind::UnreadDatagrams, "messages without content"),
        (errors, LossKind::PendingError, "resets (ECONNRESET)"),
    ];
    let lost = |(count, kind, what): (usize, LossKind, &str)| {
        let detail =
            format!("the socket behind descriptor {fd}: {count} {what} that it had not read");
        (count > 0).then(|| Lost::new(kind, pid, detail))
    };
    Ok(told.into_iter().filter_map(lost).collect())
}

/// All processes of a service are in one network namespace.
fn groups(processes: &[Process]) -> io::Result<multicast::Groups> {
    let first = processes.first();
    first.map_or_else(
        || Ok(multicast::Groups::default()),
        |first| multicast::Groups::of(first.pid),
    )
}

/// All processes of a service are in one time namespace.
fn offsets(processes: &[Process]) -> io::Result<Offsets> {
    processes
        .first()
        .map_or_else(|| Ok(Offsets::default()), |first| Offsets::of(first.pid))
}

impl Carry {
    /// What is on its way between processes (SCM_RIGHTS), of what can be carried there.
    fn add_in_flight(
        &mut self,
        (it, place, kind): (&OwnedFd, Place, Kind),
        sockets: &mut socket::Collector,
        groups: &multicast::Groups,
    ) -> io::Result<()> {
        match kind {
            Kind::Epoll => self.polling.extend(polling::capture(it, place)),
            Kind::Event => self.events.extend(event::capture(it, place)?),
            Kind::Socket => {
                let nature = sockets.add(it, place)?;
                let multicast = multicast::capture(it, place, nature, groups)?;
                self.multicast.extend(multicast);
            }
            // The one is refused, the other has not got a path.
            Kind::Terminal | Kind::Timer | Kind::Notify => {}
        }
        Ok(())
    }

    /// Writes it beside the images of a checkpoint.
    pub fn write(&self, images: &MemoryDir) -> io::Result<()> {
        images.write(NAME, &serde_json::to_vec(self)?)
    }

    /// Asks the processes of a frozen service for what they alone can be asked; they stay frozen.
    ///
    /// # Errors
    /// When one of them can't be asked in this time, or has a state that CRIU can't dump: it must not be
    /// dumped.
    pub(crate) fn ask(
        &mut self,
        freezer: &Freezer,
        processes: &[Process],
        known: &mut Known,
        within: Duration,
    ) -> io::Result<()> {
        let seen = inner::capture(freezer, processes, known, within)?;
        self.inner = seen.inner;
        self.noticed.extend(seen.lost);
        Ok(())
    }

    /// Whether restored processes have to be [told](Carry::tell) something.
    pub(crate) fn has_to_tell(&self) -> bool {
        !self.inner.is_empty()
    }

    /// Tells restored processes, which are frozen and have not run yet, what they alone can be told; they
    /// run in the end.
    pub(crate) fn tell(
        &self,
        freezer: &Freezer,
        processes: &[Process],
        within: Duration,
    ) -> Vec<Lost> {
        inner::apply(&self.inner, freezer, processes, within)
    }

    /// What is lost where nothing can be told to restored processes.
    pub(crate) fn untold(&self, error: &io::Error) -> Vec<Lost> {
        inner::untold(&self.inner, error)
    }

    /// Reads what [`Carry::write`] wrote; a checkpoint of an earlier version has none.
    ///
    /// # Errors
    /// `InvalidData` when it is malformed.
    pub fn read(images: &MemoryDir) -> io::Result<Self> {
        match std::fs::read(images.path().join(NAME)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Sets what stays as it is set, in restored processes that have not run yet. May be followed by
    /// any wait.
    pub fn hold(&self, processes: &[Process]) -> Vec<Lost> {
        let reach = Reach::new(processes);
        let mut lost = self.sockets.apply(&reach);
        lost.extend(multicast::apply(&self.multicast, &reach));
        lost.extend(event::apply(&self.events, &reach));
        lost.extend(notify::apply(&self.watches, &reach, processes));
        lost.extend(exclusive::apply(&self.exclusive, &reach));
        lost.extend(polling::apply(&self.polling, &reach));
        lost.extend(ipc::apply(&self.ipc, processes));
        lost.extend(task::apply(&self.threads, &self.processes, processes));
        lost.extend(self.inherited.lost(processes));
        lost.extend(error::apply(&self.failed, &reach));
        lost.extend(self.noticed.iter().cloned());
        lost
    }

    /// What CRIU has to be started with.
    pub fn inherited(&self) -> Inherited {
        self.inherited.first()
    }

    /// Sets the rest, right before the first instruction.
    pub fn resume(&self, processes: &[Process]) -> Vec<Lost> {
        let reach = Reach::new(processes);
        match offsets(processes) {
            Ok(offsets) => timer::apply(&self.timers, &reach, offsets),
            Err(error) => vec![Lost {
                kind: LossKind::Timer,
                pid: 0,
                detail: format!("timers: the service's clocks can't be read: {error}"),
            }],
        }
    }
}
