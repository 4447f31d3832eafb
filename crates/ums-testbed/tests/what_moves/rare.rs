//! What few services are in: chosen by a process for itself, or behind a descriptor.

use super::table::Evidence::Specimen;
use super::table::Outcome::{Carried, Declared, GivenUp, Refused};
use super::table::{Row, SEEN, row};

pub(crate) const RARE: &[Row] = &[
    row(
        "child whose end is told by another signal than SIGCHLD, or by none (`clone(2)`)",
        Declared,
        "it is told by SIGCHLD: CRIU makes it so, and nobody can change it",
        Specimen("chosen-exits"),
    ),
    row(
        "system calls that a handler answers (PR_SET_SYSCALL_USER_DISPATCH)",
        GivenUp,
        "the thread is asked (`ptrace(2)`)",
        Specimen("chosen-dispatch"),
    ),
    row(
        "segments of its own (`modify_ldt(2)`)",
        GivenUp,
        "the process is asked",
        Specimen("chosen-segments"),
    ),
    row(
        "tile registers (AMX): that they may be used",
        Carried,
        "the process is asked, and told before its first instruction; given up while something is in them",
        Specimen("chosen-tiles"),
    ),
    row(
        "rounding, rights to protection keys, registration for `membarrier(2)`",
        Carried,
        "CRIU",
        Specimen("chosen-registers"),
    ),
    row(
        "parameters of an epoll instance (EPIOCSPARAMS)",
        Carried,
        "set again",
        Specimen("chosen-registers"),
    ),
    row(
        "where memory is taken from (`set_mempolicy(2)`, `mbind(2)`)",
        Declared,
        "by the system's policy",
        Specimen("chosen-nodes"),
    ),
    row(
        "limits of memory (RLIMIT_AS, RLIMIT_DATA) that leave no room for CRIU",
        Refused,
        SEEN,
        Specimen("chosen-tight"),
    ),
    row(
        "limit of CPU time, and timers of it",
        Declared,
        "the timers are carried; CPU time is counted anew, as are page faults and bytes read and written",
        Specimen("chosen-cpu"),
    ),
    row(
        "all handlers of signals with their flags and masks; a signal stack that is disarmed in a handler",
        Carried,
        "CRIU",
        Specimen("chosen-signals"),
    ),
    row(
        "children that have ended are told of once; the heap and the stack grow on; no clock goes back",
        Carried,
        "CRIU",
        Specimen("chosen-ended"),
    ),
    row(
        "System V: limit of bytes in a queue (`msg_qbytes`), SHM_LOCK",
        Carried,
        "set again in the IPC namespace",
        Specimen("chosen-systemv"),
    ),
    row(
        "thread with capabilities, a name and no_new_privs of its own",
        Carried,
        "CRIU",
        Specimen("chosen-weak"),
    ),
    row(
        "call that has moved a part of its data (a long `write`, `recv` with MSG_WAITALL): nothing is lost or doubled",
        Carried,
        "it ends and says how much, as after SIGSTOP and SIGCONT",
        Specimen("handles-partial"),
    ),
];

pub(crate) const HANDLES: &[Row] = &[
    row(
        "in flight (SCM_RIGHTS): a timer (timerfd)",
        Refused,
        "queues are looked into before the freeze, and to their ends in it",
        Specimen("handles-flight"),
    ),
    row(
        "in flight: a counter of more than 32 bits (eventfd)",
        Carried,
        "set again through the queue",
        Specimen("handles-flight-event"),
    ),
    row(
        "in flight: a socket with options",
        Carried,
        "set again through the queue",
        Specimen("handles-flight-options"),
    ),
    row(
        "in flight: an epoll instance",
        Carried,
        "CRIU",
        Specimen("handles-flight-group"),
    ),
    row(
        "pidfd of one thread (PIDFD_THREAD)",
        Refused,
        SEEN,
        Specimen("handles-thread"),
    ),
    row(
        "pidfd that does not block",
        Carried,
        "CRIU",
        Specimen("handles-pids"),
    ),
    row(
        "FIFO of another size, with something in it",
        Carried,
        "CRIU",
        Specimen("handles-sizes"),
    ),
    row(
        "timer that is cancelled by a change of the time (TFD_TIMER_CANCEL_ON_SET), timers without a signal, of CLOCK_BOOTTIME and CLOCK_TAI",
        Carried,
        "CRIU, and our timers",
        Specimen("handles-timers"),
    ),
    row(
        "unix socket that was renamed since it was bound",
        Refused,
        "its file is compared with the name, and looked for where it is another",
        Specimen("handles-renamed"),
    ),
    row(
        "unix socket with several names (`link(2)`)",
        Refused,
        "as above",
        Specimen("handles-linked"),
    ),
    row(
        "options of unix sockets, mode of their names, length of their queues",
        Carried,
        "as those of others",
        Specimen("handles-local"),
    ),
    row(
        "socket, FIFO, file, link and modes in `/dev`",
        Carried,
        "CRIU",
        Specimen("handles-devices"),
    ),
    row(
        "flags of open files (O_SYNC, O_DSYNC, O_NOATIME, O_DIRECT, O_APPEND, …), numbers with holes",
        Carried,
        "CRIU",
        Specimen("handles-flags"),
    ),
    row(
        "mapping that goes past the end of its file",
        Carried,
        "CRIU",
        Specimen("handles-past"),
    ),
    row(
        "memfd that is opened a second time for reading, locked, with a mode of its own",
        Carried,
        "CRIU",
        Specimen("handles-memory"),
    ),
    row(
        "locks of a directory, of a removed file, of one in `/dev/shm`",
        Carried,
        "CRIU",
        Specimen("handles-locks"),
    ),
    row(
        "sockets that signal their owner (O_ASYNC)",
        Carried,
        "CRIU",
        Specimen("handles-owned"),
    ),
    row(
        "directory that was read in part",
        Carried,
        "CRIU",
        Specimen("chosen-directory"),
    ),
    row(
        "file that was mapped, stored to and let go of between the first pass and the freeze",
        Carried,
        "mappings are looked at while the first pass reads",
        Specimen("handles-cycles"),
    ),
];
