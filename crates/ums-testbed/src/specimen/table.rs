//! Every specimen there is.

use ums_core::facts::LossKind;
use ums_core::preflight::RefusalKind;

use super::{Expected, Specimen};

/// A specimen: its name, its program's name, what that is called with. Carried, unless it is said
/// otherwise after it.
macro_rules! specimen {
    ($name:literal, $program:literal, $arguments:expr) => {
        Specimen {
            name: $name,
            program: $program,
            source: include_str!(concat!("../../specimens/", $program, ".c")),
            arguments: $arguments,
            memory: None,
            expected: Expected::Carried,
        }
    };
}

impl Specimen {
    /// The same with a memory limit.
    const fn memory(self, limit: &'static str) -> Self {
        Self {
            memory: Some(limit),
            ..self
        }
    }

    /// The same, which can't be moved.
    const fn refused(self, kind: RefusalKind, words: &'static [&'static str]) -> Self {
        Self {
            expected: Expected::Refused(kind, words),
            ..self
        }
    }

    /// The same, of which only the freeze tells that it can't be moved.
    const fn abandoned(self, words: &'static [&'static str]) -> Self {
        Self {
            expected: Expected::Abandoned(words),
            ..self
        }
    }

    /// The same, which a move changes.
    const fn declared(self, kind: LossKind, words: &'static [&'static str]) -> Self {
        Self {
            expected: Expected::Declared(kind, words),
            ..self
        }
    }
}

