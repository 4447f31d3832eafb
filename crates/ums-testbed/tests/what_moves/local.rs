//! Rows of what goes on between the processes of a service: unix sockets, terminals, sessions and
//! groups, pipes and locks.

use super::table::Evidence::{Specimen, Test};
use super::table::Outcome::{Carried, Declared, Refused};
use super::table::{Row, SEEN, row};

/// By whom most of it is carried.
const CRIU: &str = "CRIU";

/// By what it is found before the freeze.
const ASKED: &str = "the kernel is asked (`sock_diag(7)`), several times, before the freeze";

pub(crate) const UNIX: &[Row] = &[
    row(
        "unix socket whose other end is outside the service",
        Refused,
        ASKED,
        Test("what_can_not_be_carried_is_named"),
    ),
    row(
        "descriptors in flight",
        Carried,
        CRIU,
        Specimen("unix-rights"),
    ),
    row(
        "a socket in flight through itself",
        Carried,
        CRIU,
        Specimen("unix-cycle"),
    ),
    row(
        "connection that waits to be accepted, without data",
        Carried,
        "CRIU connects again",
        Specimen("unix-waiting-empty"),
    ),
    row(
        "connection that waits to be accepted, with data in it",
        Refused,
        ASKED,
        Specimen("unix-waiting-data"),
    ),
    row(
        "connection that waits to be accepted and is closed",
        Refused,
        ASKED,
        Specimen("unix-waiting-closed"),
    ),
    row(
        "datagrams of several unnamed senders",
        Carried,
        CRIU,
        Specimen("unix-many-unnamed"),
    ),
    row(
        "other end closed, with data unread",
        Carried,
        CRIU,
        Specimen("unix-closed"),
    ),
    row(
        "closed in one direction, with data unread in both",
        Carried,
        CRIU,
        Specimen("unix-half"),
    ),
    row(
        "queue that is full, and a writer that waits",
        Carried,
        CRIU,
        Specimen("unix-full"),
    ),
    row(
        "packets with borders (SOCK_SEQPACKET)",
        Carried,
        CRIU,
        Specimen("unix-packets"),
    ),
    row(
        "the same, waiting to be accepted",
        Carried,
        CRIU,
        Specimen("further-packets"),
    ),
    row(
        "name removed, with its directory; bound anew since then",
        Carried,
        CRIU,
        Specimen("unix-removed"),
    ),
    row(
        "name relative to a directory that was left",
        Carried,
        CRIU,
        Specimen("unix-relative"),
    ),
    row(
        "abstract name: with zeros, of full length, given by the kernel",
        Carried,
        CRIU,
        Specimen("unix-binary"),
    ),
    row(
        "offset to peek from (SO_PEEK_OFF)",
        Carried,
        "set again where it differs",
        Specimen("unix-peek"),
    ),
    row(
        "unread messages whose senders the reader is told (SO_PASSCRED)",
        Refused,
        ASKED,
        Specimen("unix-credentials"),
    ),
    row(
        "such a message, or a connection with data, that is there for a moment when the service is frozen",
        Carried,
        "looked for once more in the freeze, and frozen again at another moment, up to five times",
        Specimen("moment-reads"),
    ),
    row(
        "the same with connections",
        Carried,
        "as above",
        Specimen("moment-accepts"),
    ),
    row(
        "unread message that is larger than its reader may send itself",
        Carried,
        "the reader's buffer is larger while CRIU looks",
        Specimen("unix-large"),
    ),
    row(
        "in flight: a socket that has descriptors in its own queue",
        Refused,
        "queues are looked into before the freeze, and to their ends in it",
        Specimen("unix-nested"),
    ),
    row(
        "SO_PEERCRED",
        Declared,
        "it names the process that CRIU makes both ends in, and root",
        Specimen("unix-peer-credentials"),
    ),
    row(
        "name of the sender of a datagram that was not read",
        Declared,
        "it has none; the plan tells of the first one in a queue, the report of all",
        Specimen("unix-sender"),
    ),
    row(
        "message without content that was not read",
        Declared,
        "it is gone; those behind it stay, unless it is the first of datagrams; the plan tells of the first one in a queue, the report of all",
        Specimen("unix-empty"),
    ),
    row(
        "unread bytes whose sender the reader is told (SO_PASSCRED), of a stream",
        Refused,
        ASKED,
        Specimen("unix-credentials-stream"),
    ),
    row(
        "an urgent byte (`MSG_OOB`) that was not read",
        Declared,
        "it is an ordinary one",
        Specimen("unix-urgent"),
    ),
    row(
        "datagram socket that is connected to itself, and what it has sent itself",
        Declared,
        "carried, but for the sender's name",
        Specimen("unix-oneself"),
    ),
    row(
        "datagram socket whose peer has been closed",
        Declared,
        "its next datagram is answered with `ENOTCONN` at once, and not first with `ECONNREFUSED`",
        Specimen("unix-orphan"),
    ),
    row(
        "name of an accepted connection (getsockname, getpeername)",
        Declared,
        "it has none",
        Specimen("unix-peer-name"),
    ),
];

