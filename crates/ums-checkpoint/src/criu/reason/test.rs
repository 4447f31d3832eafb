use super::*;

/// What every dump on a host without CAP_SYS_RESOURCE says, and how every failure ends.
fn failed(lines: &str) -> String {
    format!(
        "(00.000012) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not \
         permitted\n\
         (00.000500) Warn  (criu/page-xfer.c:165): page-xfer: Unable to set TCP_CORK=1: Operation not \
         supported\n\
         (00.000501) Error (criu/sockets.c:474): Can't set 6:3 (len 4): Operation not supported\n\
         {lines}(00.090000) Error (criu/cr-dump.c:1975): Dumping FAILED.\n"
    )
}

fn told(lines: &str) -> String {
    Reason::of(&failed(lines)).to_string()
}

#[test]
fn the_cause_is_told_and_not_what_follows_from_it() {
    let text = told(
        "(00.05) Error (criu/sk-unix.c:506): unix: Non-empty write queue on an in-flight socket 0x1f\n\
         (00.05) Error (criu/cr-dump.c:1698): Dump files (pid: 77) failed with -1\n",
    );
    assert!(text.contains("waits to be accepted, with data"), "{text}");
    assert!(
        text.contains("0x1f") && !text.contains("sk-unix.c"),
        "{text}"
    );
    assert!(
        !text.contains("RLIMIT_NOFILE") && !text.contains("pid: 77"),
        "{text}"
    );
}

#[test]
fn what_is_harmless_is_never_the_cause() {
    let silent = Reason::of(&failed(""));
    assert_eq!(silent, Reason::Silent);
    assert_eq!(Reason::of(""), Reason::Silent);
    // Although words of it would mean something elsewhere.
    let limit = told(
        "     12: Error (criu/pie/restorer.c:1): rlimit: Can't set 7: Operation not permitted\n",
    );
    assert!(limit.contains("CAP_SYS_RESOURCE"), "{limit}");
}

#[test]
fn what_nobody_knows_is_shown_as_it_is() {
    let text =
        told("Error (criu/new.c:1): a thing of 2031\nError (criu/new.c:2): and what came of it\n");
    assert!(
        text.contains("`a thing of 2031`, `and what came of it`"),
        "{text}"
    );
    // Known words count, whatever nobody knows comes before.
    let text = told(
        "Error (criu/new.c:1): a thing of 2031\nError (criu/sk-netlink.c:77): netlink: The socket has data to read\n",
    );
    assert!(text.contains("netlink socket has messages"), "{text}");
}

#[test]
fn lines_from_outside_are_bounded() {
    let long = "ä".repeat(10_000);
    let lines = format!("Error (x): {long}\n").repeat(20);
    assert!(told(&lines).len() < 4 * SHOWN_MAX);
    for odd in [
        "Error (",
        "Error ()",
        "Error (x): ",
        "\u{0}Error (a): \u{fffd}",
        "Error (a)): b",
    ] {
        let _ = Reason::of(odd).to_string();
    }
}

/// Lines of CRIU 4.2's, with what they print.
const LINES: [(&str, &str); 18] = [
    ("sk netlink: The socket has data to read", "netlink"),
    (
        "Can't dump the 12 thread with a pending SIGTRAP.",
        "SIGTRAP",
    ),
    (
        "tty: No CTL for TTY dump, likely SCM case",
        "terminal is on its way",
    ),
    ("sk-queue: sys_recvmsg failed: truncated", "SO_SNDBUF"),
    (
        "Can't dump ghost file /a/b of 300000000 size, increase limit",
        "deleted file",
    ),
    (
        "unix: Found a closed in-flight socket to 0x12",
        "closed at its other end",
    ),
    ("inet: Can't dump corked dgram socket 5b", "UDP_CORK"),
    ("inet: Unsupported proto 262 for socket 77", "MPTCP"),
    (
        "fsnotify: Can't find suitable path for handle (dev 0x2e ino 0x5): -1",
        "inotify",
    ),
    (
        "Can't dump file 5 of that type [600] (anon anon_inode:[io_uring])",
        "does not know",
    ),
    (
        "File etc/passwd has bad size 5 (expect 9)",
        "not at the destination as",
    ),
    (
        "Can't bind inet socket (id 7): Address already in use",
        "taken at the destination",
    ),
    ("33 killed by signal 9: Killed", "memory ran out"),
    (
        "page-xfer: A socket was closed unexpectedly",
        "path for pages broke",
    ),
    ("Can't write image: No space left on device", "no room left"),
    ("Pid 17 do not match expected 18", "process id"),
    (
        "The packetized mode for pipes is not supported yet",
        "O_DIRECT",
    ),
    ("Zombie thread not supported", "first thread"),
];

#[test]
fn what_criu_says_of_ordinary_causes_is_known() {
    for (line, word) in LINES {
        let text = told(&format!("Error (criu/x.c:1): {line}\n"));
        let known = text.contains(word) && text.contains(line);
        assert!(known, "{line}: {text}");
    }
}

#[test]
fn each_sentence_has_words_that_choose_it() {
    for (at, known) in KNOWN.iter().enumerate() {
        let line = known.words().join(" ");
        let first = KNOWN.iter().position(|other| other.is_it(&line));
        assert_eq!(first, Some(at), "`{line}` is hidden by another entry");
        assert!(is_telling(&line.as_str()), "`{line}` counts as harmless");
        assert!(!known.told.ends_with('.') && known.told.len() > 20);
    }
}
