//! The table.

use Evidence::{Specimen, Test};
use Outcome::{Carried, Changed, Declared, GivenUp, Refused};

use super::{engines, local, rare};

/// What becomes of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The same afterwards.
    Carried,
    /// The move ends before the freeze.
    Refused,
    /// The move ends in the freeze.
    GivenUp,
    /// Not the same afterwards, as the plan and the report say.
    Declared,
    /// Not the same afterwards.
    Changed,
}

/// What shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// The test of this name.
    Test(&'static str),
    /// The specimen of this name.
    Specimen(&'static str),
}

/// A state of a service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) state: &'static str,
    pub(crate) outcome: Outcome,
    /// By what means, or what it is instead.
    pub(crate) how: &'static str,
    pub(crate) shown_by: Evidence,
}

pub(crate) const fn row(
    state: &'static str,
    outcome: Outcome,
    how: &'static str,
    shown_by: Evidence,
) -> Row {
    Row {
        state,
        outcome,
        how,
        shown_by,
    }
}

/// By what it is found before the freeze.
pub(crate) const SEEN: &str = "seen in `/proc` before the freeze";

/// The same, of what only a comparison tells.
const SEEN_BY_KCMP: &str = "processes are compared (`kcmp(2)`) before the freeze";

/// By what a Landlock domain is found.
const DOMAIN: &str = "each thread is asked to look at a process outside of it";

/// By what it is carried.
const ASKED: &str = "the process is asked in the freeze (by calls of its own, `ptrace(2)`), and told before its first \
                     instruction";

/// How memory goes.
const PAGES: &str = "pages by their addresses; CRIU makes the mapping";

/// All rows, by what they belong to.
pub(crate) const GROUPS: &[(&str, &[Row])] = &[
    ("Memory: what is in it", MEMORY),
    ("Processes", PROCESSES),
    ("Files", FILES),
    ("Connections", CONNECTIONS),
    ("Unix sockets", local::UNIX),
    ("Terminals, sessions and groups", local::TERMINALS),
    ("Pipes, locks and what descriptors share", local::PIPES),
    ("Kernel objects and devices", OBJECTS),
    ("Confinement", CONFINEMENT),
    ("What few processes choose", rare::RARE),
    ("Descriptors between and beside processes", rare::HANDLES),
    ("Containers of Docker and Podman", engines::CONTAINERS),
    ("Whole services", SERVICES),
];

