//! What CRIU's lines mean. Words are those of CRIU 4.2; the file that each is logged in is beside them.

/// A line that is known by some of its words.
pub(super) struct Known {
    words: &'static [&'static str],
    /// Cause and remedy.
    pub told: &'static str,
}

impl Known {
    #[cfg(test)]
    pub(super) fn words(&self) -> &'static [&'static str] {
        self.words
    }

    pub(super) fn is_it(&self, line: &str) -> bool {
        self.words.iter().all(|word| line.contains(word))
    }
}

const fn known(words: &'static [&'static str], told: &'static str) -> Known {
    Known { words, told }
}

/// Errors that CRIU logs and goes on from, and what it says at the end of every failure.
pub(super) const HARMLESS: &[&[&str]] = &[
    // util.c: root without CAP_SYS_RESOURCE.
    &["Can't setup RLIMIT_NOFILE for self"],
    // sockets.c: TCP_CORK and TCP_NODELAY of a page socket that is none of TCP.
    &["Can't set 6:3"],
    &["Can't set 6:1 "],
    // cr-dump.c, cr-restore.c: the ends of all failures.
    &["Dumping FAILED"],
    &["Restoring FAILED"],
    &["Lazy pages transfer FAILED"],
    // cr-dump.c: told on the way out.
    &["Dump files (pid:"],
    &["Dump core (pid:"],
    &["Can't dump threads"],
    &["Can't dump thread for pid"],
    // cr-service.c, action-scripts.c: our own veto, which has its own words.
    &["Pre dump script failed"],
    &["RPC: ", "notification"],
];

