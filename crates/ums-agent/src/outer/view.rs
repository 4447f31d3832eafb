//! Where the first process of an outer container is: in the namespaces of the service while there is one, so
//! that an engine that enters *its* namespaces (`docker exec`, health checks) reaches the service.
//!
//! The PID namespace is the exception: a process can't change its own. What is executed sees the service's
//! files, network, host name and IPC, and all processes of the outer container, by their numbers there.

use std::fs::File;
use std::io;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Namespaces that the first process changes. The mount namespace last: after that paths are other ones.
const KINDS: [(&str, CloneFlags); 4] = [
    ("net", CloneFlags::CLONE_NEWNET),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// Namespaces of a process, held by descriptors.
pub(super) struct Namespaces(Vec<(File, CloneFlags)>);

impl Namespaces {
    /// Those of a process of this PID namespace, or of `self`.
    pub(super) fn of(pid: &str) -> io::Result<Self> {
        let open = |(name, flag): (&str, CloneFlags)| {
            Ok((File::open(format!("/proc/{pid}/ns/{name}"))?, flag))
        };
        KINDS
            .into_iter()
            .map(open)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Enters all of them. This process has to have one thread.
    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(self
            .0
            .iter()
            .try_for_each(|(file, flag)| setns(file, *flag))?)
    }
}

/// Enters the namespaces of the service whose init this is; its mounts are seen in a copy, in which `/proc`
/// shows the processes of this PID namespace: a `/proc` that shows none of whoever looks at it has no
/// `/proc/self`, which programs rely on.
pub(super) fn enter(init: i32) -> io::Result<()> {
    Namespaces::of(&init.to_string())?.enter()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), "/proc", Some("proc"), flags, none)?)
}