const MEMORY: &[Row] = &[
    row("anonymous memory", Carried, PAGES, Specimen("same")),
    row(
        "mappings that touch: read-only",
        Carried,
        PAGES,
        Specimen("read-only"),
    ),
    row(
        "mappings that touch: read and execute",
        Carried,
        PAGES,
        Specimen("read-execute"),
    ),
    row(
        "mappings that touch: read, write and execute",
        Carried,
        PAGES,
        Specimen("read-write-execute"),
    ),
    row(
        "mappings that touch: without access, with content",
        Carried,
        PAGES,
        Specimen("no-access"),
    ),
    row(
        "mappings that touch: `MADV_DONTFORK`",
        Carried,
        PAGES,
        Specimen("dontfork"),
    ),
    row(
        "mappings that touch: `MADV_DONTDUMP`",
        Carried,
        PAGES,
        Specimen("dontdump"),
    ),
    row(
        "mappings that touch: `MADV_WIPEONFORK`",
        Carried,
        PAGES,
        Specimen("wipeonfork"),
    ),
    row(
        "mappings that touch: `MADV_NOHUGEPAGE`",
        Carried,
        PAGES,
        Specimen("nohugepage"),
    ),
    row(
        "mappings that touch: `MADV_HUGEPAGE`",
        Carried,
        PAGES,
        Specimen("hugepage"),
    ),
    row(
        "mappings that touch: locked by `mlock`",
        Carried,
        PAGES,
        Specimen("locked"),
    ),
    row(
        "memory shared by `fork`, under a limit that allows for one copy",
        Carried,
        "stays shared",
        Specimen("forked"),
    ),
    row(
        "memory shared by the children of a process that has ended, or in a heap that has grown since the \
         fork: each gets a copy",
        Carried,
        "counted before the freeze",
        Specimen("orphans-with-room"),
    ),
    row(
        "the same, under a memory limit that has no room for the copies",
        Refused,
        "a higher `--memory`",
        Specimen("orphans"),
    ),
    row(
        "memory that a child has from before its parent made and locked other memory at the same place",
        Carried,
        "what CRIU leaves there is filled before the service runs",
        Specimen("inherited"),
    ),
    row(
        "memory that is forked, moved by `mremap` and given back while its pages arrive",
        Carried,
        "a page stays missing until it is in",
        Specimen("changing"),
    ),
    row(
        "mappings of every kind, changed at random by threads and forked while they are moved",
        Carried,
        "as each of them",
        Specimen("torture"),
    ),
    row(
        "where userfaultfd is not used",
        Carried,
        "all pages are in before the service runs",
        Test("memory_is_right_where_userfaultfd_is_not_used"),
    ),
    row(
        "memory that stays at the source until the service runs (`--technique post-copy`, `hybrid`)",
        Carried,
        "a touched page is asked for at once, the rest comes by itself; forks, `mremap` and what else changes memory \
         meanwhile is right",
        Test("memory_of_every_kind_and_of_many_processes_moves_by_post_copy"),
    ),
    row(
        "the same, and the link, a pager or the destination's keeper is lost before all of it has come",
        Declared,
        "the instance is killed, what it did is lost, and the source has the service frozen as it was at the commit; \
         `ums plan` says for how long that may happen, the report for how long it might have",
        Test("what_is_lost_with_pages_away_is_a_dead_instance_and_a_source_that_says_so"),
    ),
    row(
        "memfd: sealed, writable by one mapping alone, never executable",
        Carried,
        "CRIU",
        Specimen("memory-objects"),
    ),
    row(
        "memory that is mapped and not open any more: memfd, `/dev/zero`, a deleted file",
        Carried,
        "CRIU; its pages as all others",
        Specimen("memory-objects"),
    ),
    row(
        "`MAP_GROWSDOWN`, `MADV_GUARD_INSTALL`",
        Carried,
        "CRIU",
        Specimen("memory-objects"),
    ),
    row(
        "`MAP_DROPPABLE`",
        Carried,
        "the mapping; its content is given up, as the kernel may at any time",
        Specimen("memory-objects"),
    ),
    row(
        "System V segments (removed and attached, attached by nobody), messages",
        Carried,
        "CRIU, in the IPC namespace",
        Specimen("memory-objects"),
    ),
    row(
        "shared anonymous mapping that several processes write to while it moves",
        Carried,
        "in rounds before the freeze; there CRIU, and what has changed is sent",
        Specimen("sharing-anonymous"),
    ),
    row(
        "System V segment, the same",
        Carried,
        "the same",
        Specimen("sharing-segment"),
    ),
    row(
        "memfd, the same, written by `write(2)` too",
        Carried,
        "the same",
        Specimen("sharing-memfd"),
    ),
    row(
        "file in `/dev/shm`, the same",
        Carried,
        "with the files, and in the freeze what has changed",
        Specimen("sharing-shm"),
    ),
    row(
        "context of asynchronous IO (`io_setup`) with nothing under way",
        Carried,
        "CRIU",
        Specimen("memory-objects"),
    ),
    row(
        "more locked than `RLIMIT_MEMLOCK` allows now",
        Carried,
        "CRIU sets limits last",
        Specimen("memory-locked"),
    ),
    row(
        "memfd that is sealed against writing and mapped shared",
        Refused,
        SEEN,
        Specimen("memory-sealed-mapped"),
    ),
    row(
        "protection keys (`pkey_alloc`, `pkey_mprotect`), their numbers",
        Carried,
        ASKED,
        Specimen("memory-keyed"),
    ),
    row(
        "locked as it is touched (MLOCK_ONFAULT)",
        Carried,
        "seen by what of it is not there; all of it is there after a move",
        Specimen("memory-on-fault"),
    ),
    row(
        "later mappings are locked (MCL_FUTURE)",
        Carried,
        ASKED,
        Specimen("memory-later"),
    ),
    row(
        "later mappings are locked as they are touched (MCL_FUTURE with MCL_ONFAULT)",
        Carried,
        ASKED,
        Specimen("memory-later-on-fault"),
    ),
    row(
        "sealed memory (`mseal(2)`)",
        Carried,
        ASKED,
        Specimen("memory-forever"),
    ),
    row(
        "a poll that waits in an AIO context (IOCB_CMD_POLL)",
        Declared,
        "gone; told of every process with an AIO context, since the kernel does not tell of the poll",
        Specimen("memory-aio"),
    ),
    row(
        "userfaultfd of the service's own",
        Refused,
        SEEN,
        Specimen("memory-userfault"),
    ),
    row(
        "huge pages of the kernel's pool (`MAP_HUGETLB`, hugetlbfs)",
        Refused,
        "seen in `/proc` before the freeze; transparent ones move",
        Test("huge_pages_of_the_pool_are_named"),
    ),
];