pub(crate) const TERMINALS: &[Row] = &[
    row(
        "shell with jobs in a pseudo-terminal: session, foreground group, modes, window size",
        Carried,
        CRIU,
        Specimen("pty-job"),
    ),
    row(
        "terminal whose session's leader has ended, and nobody has asked how",
        Carried,
        CRIU,
        Specimen("pty-zombie"),
    ),
    row(
        "bytes unread in a raw terminal, both ways",
        Carried,
        CRIU,
        Specimen("pty-queued"),
    ),
    row(
        "lines unread in a terminal that edits them, and one without an end",
        Declared,
        "that one is lost; what is echoed may be echoed twice",
        Specimen("pty-lines"),
    ),
    row(
        "terminal whose master is closed",
        Carried,
        CRIU,
        Specimen("pty-hung"),
    ),
    row(
        "a terminal that nobody else may open (TIOCEXCL)",
        Carried,
        "set again",
        Specimen("pty-exclusive"),
    ),
    row(
        "master in packet mode (TIOCPKT), of a terminal that nobody else may open",
        Carried,
        "CRIU, and TIOCEXCL set again",
        Specimen("pty-packet"),
    ),
    row(
        "master alone, still locked",
        Carried,
        CRIU,
        Specimen("pty-alone"),
    ),
    row(
        "session that has its terminal not open itself",
        Carried,
        CRIU,
        Specimen("pty-bare"),
    ),
    row(
        "terminal in flight between two processes (SCM_RIGHTS)",
        Refused,
        "queues are looked into before the freeze, and to their ends in it",
        Specimen("pty-flight"),
    ),
    row(
        "`/dev/tty` open in the one process that has terminals open, leads the session and is in front",
        Carried,
        CRIU,
        Specimen("pty-controlling-alone"),
    ),
    row(
        "`/dev/tty` open otherwise",
        Refused,
        SEEN,
        Specimen("pty-controlling"),
    ),
    row(
        "session whose leader has ended",
        Carried,
        CRIU,
        Specimen("groups-session"),
    ),
    row(
        "the same, the leader a zombie",
        Carried,
        CRIU,
        Specimen("groups-session-zombie"),
    ),
    row(
        "group whose leader has ended",
        Carried,
        CRIU,
        Specimen("groups-group"),
    ),
    row(
        "the same, the leader a zombie",
        Carried,
        CRIU,
        Specimen("groups-group-zombie"),
    ),
    row(
        "both: group and session without leaders",
        Carried,
        CRIU,
        Specimen("groups-both"),
    ),
    row(
        "sessions inside sessions",
        Carried,
        CRIU,
        Specimen("groups-nested"),
    ),
    row(
        "pipeline whose first member has ended",
        Carried,
        CRIU,
        Specimen("groups-pipeline"),
    ),
    row(
        "children that have ended, and how",
        Carried,
        CRIU,
        Specimen("groups-zombies"),
    ),
    row(
        "reaper of others' children",
        Carried,
        CRIU,
        Specimen("groups-reaper"),
    ),
    row(
        "child adopted by the first process",
        Carried,
        CRIU,
        Specimen("groups-adopted"),
    ),
];

pub(crate) const PIPES: &[Row] = &[
    row(
        "pipes of another size, full",
        Carried,
        CRIU,
        Specimen("pipe-size"),
    ),
    row(
        "pipes with a name, or one that was removed, with data",
        Carried,
        CRIU,
        Specimen("pipe-named"),
    ),
    row(
        "pages lent to a pipe (vmsplice, splice, tee)",
        Carried,
        CRIU,
        Specimen("pipe-lent"),
    ),
    row(
        "pipe without a writer, with data",
        Carried,
        CRIU,
        Specimen("pipe-ended"),
    ),
    row(
        "pipe in packet mode (O_DIRECT)",
        Refused,
        SEEN,
        Specimen("pipe-packets"),
    ),
    row(
        "owners and signals of descriptors (F_SETOWN, F_SETSIG, O_ASYNC)",
        Carried,
        CRIU,
        Specimen("pipe-owners"),
    ),
    row(
        "locks: flock, of a process, of a description; others wait for them",
        Carried,
        CRIU,
        Specimen("pipe-locks"),
    ),
    row(
        "offset and flags that processes have in common",
        Carried,
        CRIU,
        Specimen("pipe-shared"),
    ),
    row(
        "file without a name (O_TMPFILE)",
        Declared,
        "can't be given a name any more",
        Specimen("temporary"),
    ),
];
