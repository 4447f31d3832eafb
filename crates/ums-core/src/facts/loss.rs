//! What a move changes: declared in the plan and in the report.

use serde::{Deserialize, Serialize};

/// Something of a service that is not the same after a move.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Loss {
    /// What it is.
    pub kind: LossKind,
    /// Process id inside the service's PID namespace; 0 when it is nobody's in particular.
    pub pid: i32,
    /// What was seen, and what becomes of it.
    pub detail: String,
}

/// Kinds of loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LossKind {
    /// An option of a socket (`socket(7)`, `tcp(7)`, `ip(7)`) has another value.
    SocketOption,
    /// A socket leaves a multicast group.
    Multicast,
    /// The mark of a TCP urgent byte that was not read yet.
    UrgentData,
    /// SO_PEERCRED names another process.
    PeerCredentials,
    /// The name of the other end of a unix connection.
    PeerName,
    /// Datagrams in a socket that were not read yet: nobody is promised them.
    UnreadDatagrams,
    /// Events of inotify(7) that were not read yet.
    UnreadEvents,
    /// A flag of a watch (inotify(7), IN_EXCL_UNLINK and IN_ONESHOT).
    Watch,
    /// A directory tells of what happens in it no more (`fcntl(2)`, F_NOTIFY).
    DirectoryNotification,
    /// A request of asynchronous I/O that waits (`io_submit(2)`, IOCB_CMD_POLL).
    AsynchronousRequest,
    /// A ring of packets (`packet(7)`, PACKET_RX_RING) is empty and begins at its first frame.
    PacketRing,
    /// An eventfd that counted down by one (EFD_SEMAPHORE) is read as a whole.
    EventfdSemaphore,
    /// System V semaphores are not put back when a process ends (SEM_UNDO).
    SemaphoreUndo,
    /// The CPUs a thread may run on.
    CpuAffinity,
    /// Keys of a session, process or thread keyring (`keyrings(7)`).
    Keyring,
    /// Memory that was sealed against changes (`mseal(2)`) is not any more.
    SealedMemory,
    /// An attribute of a process that the kernel keeps (`prctl(2)`, `/proc/PID`).
    ProcessAttribute,
    /// The end of a child is told to its parent by SIGCHLD, where it was another signal or none (`clone(2)`).
    ChildSignal,
    /// A wait that counts from its beginning lasts longer.
    RelativeTimeout,
    /// Bytes in a terminal that were not read yet, and a line in it that has no end yet.
    TerminalData,
    /// The kernel tells another path of a file whose name is another file's by now (`/proc/PID/fd`, `/proc/PID/exe`).
    FilePath,
    /// A file without a name (O_TMPFILE) can't be given one any more.
    TemporaryFile,
    /// A lease of a file (`fcntl(2)`, F_SETLEASE).
    FileLease,
    /// What a Landlock domain forbids (`landlock(7)`) is allowed afterwards.
    Landlock,
    /// A connection that waits in a listener's queue is reset.
    UnacceptedConnection,
    /// An error of a socket that its owner has not been told (SO_ERROR, `socket(7)`).
    PendingError,
    /// A timer (`timerfd_create(2)`, `timer_create(2)`) is not set as it was.
    Timer,
    /// A directory of the host is copied with the service, and is not the host's any more.
    HostDirectory,
    /// What its engine was told of the container and nobody does at the destination.
    EngineSetting,
    /// The ports that its engine has published lead nowhere any more.
    EnginePorts,
    /// Names that its engine resolves for it are not found any more.
    EngineNames,
    /// What its engine keeps of the container and is not there any more.
    EngineRecord,
    /// The destination's release carries less than the source's.
    EarlierRelease,
    /// A kind that a later release has added.
    #[serde(other)]
    Other,
}