const PROCESSES: &[Row] = &[
    row(
        "waiting signals with what was sent along, masks, handlers, alternate stack, signalfd",
        Carried,
        "CRIU",
        Specimen("signals"),
    ),
    row(
        "POSIX timers and interval timers: relative, to a moment, periodic",
        Carried,
        "CRIU; they come later by the time of the freeze, never early",
        Specimen("clocks"),
    ),
    row(
        "thread with a working directory and umask of its own",
        Refused,
        "compared with the first thread's (`kcmp`)",
        Specimen("thread-places"),
    ),
    row(
        "thread with descriptors of its own",
        Refused,
        "compared with the first thread's (`kcmp`)",
        Specimen("thread-descriptors"),
    ),
    row(
        "a thread's CPU affinity, I/O priority and timer slack",
        Carried,
        "set again from outside; what the destination does not have is told in the report",
        Specimen("placed"),
    ),
    row(
        "scheduling policy, nice value, reset on fork, slice",
        Carried,
        "set again from outside where CRIU does not",
        Specimen("scheduled"),
    ),
    row(
        "personality (address layout, bugs of old kernels), machine check policy, KSM flag, core filter",
        Carried,
        "CRIU is started with them and hands them on",
        Specimen("marked"),
    ),
    row(
        "personality that differs from the first thread's, or names another kernel or machine",
        Declared,
        "it has the first thread's",
        Specimen("personality-of-a-thread"),
    ),
    row(
        "time-stamp counter, CPUID, speculation and huge pages with exceptions, as `prctl` and `arch_prctl` \
         have forbidden them",
        Carried,
        ASKED,
        Specimen("forbidden"),
    ),
    row(
        "OOM score, keepcaps, parent death signal, huge pages off, subreaper, dumpable, no new privileges, name, umask, limits",
        Carried,
        "CRIU",
        Specimen("kept"),
    ),
    row(
        "child stopped by SIGSTOP, by SIGTSTP",
        Carried,
        "stays stopped, goes on with SIGCONT, its parent is told",
        Specimen("stopped"),
    ),
    row(
        "waits, with a time-out or without: sleeps, `poll`, `select`, `epoll_wait`, `futex`, `sigtimedwait`, \
         sockets with a time-out, …",
        Carried,
        "no `EINTR`, and none ends early; a time-out that is counted from the call on (`nanosleep`, `poll`, \
         `epoll_wait`, …) may begin anew, so that it ends at most so much later as it had waited",
        Specimen("waits"),
    ),
    row(
        "the same waits where a move is abandoned in the freeze",
        Carried,
        "calls are made again before the thaw; with a freezer of version 1 alone they may see `EINTR`",
        Test("waits_go_on_when_a_move_is_abandoned"),
    ),
    row(
        "process ids and monotonic clocks",
        Carried,
        "PID and time namespaces",
        Test("process_ids_and_clocks_go_on_where_the_clock_of_the_node_is_another"),
    ),
    row(
        "process put in from outside; a namespace inside the service's own",
        Refused,
        SEEN,
        Test("namespaces_inside_and_processes_from_outside_are_named"),
    ),
    row(
        "processes that share memory (`CLONE_VM`)",
        Refused,
        SEEN_BY_KCMP,
        Specimen("clone-memory"),
    ),
    row(
        "processes that share working directory and umask (`CLONE_FS`)",
        Refused,
        SEEN_BY_KCMP,
        Specimen("clone-places"),
    ),
    row(
        "`vfork` that lasts",
        Refused,
        SEEN_BY_KCMP,
        Specimen("vfork"),
    ),
    row(
        "deadlines of `timer_create` and `setitimer`",
        Carried,
        "readings of the service's monotonic clock, set again before the first instruction",
        Specimen("deadlines"),
    ),
    row(
        "mutex whose owner ends after a move (robust futexes)",
        Carried,
        "CRIU",
        Specimen("further-robust"),
    ),
    row(
        "mutex that inherits priority, and who waits for it (PI futexes)",
        Carried,
        "made again once the page with its word is there",
        Specimen("further-priority"),
    ),
    row(
        "thread that ends after a move, and who waits for that",
        Carried,
        "CRIU",
        Specimen("further-joins"),
    ),
    row(
        "restartable sequences (rseq)",
        Carried,
        "CRIU",
        Specimen("further-rseq"),
    ),
    row(
        "thread in a critical section of a restartable sequence",
        Carried,
        "it goes on at the section's abort handler, also after a call that it made for UMS",
        Specimen("further-critical"),
    ),
    row(
        "thread in a handler on its own signal stack",
        Carried,
        "CRIU",
        Specimen("further-handler"),
    ),
    row(
        "command line and name that a process has written over",
        Carried,
        "CRIU",
        Specimen("further-title"),
    ),
    row(
        "capabilities: fewer, ambient, inheritable, bounding set, securebits",
        Carried,
        "CRIU",
        Specimen("further-capabilities"),
    ),
    row(
        "file that processes map shared, with a name and without",
        Carried,
        "with the changed files, and CRIU",
        Specimen("further-mapped"),
    ),
    row(
        "who waits for a FIFO to be opened at its other end",
        Carried,
        "the call is made again",
        Specimen("further-fifo"),
    ),
    row(
        "who waits for a lock of a file (F_SETLKW)",
        Carried,
        "the call is made again",
        Specimen("further-lock"),
    ),
    row(
        "who waits for a semaphore of System V",
        Carried,
        "CRIU; the call is made again",
        Specimen("further-semaphore"),
    ),
    row(
        "messages of System V of several kinds, and who waits to send to a full queue",
        Carried,
        "CRIU; the call is made again",
        Specimen("further-messages"),
    ),
    row(
        "POSIX timer that signals one thread (`SIGEV_THREAD_ID`), made by another one",
        Carried,
        "by CRIU",
        Specimen("alarm-other"),
    ),
    row(
        "POSIX timer that signals the thread that made it",
        Carried,
        "by CRIU",
        Specimen("alarm-self"),
    ),
    row(
        "POSIX timer that signals a thread which has ended",
        Refused,
        SEEN,
        Specimen("alarm-gone"),
    ),
    row(
        "POSIX timer of one thread's CPU time (`CLOCK_THREAD_CPUTIME_ID`), of several threads",
        Refused,
        SEEN,
        Specimen("alarm-cpu"),
    ),
    row(
        "process in a session whose leader is gone, below a parent that left it",
        Refused,
        SEEN,
        Specimen("stray"),
    ),
    row("SIGTRAP that is pending", Refused, SEEN, Specimen("trap")),
    row(
        "process of another user, where root lacks `CAP_SYS_RESOURCE`",
        Refused,
        SEEN,
        Test("a_service_of_another_user_needs_a_capability_of_the_agent"),
    ),
];