/// All of them.
pub const ALL: &[Specimen] = &[
    // Mappings that touch and differ, by kind: few pieces, so that a border is met with often enough
    // and a round is short.
    specimen!("same", "adjacent", &["same", "16", "8"]),
    specimen!("read-only", "adjacent", &["read-only", "16", "8"]),
    specimen!("read-execute", "adjacent", &["read-execute", "16", "8"]),
    specimen!(
        "read-write-execute",
        "adjacent",
        &["read-write-execute", "16", "8"]
    ),
    specimen!("no-access", "adjacent", &["no-access", "16", "8"]),
    specimen!("dontfork", "adjacent", &["dontfork", "16", "8"]),
    specimen!("dontdump", "adjacent", &["dontdump", "16", "8"]),
    specimen!("wipeonfork", "adjacent", &["wipeonfork", "16", "8"]),
    specimen!("nohugepage", "adjacent", &["nohugepage", "16", "256"]),
    specimen!("hugepage", "adjacent", &["hugepage", "4", "512"]),
    specimen!("locked", "adjacent", &["locked", "16", "2"]),
    specimen!("forked", "forked", &["60", "6"]).memory("128M"),
    specimen!("orphans", "orphans", &["60", "4"])
        .memory("128M")
        .refused(RefusalKind::Memory, &["memory limit", "of 128 MiB"]),
    specimen!("orphans-with-room", "orphans", &["20", "4"]).memory("128M"),
    specimen!("inherited", "inherited", &[]),
    specimen!("changing", "changing", &["32"]),
    // With a seed of its own in each run, which it tells when something is damaged.
    specimen!("torture", "torture", &[]),
    specimen!("stopped", "stopped", &[]),
    specimen!("options", "options", &[]),
    specimen!("multicast", "multicast", &[]),
    specimen!("errors", "errors", &[]),
    specimen!("timers", "timers", &[]),
    specimen!("waits", "waits", &[]),
    specimen!("deadlines", "deadlines", &[]),
    specimen!("alarm-other", "alarms", &["other"]),
    specimen!("alarm-self", "alarms", &["self"]),
    specimen!("alarm-cpu", "alarms", &["cpu"]).refused(
        RefusalKind::Process,
        &["POSIX timer", "CLOCK_THREAD_CPUTIME_ID"],
    ),
    specimen!("alarm-gone", "alarms", &["gone"]).refused(
        RefusalKind::Process,
        &["POSIX timer", "a thread that has ended"],
    ),
    specimen!("stray", "stray", &[]).refused(RefusalKind::Process, &["is in a session", "setsid"]),
    specimen!("trap", "trap", &[]).refused(RefusalKind::Process, &["a signal pending", "SIGTRAP"]),
    specimen!("clone-memory", "cloned", &["memory"])
        .refused(RefusalKind::Process, &["shares its memory", "CLONE_VM"]),
    specimen!("clone-places", "cloned", &["places"]).refused(
        RefusalKind::Process,
        &["shares its working directory", "CLONE_FS"],
    ),
    specimen!("vfork", "cloned", &["vfork"]).refused(RefusalKind::Descriptor, &["vfork(2)"]),
    specimen!("undo", "undo", &[]),
    // What the kernel keeps of threads and processes.
    specimen!("placed", "attributes", &["placed"]),
    specimen!("scheduled", "attributes", &["scheduled"]),
    specimen!("marked", "attributes", &["marked"]),
    specimen!("kept", "attributes", &["kept"]),
    specimen!("forbidden", "attributes", &["forbidden"]),
    specimen!("personality-of-a-thread", "attributes", &["persona"])
        .declared(LossKind::ProcessAttribute, &["personality"]),
    specimen!("urgent", "odd", &["urgent"]).refused(RefusalKind::Socket, &["urgent byte"]),
    specimen!("far-group", "odd", &["far-group"])
        .refused(RefusalKind::Socket, &["groups beyond the 32nd"]),
    specimen!("unbound-member", "odd", &["unbound"]).refused(
        RefusalKind::Socket,
        &["member of groups and was never bound"],
    ),
    specimen!("signed", "odd", &["signed"]).refused(RefusalKind::Socket, &["TCP_MD5SIG"]),
    specimen!("shared-port", "odd", &["shared"])
        .declared(LossKind::SocketOption, &["SO_ATTACH_REUSEPORT_EBPF"]),
    specimen!("packet-ring", "odd", &["ring"])
        .declared(LossKind::PacketRing, &["of a packet socket"]),
    specimen!("unread", "odd", &["unread"]).declared(
        LossKind::UnreadDatagrams,
        &["a socket that it does not read"],
    ),
    specimen!("signals", "signals", &[]),
    specimen!("clocks", "clocks", &[]),
    specimen!("eventfds", "eventfds", &[]),
    specimen!("eventfd-semaphore", "eventfds", &["semaphore"])
        .declared(LossKind::EventfdSemaphore, &["descriptor"]),
    specimen!("thread-places", "apart", &["places"])
        .refused(RefusalKind::Process, &["has a thread", "unshare"]),
    specimen!("thread-descriptors", "apart", &["descriptors"])
        .refused(RefusalKind::Process, &["has a thread", "unshare"]),
    // Unix sockets, terminals, sessions and groups, pipes and what is done through descriptors.
    specimen!("unix-rights", "unix", &["rights"]),
    specimen!("unix-cycle", "unix", &["cycle"]),
    specimen!("unix-peer-name", "unix", &["peer-name"])
        .declared(LossKind::PeerName, &["getpeername", "@listener"]),
    specimen!("unix-waiting-data", "unix", &["waiting-data"])
        .refused(RefusalKind::Socket, &["waits to be accepted", "with data"]),
    specimen!("unix-waiting-empty", "unix", &["waiting-empty"]),
    specimen!("unix-waiting-closed", "unix", &["waiting-closed"])
        .refused(RefusalKind::Socket, &["waits to be accepted", "closed"]),
    specimen!("unix-many-unnamed", "unix", &["many-unnamed"]),
    specimen!("unix-closed", "unix", &["closed"]),
    specimen!("unix-half", "unix", &["half"]),
    specimen!("unix-full", "unix", &["full"]),
    specimen!("unix-packets", "unix", &["packets"]),
    specimen!("unix-removed", "unix", &["removed"]),
    specimen!("unix-relative", "unix", &["relative"]),
    specimen!("unix-binary", "unix", &["binary"]),
    specimen!("unix-peek", "unix", &["peek"]),
    specimen!("unix-credentials", "unix", &["credentials"])
        .refused(RefusalKind::Socket, &["unread messages", "SO_PASSCRED"]),
    specimen!("unix-credentials-stream", "unix", &["credentials-stream"])
        .refused(RefusalKind::Socket, &["unread messages", "SO_PASSCRED"]),
    specimen!("unix-urgent", "unix", &["urgent"]).declared(LossKind::UrgentData, &["MSG_OOB"]),
    specimen!("unix-oneself", "unix", &["oneself"])
        .declared(LossKind::PeerName, &["sent a datagram"]),
    specimen!("unix-large", "unix", &["large"]),
    specimen!("unix-nested", "unix", &["nested"])
        .refused(RefusalKind::Descriptor, &["on its way", "its own queue"]),
    specimen!("further-reuseport", "further", &["reuseport"]),
    specimen!("further-v6only", "further", &["v6only"]),
    specimen!("further-bound", "further", &["bound"]),
    specimen!("further-robust", "further", &["robust"]),
    specimen!("further-priority", "further", &["priority"]),
    specimen!("further-joins", "further", &["joins"]),
    specimen!("further-rseq", "further", &["rseq"]),
    specimen!("further-critical", "further", &["critical"]),
    specimen!("further-handler", "further", &["handler"]),
    specimen!("further-mapped", "further", &["mapped"]),
    specimen!("further-fifo", "further", &["fifo"]),
    specimen!("further-lock", "further", &["lock"]),
    specimen!("further-title", "further", &["title"]),
    specimen!("further-packets", "further", &["packets"]),
    specimen!("further-capabilities", "further", &["capabilities"]),
    specimen!("further-semaphore", "further", &["semaphore"]),
    specimen!("further-messages", "further", &["messages"]),
    specimen!("moment-accepts", "moments", &["accepts"]),
    specimen!("moment-reads", "moments", &["reads"]),
    specimen!("moment-links", "moments", &["links"]),
    specimen!("corked", "moments", &["corked"]),
    specimen!("unix-peer-credentials", "unix", &["peer-credentials"])
        .declared(LossKind::PeerCredentials, &["SO_PEERCRED"]),
    specimen!("unix-sender", "unix", &["sender"])
        .declared(LossKind::PeerName, &["sent a datagram"]),
    specimen!("unix-empty", "unix", &["hollow"])
        .declared(LossKind::UnreadDatagrams, &["without content"]),
    specimen!("unix-orphan", "unix", &["orphan"])
        .declared(LossKind::PendingError, &["ENOTCONN", "ECONNREFUSED"]),
    specimen!("pty-job", "terminals", &["job"]),
    specimen!("pty-zombie", "terminals", &["zombie"]),
    specimen!("pty-queued", "terminals", &["queued"]),
    specimen!("pty-lines", "terminals", &["lines"])
        .declared(LossKind::TerminalData, &["edit lines"]),
    specimen!("pty-hung", "terminals", &["hung"]),
    specimen!("pty-exclusive", "terminals", &["exclusive"]),
    specimen!("pty-packet", "terminals", &["packet"]),
    specimen!("pty-alone", "terminals", &["alone"]),
    specimen!("pty-controlling", "terminals", &["controlling"])
        .refused(RefusalKind::Descriptor, &["/dev/tty"]),
    specimen!("pty-controlling-alone", "terminals", &["controlling-alone"]),
    specimen!("pty-bare", "terminals", &["bare"]),
    specimen!("pty-flight", "terminals", &["flight"])
        .refused(RefusalKind::Descriptor, &["on its way", "a terminal"]),
    specimen!("groups-session", "groups", &["session"]),
    specimen!("groups-session-zombie", "groups", &["session-zombie"]),
    specimen!("groups-group", "groups", &["group"]),
    specimen!("groups-group-zombie", "groups", &["group-zombie"]),
    specimen!("groups-both", "groups", &["both"]),
    specimen!("groups-nested", "groups", &["nested"]),
    specimen!("groups-pipeline", "groups", &["pipeline"]),
    specimen!("groups-zombies", "groups", &["zombies"]),
    specimen!("groups-reaper", "groups", &["reaper"]),
    specimen!("groups-adopted", "groups", &["adopted"]),
    specimen!("pipe-size", "pipes", &["size"]),
    specimen!("pipe-named", "pipes", &["named"]),
    specimen!("pipe-lent", "pipes", &["lent"]),
    specimen!("pipe-ended", "pipes", &["ended"]),
    specimen!("pipe-packets", "pipes", &["packets"])
        .refused(RefusalKind::Descriptor, &["packet mode"]),
    specimen!("pipe-owners", "pipes", &["owners"]),
    specimen!("pipe-locks", "pipes", &["locks"]),
    specimen!("pipe-shared", "pipes", &["shared"]),
    specimen!("temporary", "pipes", &["temporary"])
        .declared(LossKind::TemporaryFile, &["O_TMPFILE", "linkat"]),
    specimen!(
        "memory-objects",
        "memory",
        &[
            "sealed",
            "future",
            "noexec",
            "closed",
            "growing",
            "droppable",
            "guarded",
            "sysv",
            "loose",
            "aio"
        ]
    ),
    specimen!("memory-locked", "memory", &["locked"]),
    specimen!("memory-keyed", "memory", &["keyed"]),
    specimen!("memory-on-fault", "memory", &["on-fault"]),
    specimen!("memory-later", "memory", &["future-locked"]),
    specimen!("memory-later-on-fault", "memory", &["future-on-fault"]),
    specimen!("memory-forever", "memory", &["forever"]),
    specimen!("memory-sealed-mapped", "memory", &["sealed-mapped"])
        .refused(RefusalKind::Descriptor, &["F_SEAL_WRITE", "/memfd:sealed"]),
    specimen!("memory-aio", "memory", &["aio-waiting"])
        .declared(LossKind::AsynchronousRequest, &["IOCB_CMD_POLL"]),
    specimen!("memory-userfault", "memory", &["userfault"])
        .refused(RefusalKind::Descriptor, &["[userfaultfd]"]),
    specimen!(
        "files-open",
        "files",
        &[
            "odd",
            "magic-links",
            "path",
            "nameless-only",
            "removed-dir",
            "removed-both",
            "moved",
            "sparse",
            "attributes",
            "kernel-files",
            "dead",
            "namespace"
        ]
    ),
    specimen!("files-long", "files", &["long", "shm"]),
    specimen!("files-removed", "files", &["odd-removed", "removed-cwd"]),
    specimen!("files-own-program", "files", &["own-program"])
        .refused(RefusalKind::Descriptor, &["O_PATH", "/bin/files"]),
    specimen!("files-replaced", "files", &["replaced-exe"])
        .declared(LossKind::FilePath, &["/bin/files"]),
    // What processes write to together, while it goes over in rounds.
    specimen!("sharing-anonymous", "sharing", &["anonymous", "24"]),
    specimen!("sharing-segment", "sharing", &["segment", "24"]),
    specimen!("sharing-memfd", "sharing", &["memfd", "24"]),
    specimen!("sharing-shm", "sharing", &["shm", "24"]),
    specimen!("leases", "leases", &["read", "write"]),
    specimen!("leases-mapped", "leases", &["mapped"])
        .refused(RefusalKind::Descriptor, &["/leased-mapped", "is mapped"]),
    specimen!("leases-breaking", "leases", &["breaking"]).refused(
        RefusalKind::Descriptor,
        &["/leased-breaking", "is being broken"],
    ),
    specimen!(
        "watches",
        "watches",
        &[
            "numbered",
            "signals",
            "disarmed",
            "edge-waiting",
            "nested",
            "closed",
            "pidfd-dead",
            "pidfd"
        ]
    ),
    specimen!("watches-flags", "watches", &["once", "excluding"]),
    specimen!("watches-unread", "watches", &["waiting"])
        .declared(LossKind::UnreadEvents, &["inotify", "does not read"]),
    specimen!("watches-closed", "watches", &["edge", "taken"]),
    specimen!("watches-directory", "watches", &["directory"])
        .declared(LossKind::DirectoryNotification, &["F_NOTIFY"]),
    specimen!("watches-nameless", "watches", &["nameless"])
        .refused(RefusalKind::Descriptor, &["inotify", "no path"]),
    specimen!("watches-handles", "watches", &["fanotify"])
        .refused(RefusalKind::Descriptor, &["fanotify", "FAN_REPORT_FID"]),
    specimen!("confined-filter", "confined", &["filter"]),
    specimen!("confined-thread", "confined", &["filter-of-thread"]),
    specimen!("confined-children", "confined", &["chroot-child", "strict"]),
    specimen!("confined-unheard", "confined", &["unheard"]),
    specimen!("confined-root", "confined", &["chroot"])
        .refused(RefusalKind::Process, &["chroot", "/data/root"]),
    specimen!("confined-outside", "confined", &["chroot-outside"])
        .refused(RefusalKind::Process, &["chroot", "/data/root"]),
    specimen!("confined-landlock", "confined", &["landlock"])
        .abandoned(&["process 1 is confined by Landlock", "start it without"]),
    specimen!("confined-landlock-net", "confined", &["landlock-net-child"])
        .abandoned(&["is confined by Landlock", "start it without"]),
    specimen!("confined-landlock-thread", "confined", &["landlock-thread"])
        .abandoned(&["process 1 is confined by Landlock", "start it without"]),
    specimen!("confined-code", "confined", &["code"])
        .abandoned(&["PR_SET_MDWE", "start it without"]),
    specimen!("confined-listener", "confined", &["listener"])
        .refused(RefusalKind::Descriptor, &["seccomp notify"]),
    specimen!("chosen-exits", "chosen", &["exits"])
        .declared(LossKind::ChildSignal, &["by signal 10"]),
    specimen!("chosen-dispatch", "chosen", &["dispatch"])
        .abandoned(&["PR_SET_SYSCALL_USER_DISPATCH", "start it without"]),
    specimen!("chosen-segments", "chosen", &["segments"])
        .abandoned(&["modify_ldt(2)", "start it without"]),
    specimen!("chosen-nodes", "chosen", &["nodes"])
        .declared(LossKind::ProcessAttribute, &["interleave:0", "mbind(2)"]),
    specimen!("chosen-tight", "chosen", &["tight"]).refused(RefusalKind::Process, &["RLIMIT_AS"]),
    specimen!("chosen-cpu", "chosen", &["cpu"])
        .declared(LossKind::ProcessAttribute, &["RLIMIT_CPU"]),
    specimen!("chosen-tiles", "chosen", &["tiles"]),
    specimen!(
        "chosen-registers",
        "chosen",
        &["rights", "barriers", "busy"]
    ),
    specimen!("chosen-signals", "chosen", &["handlers", "disarmed"]),
    specimen!("chosen-ended", "chosen", &["ended", "heap", "forward"]),
    specimen!("chosen-systemv", "chosen", &["systemv"]),
    specimen!("chosen-weak", "chosen", &["weak"]),
    specimen!("chosen-directory", "chosen", &["directory"]),
    specimen!("handles-flight", "handles", &["flight"])
        .refused(RefusalKind::Descriptor, &["a timer (timerfd)"]),
    specimen!("handles-flight-event", "handles", &["flight-event"]),
    specimen!("handles-flight-options", "handles", &["flight-options"]),
    specimen!("handles-flight-group", "handles", &["flight-group"]),
    specimen!("handles-thread", "handles", &["threads"])
        .refused(RefusalKind::Descriptor, &["PIDFD_THREAD"]),
    specimen!("handles-renamed", "handles", &["renamed"])
        .refused(RefusalKind::Socket, &["`/bound`", "`renamed`", "rename(2)"]),
    specimen!("handles-linked", "handles", &["linked"])
        .refused(RefusalKind::Socket, &["`/bound`", "several names"]),
    specimen!("handles-local", "handles", &["local"]),
    specimen!("handles-devices", "handles", &["devices"]),
    specimen!("handles-pids", "handles", &["pids"]),
    specimen!("handles-sizes", "handles", &["sizes"]),
    specimen!("handles-timers", "handles", &["timers"]),
    specimen!("handles-flags", "handles", &["flags"]),
    specimen!("handles-past", "handles", &["past"]),
    specimen!("handles-memory", "handles", &["memory"]),
    specimen!("handles-locks", "handles", &["locks"]),
    specimen!("handles-owned", "handles", &["owned"]),
    specimen!("handles-partial", "handles", &["partial"]),
    specimen!("handles-cycles", "handles", &["cycles"]),
];
