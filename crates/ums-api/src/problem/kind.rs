//! The kinds of problems, as they are written on the wire.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// What kind of problem it is. A Coordinator decides by it; people read the rest.
        ///
        /// On the wire it is a word in kebab-case that keeps its meaning. Other releases may have
        /// kinds of their own: they are read, and handed on as they are.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum ProblemKind {
            $($(#[$doc])+ $name,)+
            /// One that this release has no name for.
            Other(String),
        }

        impl ProblemKind {
            /// The word on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)+
                    Self::Other(text) => text,
                }
            }

            fn known(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)+
                    _ => None,
                }
            }

            #[cfg(test)]
            const KNOWN: &[Self] = &[$(Self::$name,)+];
        }
    };
}

kinds! {
    /// The migration was abandoned while it was at work.
    Abandoned = "abandoned",
    /// The migration was aborted.
    Aborted = "aborted",
    /// The address can't be a service's.
    Address = "address",
    /// The address is another service's.
    AddressTaken = "address-taken",
    /// No address is free.
    Addresses = "addresses",
    /// The agent's answer can't be used.
    AgentFailed = "agent-failed",
    /// The agent does not answer.
    AgentUnreachable = "agent-unreachable",
    /// A body that can't be read.
    Body = "body",
    /// The service is being changed.
    Busy = "busy",
    /// Control groups.
    Cgroup = "cgroup",
    /// The migration is committed: too late to undo it.
    Committed = "committed",
    /// The service can't be confined on this node.
    Confinement = "confinement",
    /// A connection that can't move.
    Connections = "connections",
    /// A container can't be made.
    Container = "container",
    /// The container is still being made.
    Creating = "creating",
    /// The data path between two agents.
    DataPath = "data-path",
    /// A checkpoint that did not arrive.
    Delivery = "delivery",
    /// Digests differ.
    DigestMismatch = "digest-mismatch",
    /// A service's directories.
    Directories = "directories",
    /// An operator has given the service at the destination up.
    Discarded = "discarded",
    /// A checkpoint does not end.
    Dump = "dump",
    /// The Coordinator ends.
    Ending = "ending",
    /// The node's facts.
    Facts = "facts",
    /// A service's files can't be sent or received.
    Files = "files",
    /// A Frontman in connection mode.
    Frontman = "frontman",
    /// An image that a service is to be started from can't be had.
    Image = "image",
    /// A checkpoint's images, or the image store.
    Images = "images",
    /// A service can't be inspected.
    Inspect = "inspect",
    /// Pages are still being installed.
    Installing = "installing",
    /// The journal.
    Journal = "journal",
    /// A container's keeper.
    Keeper = "keeper",
    /// What was prepared at the destination is lost, and was never executed.
    Lost = "lost",
    /// A request that the agent can't read.
    Malformed = "malformed",
    /// There is no memory for it.
    Memory = "memory",
    /// The service is migrating.
    Migrating = "migrating",
    /// No such migration is known here.
    MigrationUnknown = "migration-unknown",
    /// The name is another service's.
    NameTaken = "name-taken",
    /// The services' network.
    Network = "network",
    /// The gate is not shut by this migration.
    NotBlocked = "not-blocked",
    /// An operator has not confirmed the risk.
    NotConfirmed = "not-confirmed",
    /// Nothing has been delivered to restore.
    NotDelivered = "not-delivered",
    /// Nothing is to be decided by an operator.
    NotNeeded = "not-needed",
    /// The data path is not open.
    NotOpen = "not-open",
    /// Whether it took effect is not known.
    OutcomeUnknown = "outcome-unknown",
    /// Pages can't be read.
    Pages = "pages",
    /// The program failed by itself.
    Panic = "panic",
    /// There is nothing at this path.
    PathUnknown = "path-unknown",
    /// The policy does not allow a peer to do it.
    PeerDenied = "peer-denied",
    /// No such peer.
    PeerUnknown = "peer-unknown",
    /// A permit that is none.
    Permit = "permit",
    /// The port is in use.
    PortTaken = "port-taken",
    /// A query that can't be read.
    Query = "query",
    /// There are no random numbers.
    Random = "random",
    /// A reason that can't be kept.
    Reason = "reason",
    /// What arrives is still being written.
    Receiving = "receiving",
    /// A service's record can't be written.
    Record = "record",
    /// A request that a Coordinator can't read.
    RequestMalformed = "request-malformed",
    /// A root filesystem can't be imported.
    Rootfs = "rootfs",
    /// The saga does not allow it.
    Saga = "saga",
    /// The service ended by itself.
    ServiceExited = "service-exited",
    /// No such service here.
    ServiceUnknown = "service-unknown",
    /// No socket can be made.
    Socket = "socket",
    /// A Specification that can't be had.
    Specification = "specification",
    /// A container can't be started.
    Start = "start",
    /// The technique is not available.
    Technique = "technique",
    /// This system's certificates can't be used.
    Tls = "tls",
    /// The migration is not that far.
    TooEarly = "too-early",
    /// The migration is further than that.
    TooLate = "too-late",
    /// More migrations than are remembered.
    TooManyMigrations = "too-many-migrations",
    /// More services than there may be.
    TooManyServices = "too-many-services",
    /// A Frontman's tunnel.
    Tunnel = "tunnel",
    /// Nothing is known of it.
    Unknown = "unknown",
    /// The migration is known from its other side.
    WrongRole = "wrong-role",
}

impl From<String> for ProblemKind {
    fn from(text: String) -> Self {
        Self::known(&text).unwrap_or(Self::Other(text))
    }
}

impl From<ProblemKind> for String {
    fn from(kind: ProblemKind) -> Self {
        match kind {
            ProblemKind::Other(text) => text,
            known => known.as_str().to_owned(),
        }
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_written() {
        let other = ProblemKind::Other("of-tomorrow".to_owned());
        for kind in ProblemKind::KNOWN.iter().chain([&other]) {
            let text = serde_json::to_string(kind).unwrap();
            assert_eq!(text, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<ProblemKind>(&text).unwrap(), *kind);
        }
    }

    #[test]
    fn a_word_is_what_it_was_in_earlier_releases() {
        assert_eq!(ProblemKind::ServiceExited.as_str(), "service-exited");
        assert_eq!(ProblemKind::from("lost".to_owned()), ProblemKind::Lost);
    }
}