const FILES: &[Row] = &[
    row(
        "changed files and volumes",
        Carried,
        "sent before the freeze, the last difference in it",
        Test("redis_moves_there_and_back_with_all_keys_and_the_counter_right"),
    ),
    row(
        "open file that lost a name, or all; an image's file and the own program deleted",
        Carried,
        "CRIU's own names for them go along and are removed",
        Test("open_files_move_that_have_lost_a_name"),
    ),
    row(
        "inotify watches on files of the overlay",
        Carried,
        "their paths are found while the service runs",
        Test("watches_move"),
    ),
    row(
        "file open from outside the service's mounts",
        Refused,
        SEEN,
        Test("a_file_from_another_mount_namespace_is_foreign"),
    ),
    row(
        "names with line breaks, bytes that are no text, ` (deleted)` at their end; the longest paths",
        Carried,
        "CRIU; files by their bytes",
        Specimen("files-open"),
    ),
    row(
        "paths of 4 KiB: open, mapped, working directory; 48 MiB in `/dev/shm`",
        Carried,
        "CRIU",
        Specimen("files-long"),
    ),
    row(
        "descriptors without access (`O_PATH`) of a file, a directory, a link, a deleted file",
        Carried,
        "CRIU",
        Specimen("files-open"),
    ),
    row(
        "own program, open file or mapped file whose name is another file's by now",
        Declared,
        "`/proc/PID/exe`, `fd` and `maps` tell another path of it",
        Specimen("files-replaced"),
    ),
    row(
        "leases of files (F_SETLEASE) for reading; for writing, of files of the root filesystem",
        Carried,
        "CRIU; it opens no file again for what a linker has noted in it",
        Specimen("leases"),
    ),
    row(
        "lease that is being broken",
        Refused,
        SEEN,
        Specimen("leases-breaking"),
    ),
    row(
        "lease for writing of a file that is mapped, or on a volume",
        Refused,
        SEEN,
        Specimen("leases-mapped"),
    ),
    row(
        "`O_PATH` descriptor of the own program",
        Refused,
        SEEN,
        Specimen("files-own-program"),
    ),
    row(
        "directory that is open and removed; file in a removed, in a renamed directory",
        Carried,
        "CRIU",
        Specimen("files-open"),
    ),
    row(
        "working directory that is removed; odd names that are removed",
        Carried,
        "CRIU",
        Specimen("files-removed"),
    ),
    row(
        "holes, extended attributes, file capabilities, owners, times of modification, hard links, FIFOs, \
         sockets, device nodes",
        Carried,
        "with the changed files",
        Specimen("files-open"),
    ),
    row(
        "open files of `/proc` and `/sys`, also of a process that has ended; namespaces",
        Carried,
        "opened again; what they say is of the destination",
        Specimen("files-open"),
    ),
    row(
        "watch (inotify) of a file that has no name any more",
        Refused,
        SEEN,
        Specimen("watches-nameless"),
    ),
    row(
        "fanotify that tells files by handles (`FAN_REPORT_FID`)",
        Refused,
        "seen in `/proc` before the freeze; files have other handles at the destination",
        Specimen("watches-handles"),
    ),
];