/// Cause and remedy, by the words of a line. The first that fits counts.
pub(super) const KNOWN: &[Known] = &[
    // Processes: seize.c, compel's infect.c, cr-dump.c, pstree.c, proc_parse.c.
    known(
        &["pending SIGTRAP"],
        "a thread of the service has a SIGTRAP that it has not taken: let it take the signal, and \
         migrate again",
    ),
    known(
        &["Unseizable non-zombie"],
        "a process of the service is traced by somebody else (a debugger, strace): end that, and \
         migrate again",
    ),
    known(
        &["criu itself is within dumped tree"],
        "UMS's own agent runs inside the service: move it out of the service's control group",
    ),
    known(
        &["Individually stopped threads"],
        "a thread of the service is stopped alone: let it go on, and migrate again",
    ),
    known(
        &["ombie", "thread"],
        "the first thread of a process has ended while others go on: migrate when it has ended",
    ),
    known(
        &["A root task is dead"],
        "the service has ended: start it anew",
    ),
    known(
        &["Unable to freeze cgroup"],
        "a process of the service waits in the kernel (for a disk or a network file system) and does \
         not freeze: migrate again when that has answered",
    ),
    known(
        &["Unable to interrupt the current operation"],
        "CRIU was not done in time: migrate again when the system is less busy",
    ),
    known(
        &["unsupported stop signal"],
        "a process of the service is stopped in a way that CRIU does not know: let it go on (SIGCONT), \
         and migrate again",
    ),
    known(
        &["Can't make VM id"],
        "two processes of the service share their memory (CLONE_VM, vfork): migrate again when that is \
         over",
    ),
    known(
        &["Can't make FS id"],
        "two processes of the service share working directory and umask (CLONE_FS): such processes \
         can't move",
    ),
    known(
        &["session leader", "outside of its pid namespace"],
        "a process belongs to a session from outside the service: start it inside, not by entering the \
         service",
    ),
    known(
        &["Can't find a session leader"],
        "a process is in a session whose leader has ended, in a way that can't be made again: migrate \
         again when it has ended",
    ),
    known(
        &["intersects with"],
        "a process is in a session or group whose number another process has by now: migrate again \
         when one of them has ended",
    ),
    known(
        &["has rseq but kernel lacks"],
        "this kernel does not tell of restartable sequences (rseq): it takes Linux 5.13 or later",
    ),
    known(
        &["Can't fetch filter"],
        "a seccomp filter of the service can't be read: it takes CAP_SYS_ADMIN, and an agent that is \
         under no filter itself",
    ),
    known(
        &["Have no NSpid support"],
        "a timer signals a thread that has ended: migrate again when the timer is gone",
    ),
    // Memory and mappings: proc_parse.c, cr-dump.c, aio.c.
    known(
        &["doesn't live in IPC ns"],
        "shared memory (System V) from outside the service is attached: detach it",
    ),
    known(
        &["uprobes vma"],
        "a process is probed from outside (perf, bpftrace): end that, and migrate again",
    ),
    known(
        &["Failed to check aio rings"],
        "asynchronous IO (io_submit) is under way: migrate again when it is done",
    ),
    known(
        &["Unsupported mapping found"],
        "a process maps something of a driver or the kernel's that can't be copied: close it",
    ),
    known(
        &["Strange file mapped"],
        "a process maps something of a driver or the kernel's that can't be copied: close it",
    ),
    known(
        &["non-regular mapping"],
        "a process maps something that is no file: close it",
    ),
    // Files: files.c, files-ext.c, files-reg.c, fsnotify.c, pipes.c, file-lock.c, eventpoll.c, pidfd.c.
    known(
        &["Can't dump file", "of that type"],
        "a descriptor leads to something that CRIU does not know: close it",
    ),
    known(
        &["Can't dump ghost file"],
        "a deleted file that is still open is too large to go along: close it, or move the service \
         when it is smaller",
    ),
    known(
        &["Can't create link remap"],
        "an open file has lost a name, and can't be kept under another one where it is: close it",
    ),
    known(
        &["Can't lookup mount="],
        "a file is open from outside the service's own files and volumes: close it, or give the \
         service a volume there",
    ),
    known(
        &["overmounted mounts"],
        "a file is open below a place where something else was mounted since: close it",
    ),
    known(
        &["Conflict with a dead task"],
        "an open file of /proc is of a process that has ended and whose number is taken again: close \
         it",
    ),
    known(
        &["suitable path for handle"],
        "a watched file (inotify) can't be found by a path any more: end the watch, or migrate again",
    ),
    known(
        &["packetized mode for pipes"],
        "a pipe is in packet mode (O_DIRECT): such a pipe can't move",
    ),
    known(
        &["lease"],
        "a file has a lease (F_SETLEASE): give it up before the move",
    ),
    known(
        &["Unresolved lock found"],
        "a file is locked by a process outside the service, or by one that has ended: release the lock",
    ),
    known(
        &["Escaped/closed fd descriptor"],
        "an epoll instance watches a file whose descriptor has been closed: end the watch (EPOLL_CTL_DEL) \
         before the descriptor is closed",
    ),
    known(
        &["PIDFD_THREAD"],
        "a descriptor stands for one thread (PIDFD_THREAD): close it",
    ),
    known(
        &["pidfd pid", "not a part of process tree"],
        "a descriptor stands for a process outside the service (pidfd): close it",
    ),
    // Terminals: tty.c.
    known(
        &["No CTL for TTY dump"],
        "a terminal is on its way between two processes (SCM_RIGHTS): migrate again when it was \
         received",
    ),
    known(
        &["dangling tty"],
        "the session of a terminal has no leader any more: close the terminal, or migrate again",
    ),
    known(
        &["ctty inheritance"],
        "processes have a terminal in common in a way that can't be made again: close it",
    ),
    known(
        &["queued data overflow"],
        "more is unread in a terminal than CRIU carries: read it, and migrate again",
    ),
    // Unix sockets: sk-unix.c, sk-queue.c.
    known(
        &["half of stream unix connection"],
        "a unix socket is connected to a process outside the service: close the connection",
    ),
    known(
        &["External socket is used"],
        "a unix socket is connected to a process outside the service: close the connection",
    ),
    known(
        &["name-less external socket"],
        "a unix socket is connected to a process outside the service: close the connection",
    ),
    known(
        &["Non-empty write queue on an in-flight socket"],
        "a connection to a unix socket waits to be accepted, with data in it: migrate again when it was \
         accepted",
    ),
    known(
        &["closed in-flight socket"],
        "a connection to a unix socket waits to be accepted and was closed at its other end: migrate \
         again when it was accepted",
    ),
    known(
        &["In-flight connection on"],
        "a connection to a unix socket waits to be accepted in a way that can't be made again: migrate \
         again when it was accepted",
    ),
    known(
        &["Dangling connection"],
        "one end of a unix connection is held by nobody: migrate again",
    ),
    known(
        &["unreachable peer"],
        "one end of a unix connection is held by nobody: migrate again",
    ),
    known(
        &["Unix socket", "without peer"],
        "one end of a unix connection is held by nobody: migrate again",
    ),
    known(
        &["Control messages in queue"],
        "a unix socket has unread messages whose senders it is told (SO_PASSCRED): migrate again when \
         they were read",
    ),
    known(
        &["sys_recvmsg failed: truncated"],
        "a unix socket has an unread message that is larger than what it may send itself (SO_SNDBUF): \
         migrate again when it was read",
    ),
    known(
        &["Failed to send packet"],
        "what a unix socket had not read can't be written again at the destination: migrate again \
         when it was read",
    ),
    known(
        &["Restored skb trimmed"],
        "what a unix socket had not read can't be written again at the destination: migrate again \
         when it was read",
    ),
    // Other sockets: sk-inet.c, sk-tcp.c, sk-netlink.c, sk-packet.c, sockets.c, soccr.
    known(
        &["The socket has data to read"],
        "a netlink socket has messages that were not read: migrate again when they were",
    ),
    known(
        &["more than 32 groups"],
        "a netlink socket is a member of groups beyond the 32nd: leave them",
    ),
    known(
        &["bound to groups but not to portid"],
        "a netlink socket is a member of groups and was never bound: bind it",
    ),
    known(
        &["corked dgram socket"],
        "a UDP socket holds data back (UDP_CORK, MSG_MORE): migrate again when it was sent",
    ),
    known(
        &["Unsupported proto", "for socket"],
        "a socket is of a protocol that can't move (MPTCP, SCTP, …): close it, or have the program \
         use TCP",
    ),
    known(
        &["In-flight connection (l)"],
        "a connection waits to be accepted: migrate again when it was",
    ),
    known(
        &["Unknown inet socket", "state"],
        "a connection is in a state that can't move: migrate again when it is open or closed",
    ),
    known(
        &["Sockets (family", "are not collected"],
        "the kernel does not list the sockets of a kind that the service has: load its module \
         (`modprobe tcp_diag udp_diag unix_diag netlink_diag af_packet_diag raw_diag`)",
    ),
    known(
        &["Diag module missing"],
        "the kernel does not list the sockets of a kind that the service has: load its module \
         (`modprobe tcp_diag udp_diag unix_diag netlink_diag af_packet_diag raw_diag`)",
    ),
    known(
        &["TCP_REPAIR", "not permitted"],
        "connections can't be taken out of the kernel: the agent needs CAP_NET_ADMIN",
    ),
    known(
        &["Failed to lock TCP connection"],
        "a connection can't be held while it is copied: migrate again",
    ),
    known(
        &["libsoccr_save() failed"],
        "a connection changed while it was copied, or is in a state that can't move: migrate again",
    ),
    known(
        &["bind", "Address already in use"],
        "a port or name of the service is taken at the destination: free it there, and migrate again",
    ),
    known(
        &["bind", "Cannot assign requested address"],
        "an address that the service uses is not there at the destination: migrate again, and look at \
         the destination's network if it stays so",
    ),
    known(
        &["Can't connect inet socket back"],
        "a connected UDP socket can't be connected again at the destination: there is no way to its \
         peer from there",
    ),
    known(
        &["ifindex for"],
        "a socket is bound to a network device that the service does not have at the destination",
    ),
    // Mounts: mount.c.
    known(
        &["FS mnt", "unsupported id"],
        "something is mounted inside the service of a kind that can't be made again: unmount it",
    ),
    known(
        &["autodetected external mount"],
        "something is mounted inside the service from outside: unmount it",
    ),
    known(
        &["doesn't have a proper root mount"],
        "a part of a file system is mounted inside the service whose whole is not: unmount it",
    ),
    known(
        &["No mapping for", "mountpoint"],
        "the service has a mount that the destination does not know of: unmount it",
    ),
    // Restore: files-reg.c, cr-restore.c, restorer.c, uffd.c, cpu.c.
    known(
        &["has bad size"],
        "a file is not at the destination as it was at the source: migrate again; something else may \
         write to the service's files",
    ),
    known(
        &["has bad mode"],
        "a file is not at the destination as it was at the source: migrate again; something else may \
         write to the service's files",
    ),
    known(
        &["bad build-ID"],
        "a program or library at the destination is another one than at the source: migrate again",
    ),
    known(
        &["Can't open file", "No such file"],
        "a file that the service has open is not there at the destination: migrate again; something \
         else may remove files of the service's",
    ),
    known(
        &["Can't fork for", "File exists"],
        "a process id of the service is taken at the destination: migrate again",
    ),
    known(
        &["do not match expected"],
        "a process id of the service is taken at the destination: migrate again",
    ),
    known(
        &["killed by signal 9"],
        "a process was killed while it was put together, most often because memory ran out: give the \
         service a higher limit, or the destination more memory",
    ),
    known(
        &["userfaultfd", "not permitted"],
        "userfaultfd can't be used at the destination: run its agent as root without a seccomp filter, \
         or set `restore = \"eager\"`",
    ),
    known(
        &["match run time"],
        "the destination's processor lacks what the service uses: choose one with the same features",
    ),
    known(
        &["FPU feature required by image"],
        "the destination's processor lacks what the service uses: choose one with the same features",
    ),
    known(
        &["xsave", "mismatch"],
        "the destination's processor keeps other registers than the source's: choose one with the same \
         features",
    ),
    known(
        &["rlimit", "not permitted"],
        "a limit of the service is higher than the destination's agent may set: it needs \
         CAP_SYS_RESOURCE",
    ),
    // The data path: page-xfer.c, page-pipe.c.
    known(
        &["A socket was closed unexpectedly"],
        "the path for pages broke: see the other system's agent, and migrate again",
    ),
    known(
        &["page-xfer", "Broken pipe"],
        "the path for pages broke: see the other system's agent, and migrate again",
    ),
    known(
        &["page-xfer", "Connection reset"],
        "the path for pages broke: see the other system's agent, and migrate again",
    ),
    // Whatever it was at: the errno's words.
    known(
        &["No space left on device"],
        "there is no room left for the checkpoint: the service has more than 1 GiB of state besides its \
         memory (deleted files that are open, most often)",
    ),
    known(
        &["Cannot allocate memory"],
        "memory ran out: free some, or give the service a higher limit",
    ),
    known(
        &["Too many open files"],
        "a limit of open files is reached: raise it for UMS's agent (`LimitNOFILE=`)",
    ),
    known(
        &["Operation not permitted"],
        "something was not permitted to UMS's agent: does it run as root with all capabilities?",
    ),
];