impl LossKind {
    /// Whether the service may behave otherwise than before, so that somebody has to accept it
    /// (`ums migrate --accept-loss`). What is not so only answers a question to the kernel, or
    /// changes how fast something is; it is told and no more.
    pub fn needs_consent(self) -> bool {
        match self {
            Self::Multicast
            | Self::UrgentData
            | Self::PacketRing
            | Self::EventfdSemaphore
            | Self::SemaphoreUndo
            | Self::Keyring
            | Self::ChildSignal
            | Self::FileLease
            | Self::DirectoryNotification
            | Self::Landlock
            | Self::Timer
            | Self::HostDirectory
            | Self::EngineSetting
            | Self::EnginePorts
            | Self::EngineNames
            | Self::Other => true,
            Self::SocketOption
            | Self::UnreadDatagrams
            | Self::UnreadEvents
            | Self::Watch
            | Self::AsynchronousRequest
            | Self::UnacceptedConnection
            | Self::PendingError
            | Self::PeerCredentials
            | Self::PeerName
            | Self::CpuAffinity
            | Self::SealedMemory
            | Self::ProcessAttribute
            | Self::RelativeTimeout
            | Self::TerminalData
            | Self::FilePath
            | Self::TemporaryFile
            | Self::EngineRecord
            | Self::EarlierRelease => false,
        }
    }

    /// What becomes of it, for people.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::SocketOption => "an option of a socket has another value",
            Self::Multicast => "a socket leaves a multicast group",
            Self::UrgentData => "an urgent byte is read as an ordinary one",
            Self::PeerCredentials => {
                "the other end of a unix connection is told as another process"
            }
            Self::PeerName => "the other end of a unix connection is told without its name",
            Self::UnreadDatagrams => "datagrams that were not read yet are gone",
            Self::UnreadEvents => "events of inotify that were not read yet are gone",
            Self::DirectoryNotification => "a directory tells of no changes any more",
            Self::Watch => "a watch of inotify lacks a flag",
            Self::AsynchronousRequest => "a poll that waits in an AIO context is gone",
            Self::PacketRing => "a ring of packets is empty and begins anew",
            Self::EventfdSemaphore => "an eventfd semaphore becomes a plain counter",
            Self::SemaphoreUndo => "semaphores are not put back when a process ends",
            Self::CpuAffinity => "a thread may run on other CPUs",
            Self::Keyring => "keys of a kernel keyring are gone",
            Self::SealedMemory => "sealed memory can be changed",
            Self::ProcessAttribute => "an attribute of a process has its default value",
            Self::ChildSignal => "the end of a child is told by SIGCHLD",
            Self::RelativeTimeout => "a wait lasts longer than it was asked to",
            Self::TerminalData => "bytes under way in a terminal are changed",
            Self::FilePath => "the path of a file that has lost its name is told otherwise",
            Self::TemporaryFile => "a file without a name can't be given one",
            Self::FileLease => "a file lease is gone",
            Self::Landlock => "what Landlock forbade is allowed",
            Self::UnacceptedConnection => "a connection that was not accepted yet is reset",
            Self::PendingError => "an error that was not told yet is told otherwise",
            Self::Timer => "a timer is not set as it was",
            Self::HostDirectory => "a directory of the host is copied along and no longer shared",
            Self::EngineSetting => "a setting of its engine is not kept",
            Self::EnginePorts => "the ports that its engine has published end",
            Self::EngineNames => "names that its engine resolves are not found",
            Self::EngineRecord => "a record of its engine stays behind",
            Self::EarlierRelease => "the destination's release carries less of a service",
            Self::Other => "something is not as it was",
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_loss_as_it_is_written() {
        let loss = Loss {
            kind: LossKind::SemaphoreUndo,
            pid: 7,
            detail: "set 0".to_owned(),
        };
        let text = r#"{"kind":"semaphore-undo","pid":7,"detail":"set 0"}"#;
        assert_eq!(serde_json::to_string(&loss).unwrap(), text);
        assert_eq!(serde_json::from_str::<Loss>(text).unwrap(), loss);
    }

    #[test]
    fn what_a_later_release_loses_has_to_be_accepted_too() {
        let text = r#"{"kind":"good-mood","pid":0,"detail":"all of it"}"#;
        let loss: Loss = serde_json::from_str(text).unwrap();
        assert_eq!(loss.kind, LossKind::Other);
        assert!(loss.kind.needs_consent());
    }
}