const CONNECTIONS: &[Row] = &[
    row(
        "options of sockets: UDP, TCP that listens, is connected, or is fresh",
        Carried,
        "read in the freeze, and set again before the first instruction where they differ",
        Specimen("options"),
    ),
    row(
        "the largest segment that an open connection over IPv4 sends",
        Carried,
        "reckoned anew before the first instruction; CRIU leaves it at 524 bytes",
        Specimen("options"),
    ),
    row(
        "room for what a connection receives whose reader is slow",
        Carried,
        "the buffer has as much room as it had; what is unread takes more",
        Test("what_unread_data_takes_more_is_added"),
    ),
    row(
        "multicast: memberships with their source filters, the device and the address that is sent by",
        Carried,
        "each socket is asked for each group of the namespace; devices by their names",
        Specimen("multicast"),
    ),
    row(
        "an error of a connection that its owner has not been told",
        Carried,
        "told as ECONNABORTED; after what was not read yet, it is told not at all, which the report says",
        Specimen("errors"),
    ),
    row(
        "an urgent byte (`MSG_OOB`) that was not read",
        Refused,
        "each connection is asked before the freeze, and in it",
        Specimen("urgent"),
    ),
    row(
        "netlink: memberships beyond the 32nd group",
        Refused,
        "each socket is asked for its groups",
        Specimen("far-group"),
    ),
    row(
        "netlink: memberships of a socket that was never bound",
        Refused,
        "each socket is asked for its groups",
        Specimen("unbound-member"),
    ),
    row(
        "eBPF program as a socket's filter",
        Refused,
        "the kernel does not give it out",
        Test("a_filter_that_can_not_be_read_is_seen"),
    ),
    row(
        "IPv6 address of one link (`fe80::…`), bound or connected",
        Refused,
        "CRIU does not know on which link",
        Test("addresses_of_one_link_are_known"),
    ),
    row(
        "TCP socket whose segments are signed (TCP_MD5SIG)",
        Refused,
        "seen by `sock_diag(7)` before the freeze",
        Specimen("signed"),
    ),
    row(
        "sockets that share a port (SO_REUSEPORT)",
        Declared,
        "a program that chooses among them, if there is one, is gone: the kernel does not tell of it",
        Specimen("shared-port"),
    ),
    row(
        "packet socket with a ring that is mapped",
        Declared,
        "what is in the ring is gone, and it begins at its first frame",
        Specimen("packet-ring"),
    ),
    row(
        "datagrams that a service does not read",
        Declared,
        "CRIU carries no queue of such a socket",
        Specimen("unread"),
    ),
    row(
        "TCP that waits to be accepted",
        Declared,
        "reset; waited for during 0.3 s",
        Test("what_waits_is_seen"),
    ),
    row(
        "TCP and UDP with clients",
        Carried,
        "packets are held, then led through a tunnel",
        Test("connections_to_streams_live_there_and_back_again"),
    ),
    row(
        "TCP, where no tunnel can be",
        Changed,
        "reset once, at the switch",
        Test("without_a_tunnel_connections_begin_anew_and_nothing_is_lost"),
    ),
    row(
        "a transaction in a database",
        Carried,
        "with its connection",
        Test("a_transaction_in_postgresql_lives_there_and_back_again"),
    ),
    row(
        "call of the service's own that nobody has answered yet (SYN_SENT)",
        Carried,
        "CRIU calls again; it is answered at the new place, or goes on waiting",
        Test("connections_that_are_not_open_yet"),
    ),
    row(
        "client that is not accepted, or only once it says something (SYN_RECV, TCP_DEFER_ACCEPT)",
        Declared,
        "reset, at the latest when it says something",
        Test("connections_that_are_not_open_yet"),
    ),
    row(
        "TCP of the service to itself: idle, half closed, queues full, last word waiting",
        Carried,
        "what it sends itself is held while CRIU is at its sockets",
        Test("connections_to_itself_move_in_every_state"),
    ),
    row(
        "TCP of the service to itself that it does not accept",
        Refused,
        "the connections are looked at before the freeze",
        Test("a_connection_to_itself_that_is_not_accepted_is_refused_before_the_freeze"),
    ),
    row(
        "an address that is taken at the destination",
        Carried,
        "translated at the service's edge",
        Test("a_service_whose_address_is_taken_moves_with_its_connections"),
    ),
    row(
        "workers that share a port (SO_REUSEPORT), TCP and UDP",
        Carried,
        "CRIU",
        Specimen("further-reuseport"),
    ),
    row(
        "IPv6 alone (IPV6_V6ONLY), IPv4 beside it, and both by one socket",
        Carried,
        "CRIU",
        Specimen("further-v6only"),
    ),
    row(
        "bound to an address that is not there (IP_FREEBIND), to a device, to a port without listening",
        Carried,
        "CRIU; any address can be bound in the namespace meanwhile",
        Specimen("further-bound"),
    ),
    row(
        "UDP that holds data back (`UDP_CORK`), with nothing in it",
        Carried,
        "the setting is off while CRIU looks",
        Specimen("corked"),
    ),
    row(
        "netlink: changes of devices that a service reads about once a second",
        Carried,
        "waited for; what UMS's own devices cause is taken out; refused if it stays",
        Specimen("moment-links"),
    ),
    row(
        "the same, ten times in a row",
        Carried,
        "as above",
        Test("a_listener_to_links_moves_ten_times"),
    ),
    row(
        "datagrams (UDP) that were received and not read",
        Changed,
        "those not read within 30 ms are lost: CRIU carries no queue of a UDP socket",
        Test("connections_to_streams_live_there_and_back_again"),
    ),
    row(
        "socket of another family or protocol than TCP, UDP and unix (MPTCP)",
        Refused,
        SEEN,
        Test("a_service_that_holds_what_cannot_be_carried"),
    ),
];

const OBJECTS: &[Row] = &[
    row(
        "eventfd, its flags, a counter of more than 32 bits",
        Carried,
        "the rest of the counter is added",
        Specimen("eventfds"),
    ),
    row(
        "eventfd that counts down by one (EFD_SEMAPHORE)",
        Declared,
        "a read takes all of it",
        Specimen("eventfd-semaphore"),
    ),
    row(
        "System V semaphores that are put back when a process ends (SEM_UNDO)",
        Carried,
        ASKED,
        Specimen("undo"),
    ),
    row(
        "timers behind descriptors (timerfd): periodic and unread, set to a moment",
        Carried,
        "set again before the first instruction, to the moment that is due",
        Specimen("timers"),
    ),
    row(
        "io_uring instance, Landlock ruleset",
        Refused,
        SEEN,
        Test("a_service_that_holds_what_cannot_be_carried"),
    ),
    row(
        "GPU, and kernel objects that CRIU does not know",
        Refused,
        SEEN,
        Test("kernel_objects_and_devices_by_name"),
    ),
    row(
        "device with state of its own",
        Refused,
        SEEN,
        Test("what_can_not_be_carried_is_named"),
    ),
    row(
        "epoll: disarmed (`EPOLLONESHOT`), an edge that was not told yet, nested, `EPOLLEXCLUSIVE`, a \
         descriptor that is closed while its file lives on",
        Carried,
        "CRIU",
        Specimen("watches"),
    ),
    row(
        "watches of inotify with IN_ONESHOT or IN_EXCL_UNLINK",
        Carried,
        "the flags are given again",
        Specimen("watches-flags"),
    ),
    row(
        "events of inotify that were not read",
        Declared,
        "gone",
        Specimen("watches-unread"),
    ),
    row(
        "a directory that tells of changes (F_NOTIFY)",
        Declared,
        "it tells of none",
        Specimen("watches-directory"),
    ),
    row(
        "epoll: an edge that was told, a closed descriptor whose number is taken",
        Carried,
        "CRIU",
        Specimen("watches-closed"),
    ),
    row(
        "signalfd with a queued value, pidfd, also of a process that has ended, numbers of watches",
        Carried,
        "CRIU",
        Specimen("watches"),
    ),
];

/// How each of them was moved.
const UNDER_LOAD: &str =
    "three times, in a long test ten, with clients that keep their connections";

const SERVICES: &[Row] = &[
    row(
        "Go: 2000 goroutines, a garbage collector",
        Carried,
        UNDER_LOAD,
        Test("a_go_server_moves_under_load"),
    ),
    row(
        "Java: a heap that is collected, compiled code, direct buffers",
        Carried,
        UNDER_LOAD,
        Test("a_java_server_moves_under_load"),
    ),
    row(
        "Node.js: timers, worker threads",
        Carried,
        UNDER_LOAD,
        Test("a_node_server_moves_under_load"),
    ),
    row(
        "Python: workers that are forked before they answer, `multiprocessing`",
        Carried,
        UNDER_LOAD,
        Test("a_python_server_that_forks_its_workers_moves_under_load"),
    ),
    row(
        "supervisord, with a job that it starts again and again",
        Carried,
        UNDER_LOAD,
        Test("a_supervisor_moves_under_load"),
    ),
    row(
        "nginx with workers",
        Carried,
        UNDER_LOAD,
        Test("nginx_moves_under_load"),
    ),
    row(
        "memcached",
        Carried,
        UNDER_LOAD,
        Test("memcached_moves_under_load"),
    ),
    row(
        "Redis, while it saves",
        Carried,
        UNDER_LOAD,
        Test("redis_moves_while_it_saves"),
    ),
    row(
        "PostgreSQL, its indexes checked by `amcheck`",
        Carried,
        UNDER_LOAD,
        Test("postgresql_moves_under_load"),
    ),
];

const CONFINEMENT: &[Row] = &[
    row(
        "capabilities, masked paths, mounts, limits, device filter",
        Carried,
        "made anew and compared",
        Test("what_confines_a_service_is_the_same_after_a_move"),
    ),
    row(
        "the same where there is the unified hierarchy alone",
        Carried,
        "made anew and compared",
        Test("what_confines_a_service_is_the_same_where_there_is_the_unified_hierarchy_alone"),
    ),
    row(
        "seccomp filters of the service's own, one after the other, of all threads",
        Carried,
        "CRIU",
        Specimen("confined-filter"),
    ),
    row(
        "seccomp filter of one thread",
        Carried,
        "CRIU",
        Specimen("confined-thread"),
    ),
    row(
        "seccomp: strict mode; `chroot` of a child",
        Carried,
        "CRIU",
        Specimen("confined-children"),
    ),
    row(
        "seccomp filter whose listener has gone",
        Carried,
        "CRIU",
        Specimen("confined-unheard"),
    ),
    row(
        "listener of a seccomp filter",
        Refused,
        SEEN,
        Specimen("confined-listener"),
    ),
    row(
        "Landlock domain in force",
        GivenUp,
        DOMAIN,
        Specimen("confined-landlock"),
    ),
    row(
        "the same of a child, about ports alone",
        GivenUp,
        DOMAIN,
        Specimen("confined-landlock-net"),
    ),
    row(
        "the same of one thread",
        GivenUp,
        DOMAIN,
        Specimen("confined-landlock-thread"),
    ),
    row(
        "process that has forbidden itself new code (PR_SET_MDWE)",
        GivenUp,
        "the process is asked; CRIU's code in it would be new",
        Specimen("confined-code"),
    ),
    row(
        "`chroot` of the first process",
        Refused,
        SEEN,
        Specimen("confined-root"),
    ),
    row(
        "the same, with a working directory outside",
        Refused,
        SEEN,
        Specimen("confined-outside"),
    ),
];
