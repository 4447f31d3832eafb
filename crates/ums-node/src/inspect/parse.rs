//! Texts below `/proc/PID`, taken apart. What isn't understood is `None`.

use std::collections::BTreeSet;

/// What `/proc/PID/status` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub state: char,
    pub parent: i32,
    pub tracer: i32,
    pub threads: u32,
    /// Ids from the reader's PID namespace down to the innermost.
    pub ids: Vec<i32>,
    /// Real, effective and saved user id, and the same of the group.
    pub user: [[u32; 3]; 2],
    /// Effective capabilities, one bit for each.
    pub capabilities: u64,
}

pub(super) fn status(text: &str) -> Option<Status> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    Some(Status {
        state: field("State")?.chars().next()?,
        parent: field("PPid")?.parse().ok()?,
        tracer: field("TracerPid")?.parse().ok()?,
        threads: field("Threads")?.parse().ok()?,
        ids: field("NSpid")?
            .split_whitespace()
            .map(|id| id.parse().ok())
            .collect::<Option<_>>()?,
        user: [three(field("Uid")?)?, three(field("Gid")?)?],
        capabilities: u64::from_str_radix(field("CapEff")?, 16).ok()?,
    })
}

/// Whether this signal waits for the thread, or the process, that `/proc/PID/task/TID/status` tells of.
pub(super) fn is_pending(text: &str, signal: u32) -> bool {
    let sets = text.lines().filter_map(|line| {
        let set = line
            .strip_prefix("SigPnd:")
            .or(line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    });
    sets.fold(0, |all, set| all | set) >> (signal - 1) & 1 == 1
}

/// Whether the process of this `/proc/PID/stat` (`proc_pid_stat(5)`) leads the session of its terminal, with
/// its own group in front.
pub(super) fn leads_terminal(text: &str) -> bool {
    let numbers = |text: &str| -> Option<[i32; 2]> {
        // The name of the program may hold anything; it is in parentheses.
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        let session = fields.nth(3)?.parse().ok()?;
        Some([session, fields.nth(1)?.parse().ok()?])
    };
    let pid = text
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid: i32| numbers(text) == Some([pid, pid]))
}

/// Parent and session of the process that `/proc/PID/status` tells of, in the reader's PID namespace.
pub(super) fn parent_and_session(text: &str) -> Option<(i32, i32)> {
    let first = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse().ok()
    };
    Some((first("PPid:")?, first("NSsid:")?))
}

/// The first three of some numbers.
fn three(text: &str) -> Option<[u32; 3]> {
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

/// Ids of the mounts in `/proc/PID/mountinfo`.
pub(super) fn mount_ids(text: &str) -> BTreeSet<u32> {
    text.lines()
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .collect()
}

/// The id of the mount at `/`, the last one there, in `/proc/PID/mountinfo`.
pub(super) fn root_mount(text: &str) -> Option<u32> {
    let mut at_root = text.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        (fields.nth(3)? == "/").then_some(id)
    });
    at_root.next_back()
}

/// What `/proc/PID/fdinfo/N` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DescriptorInfo {
    pub mount: u32,
    /// O_EXCL: of a pidfd, that it stands for one thread (PIDFD_THREAD).
    pub exclusive: bool,
    /// O_PATH: no access.
    pub path_only: bool,
    pub writable: bool,
    /// O_DIRECT: of a pipe, that each write is read by itself.
    pub direct: bool,
}

pub(super) fn descriptor_info(text: &str) -> Option<DescriptorInfo> {
    const ACCESS_MODE: u32 = 0o3;
    const PATH_ONLY: u32 = 0o10_000_000;
    // The machine's own number: it is another one on arm64.
    const DIRECT: u32 = nix::libc::O_DIRECT as u32;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let flags = u32::from_str_radix(field("flags")?, 8).ok()?;
    let path_only = flags & PATH_ONLY != 0;
    Some(DescriptorInfo {
        mount: field("mnt_id")?.parse().ok()?,
        exclusive: flags & nix::libc::O_EXCL as u32 != 0,
        path_only,
        writable: flags & ACCESS_MODE != 0 && !path_only,
        direct: flags & DIRECT != 0,
    })
}

/// A lease of a file (`fcntl(2)`, F_SETLEASE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    Read,
    Write,
    /// Somebody wants to open the file, and its holder has not answered yet.
    Breaking,
}

/// The lease that `/proc/PID/fdinfo/N` tells of: `lock:\t1: LEASE  ACTIVE    READ 25378 fe:00:1 0 EOF`
/// (kernel `fs/locks.c`, `lock_get_status`).
pub(super) fn lease(text: &str) -> Option<Lease> {
    let lease = |line: &str| {
        let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
        if words.next()? != "LEASE" {
            return None;
        }
        match (words.next()?, words.next()?) {
            ("ACTIVE", "READ") => Some(Lease::Read),
            ("ACTIVE", "WRITE") => Some(Lease::Write),
            _ => Some(Lease::Breaking),
        }
    };
    text.lines().find_map(lease)
}

/// Whether `/proc/PID/fdinfo/N` tells of an eventfd that counts down by one (EFD_SEMAPHORE).
pub(super) fn is_semaphore(text: &str) -> bool {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("eventfd-semaphore:"));
    value.is_some_and(|value| value.trim() == "1")
}

/// A POSIX timer (`timer_create(2)`), as `/proc/PID/timers` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timer {
    /// The thread that it signals (SIGEV_THREAD_ID), in the reader's PID namespace.
    pub thread: Option<i32>,
    /// Its clock, as the process named it.
    pub clock: i32,
}

impl Timer {
    /// Whose CPU time it counts, where it counts CPU time: 0 is whoever made it, of a process that has
    /// several threads nobody knows which (kernel `include/linux/posix-timers.h`).
    pub(super) fn cpu_time_of(self) -> Option<i32> {
        const THREAD_CPUTIME: i32 = nix::libc::CLOCK_THREAD_CPUTIME_ID;
        const PER_THREAD: i32 = 4;
        let (pid, per_thread) = (!(self.clock >> 3), self.clock & PER_THREAD != 0);
        match self.clock {
            THREAD_CPUTIME => Some(0),
            // The process itself.
            ..0 if pid == 0 && !per_thread => None,
            ..0 => Some(pid),
            _ => None,
        }
    }
}

/// The timers of `/proc/PID/timers`.
pub(super) fn timers(text: &str) -> Vec<Timer> {
    let (mut found, mut thread) = (Vec::new(), None);
    for line in text.lines() {
        if let Some(notify) = line.strip_prefix("notify:") {
            let target = notify.split_once("/tid.");
            thread = target.and_then(|(_, id)| id.trim().parse().ok());
        }
        let clock = line.strip_prefix("ClockID:");
        let clock = clock.and_then(|clock| clock.trim().parse().ok());
        found.extend(clock.map(|clock| Timer { thread, clock }));
    }
    found
}

/// Whether `/proc/PID/fdinfo/N` tells of a file that was made without a name (O_TMPFILE).
pub(super) fn is_temporary(text: &str) -> bool {
    // What O_TMPFILE has besides O_DIRECTORY, which not every filesystem leaves on the file.
    const TEMPORARY: u32 = (nix::libc::O_TMPFILE & !nix::libc::O_DIRECTORY) as u32;
    let mut lines = text.lines();
    let flags = lines.find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & TEMPORARY != 0)
}

/// The number of a terminal in `/proc/PID/fdinfo/N` of its master.
pub(super) fn terminal_number(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let number = lines.find_map(|line| line.strip_prefix("tty-index:"))?;
    number.trim().parse().ok()
}

/// The soft limit of open files in `/proc/PID/limits`; `u64::MAX` when there is none.
pub(super) fn open_files_max(text: &str) -> Option<u64> {
    soft_limit(text, "Max open files")
}

/// A soft limit of `/proc/PID/limits`, by its name there; the largest number where there is none.
pub(super) fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    let rest = lines.find_map(|line| line.strip_prefix(name))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        limit => limit.parse().ok(),
    }
}

/// A size in `/proc/PID/status`, by its name with the colon.
pub(super) fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The signal by which the end of a process is told, of `/proc/PID/stat`: the 36th word behind the name.
pub(super) fn exit_signal(stat: &str) -> Option<i32> {
    let (_, words) = stat.rsplit_once(')')?;
    words.split_whitespace().nth(35)?.parse().ok()
}

/// Policies in `/proc/PID/numa_maps` that somebody has chosen (numa(7)).
pub(super) fn memory_policies(text: &str) -> impl Iterator<Item = &str> {
    let policies = text.lines().filter_map(|line| line.split(' ').nth(1));
    policies.filter(|policy| *policy != "default")
}

/// Tables of sockets below `/proc/PID/net`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Table {
    /// `netlink`: the bytes that wait to be read are asked for.
    Netlink,
    /// `udp` and its like: the bytes that wait to be sent.
    Udp,
}

/// Inode numbers of the sockets of a table whose queue is not empty.
pub(super) fn with_queue(text: &str, table: Table) -> Vec<u64> {
    let waits = |column: &str| match table {
        Table::Netlink => column.parse().is_ok_and(|bytes: u64| bytes > 0),
        Table::Udp => column
            .split_once(':')
            .and_then(|(sent, _)| u64::from_str_radix(sent, 16).ok())
            .is_some_and(|bytes| bytes > 0),
    };
    let inode = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        waits(columns.get(4)?).then(|| columns.get(9)?.parse().ok())?
    };
    text.lines().skip(1).filter_map(inode).collect()
}

/// One line of `/proc/PID/maps` that has a path or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub shared: bool,
    pub writable: bool,
    pub name: String,
}

pub(super) fn mappings(text: &str) -> impl Iterator<Item = Mapping> {
    text.lines().filter_map(|line| {
        let mut rest = line;
        let mut words = [""; 5];
        for word in &mut words {
            let (first, others) = rest.split_once(' ')?;
            *word = first;
            rest = others;
        }
        let [_, permissions, ..] = words;
        let permissions = permissions.as_bytes();
        let name = rest.trim_start();
        if permissions.len() != 4 || name.is_empty() {
            return None;
        }
        let (shared, writable) = (permissions[3] == b's', permissions[1] == b'w');
        Some(Mapping {
            shared,
            writable,
            name: unescape(name),
        })
    })
}

/// One mapping in `/proc/PID/smaps`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Region {
    /// Its addresses, as the names in `/proc/PID/map_files` have them.
    pub range: String,
    pub shared: bool,
    /// Empty for anonymous memory.
    pub name: String,
    /// Two letters each (kernel `filesystems/proc.rst`, VmFlags).
    pub flags: Vec<String>,
    /// `pkeys(7)`.
    pub key: u32,
}

/// Every mapping of `/proc/PID/smaps`.
pub(super) fn regions(text: &str) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        if first.contains('-') && second.len() == 4 {
            let name = mappings(line).next().map(|mapping| mapping.name);
            regions.push(Region {
                range: first.to_owned(),
                shared: second.ends_with('s'),
                name: name.unwrap_or_default(),
                ..Region::default()
            });
        } else if let Some(region) = regions.last_mut() {
            match first {
                "VmFlags:" => {
                    region.flags = line
                        .split_ascii_whitespace()
                        .skip(1)
                        .map(str::to_owned)
                        .collect();
                }
                "ProtectionKey:" => region.key = second.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    regions
}

/// `maps` and `mountinfo` write some bytes of a path as three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        let octal = others.get(..3).filter(|digits| {
            *first == b'\\' && digits[0] <= b'3' && digits.iter().all(|d| (b'0'..=b'7').contains(d))
        });
        match octal {
            Some(digits) => {
                bytes.push(
                    digits
                        .iter()
                        .fold(0, |value, digit| value * 8 + (digit - b'0')),
                );
                rest = &others[3..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A mapping with private pages of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub start: u64,
    pub end: u64,
    /// Its pages that are no file's, swapped out ones included, bytes.
    pub own_bytes: u64,
}

/// The private mappings in `/proc/PID/smaps` that have pages of their own.
pub(super) fn areas(text: &str) -> Vec<Area> {
    let mut found: Vec<Area> = Vec::new();
    let mut area = None;
    for line in text.lines() {
        if let Some(begins) = area_of(line) {
            area = begins;
            continue;
        }
        let own = ["Anonymous", "Swap"]
            .iter()
            .find_map(|name| rollup(line, name));
        let (Some((start, end)), Some(bytes @ 1..)) = (area, own) else {
            continue;
        };
        match found.last_mut() {
            Some(last) if last.start == start => {
                last.own_bytes = last.own_bytes.saturating_add(bytes);
            }
            _ => found.push(Area {
                start,
                end,
                own_bytes: bytes,
            }),
        }
    }
    found
}

/// Where a mapping begins and ends, if the line is its first; nowhere for one that is shared.
fn area_of(line: &str) -> Option<Option<(u64, u64)>> {
    let mut words = line.split(' ');
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let area = (number(start)?, number(end)?);
    Some(permissions.ends_with('p').then_some(area))
}

/// What the marks behind a fanotify descriptor report (`fanotify_init(2)`, its flags), by its `fdinfo`.
pub(super) fn fanotify_flags(text: &str) -> Option<u32> {
    let mut lines = text.lines();
    let rest = lines.find_map(|line| line.strip_prefix("fanotify flags:"))?;
    u32::from_str_radix(rest.split(' ').next()?, 16).ok()
}

/// A value in KiB of `/proc/PID/smaps_rollup`, as bytes.
pub(super) fn rollup(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Number of established connections in `/proc/PID/net/tcp` or `tcp6`.
pub(super) fn established(table: &str) -> u32 {
    const ESTABLISHED: &str = "01";
    let count = table
        .lines()
        .skip(1)
        .filter(|line| line.split_whitespace().nth(3) == Some(ESTABLISHED))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The number in `socket:[123]` and the like.
pub(super) fn inode_of(link: &str, kind: &str) -> Option<u64> {
    link.strip_prefix(kind)?
        .strip_prefix(":[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod test {
    use super::*;

    const STATUS: &str = "Name:\tsh\nState:\tS (sleeping)\nTgid:\t70\nNgid:\t0\nPid:\t70\nPPid:\t1\n\
         TracerPid:\t0\nUid:\t0\t33\t34\t35\nGid:\t1\t2\t3\t4\nThreads:\t3\nNSpid:\t70\t1\n\
         CapEff:\t00000000a80425fb\n";

    #[test]
    fn areas_are_the_private_ones_with_pages() {
        let text = "1000-3000 rw-p 00000000 00:00 0 \nRss: 8 kB\nAnonymous:             8 kB\n\
                    Swap:                 4 kB\nVmFlags: rd wr\n\
                    4000-5000 rw-s 00000000 00:01 7 /dev/zero\nAnonymous:             4 kB\n\
                    5000-6000 r--p 00000000 00:01 7 /a-b c\nAnonymous:             0 kB\nSwap: 0 kB\n";
        let area = Area {
            start: 0x1000,
            end: 0x3000,
            own_bytes: 12 << 10,
        };
        assert_eq!(areas(text), [area]);
    }

    #[test]
    fn leases_timers_and_limits() {
        let info =
            "pos:\t0\nflags:\t02120000\nlock:\t1: LEASE  ACTIVE    READ 25378 fe:00:1 0 EOF\n";
        assert_eq!(lease(info), Some(Lease::Read));
        assert_eq!(lease(&info.replace("READ", "WRITE")), Some(Lease::Write));
        let breaking = info.replace("ACTIVE", "BREAKING");
        assert_eq!(lease(&breaking), Some(Lease::Breaking));
        assert_eq!(lease(&info.replace("LEASE ", "FLOCK ")), None);
        assert_eq!(lease("lock:\t1: LEASE"), None);
        let text = "ID: 0\nsignal: 14/0\nnotify: signal/pid.7\nClockID: 1\n\
             ID: 1\nsignal: 34/0\nnotify: signal/tid.9\nClockID: -2\n";
        let found = timers(text);
        assert_eq!([found[0].thread, found[1].thread], [None, Some(9)]);
        assert_eq!([found[0].clock, found[1].clock], [1, -2]);
        let limits = "Max open files            1024                 4096     files\n";
        assert_eq!(open_files_max(limits), Some(1024));
        assert_eq!(
            open_files_max(&limits.replace("1024", "unlimited")),
            Some(u64::MAX)
        );
    }

    #[test]
    fn limits_sizes_and_signals() {
        let limits = "Max cpu time              100                  200                  seconds   \n\
                      Max data size             unlimited            unlimited            bytes     \n";
        assert_eq!(soft_limit(limits, "Max cpu time"), Some(100));
        assert_eq!(soft_limit(limits, "Max data size"), Some(u64::MAX));
        assert_eq!(soft_limit(limits, "Max address space"), None);
        assert_eq!(kibibytes("VmSize:\t    1234 kB\n", "VmSize:"), Some(1234));
        let numbers: Vec<String> = (3..=52).map(|word| word.to_string()).collect();
        let stat = format!("7 (a) b) {}", numbers.join(" "));
        assert_eq!(exit_signal(&stat), Some(38));
        assert_eq!(exit_signal("7 (a"), None);
        let maps = "7f00 bind:0 anon=16 dirty=16 N0=16\n7f10 default file=/a mapped=1\n7f20 interleave:0 anon=1\n";
        let chosen: Vec<&str> = memory_policies(maps).collect();
        assert_eq!(chosen, ["bind:0", "interleave:0"]);
    }

    #[test]
    fn whose_cpu_time_a_timer_counts() {
        let of = |clock| {
            let thread = None;
            Timer { thread, clock }.cpu_time_of()
        };
        // CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID as it is and as glibc has it.
        assert_eq!([of(1), of(2), of(-6)], [None, None, None]);
        // CLOCK_THREAD_CPUTIME_ID likewise, and what pthread_getcpuclockid(3) gives for thread 9.
        assert_eq!(
            [of(3), of(-2), of((!9 << 3) | 6)],
            [Some(0), Some(0), Some(9)]
        );
    }

    #[test]
    fn sessions() {
        let text = "Name:\tsh\nPPid:\t70\nNSpid:\t71\t2\nNSsid:\t69\t1\n";
        assert_eq!(parent_and_session(text), Some((70, 69)));
        assert_eq!(parent_and_session(STATUS), None);
    }

    #[test]
    fn who_leads_a_terminal() {
        let stat = "71 (a) b) S 1 71 71 34816 71 4194304 98 0";
        assert!(leads_terminal(stat));
        assert!(!leads_terminal(&stat.replace("34816 71", "34816 75")));
        assert!(!leads_terminal(&stat.replace("71 34816", "70 34816")));
        assert!(!leads_terminal("71 (a) S 1"));
        assert!(!leads_terminal(""));
    }

    #[test]
    fn signals_that_wait() {
        let text =
            "SigPnd:\t0000000000000010\nShdPnd:\t0000000000000200\nSigBlk:\tffffffffffffffff\n";
        assert!(is_pending(text, 5) && is_pending(text, 10));
        assert!(!is_pending(text, 1) && !is_pending(text, 9));
        assert!(!is_pending("", 5));
    }

    #[test]
    fn terminals_and_files_without_a_name() {
        let text = "pos:\t0\nflags:\t0100002\nmnt_id:\t27\ntty-index:\t3\n";
        assert_eq!(terminal_number(text), Some(3));
        assert_eq!(terminal_number("tty-index:\tx\n"), None);
        assert!(!is_temporary(text) && !is_temporary("flags:\tx\n"));
        assert!(is_temporary("pos:\t0\nflags:\t020300002\n"));
    }

    #[test]
    fn queues_of_sockets() {
        let netlink = "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n\
             0 0 7 00000001 768 0 0 2 0 41\n0 0 8 0 0 0 0 2 0 42\n";
        assert_eq!(with_queue(netlink, Table::Netlink), [41]);
        let udp = "sl local_address rem_address st tx_queue rx_queue\n\
             1: 0100007F:1C21 00000000:0000 07 00000301:00000000 00:00000000 00000000 0 0 51 2 0 0\n\
             2: 0100007F:1C22 00000000:0000 07 00000000:00000301 00:00000000 00000000 0 0 52 2 0 0\n";
        assert_eq!(with_queue(udp, Table::Udp), [51]);
    }

    #[test]
    fn a_status() {
        let expected = Status {
            state: 'S',
            parent: 1,
            tracer: 0,
            threads: 3,
            ids: vec![70, 1],
            user: [[0, 33, 34], [1, 2, 3]],
            capabilities: 0xa804_25fb,
        };
        assert_eq!(status(STATUS), Some(expected));
        assert_eq!(status(&STATUS.replace("Threads:\t3", "Threads:\tx")), None);
        assert_eq!(status(""), None);
    }

    #[test]
    fn mounts() {
        let text = "124 99 0:39 / / rw,relatime - overlay overlay rw\n\
             125 124 0:44 / /proc rw - proc proc rw\nnonsense\n";
        assert_eq!(mount_ids(text), BTreeSet::from([124, 125]));
    }

    #[test]
    fn descriptors() {
        let info =
            |flags| descriptor_info(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t17\nino:\t5\n"));
        assert_eq!(
            info("0100000"),
            Some(DescriptorInfo {
                mount: 17,
                exclusive: false,
                path_only: false,
                writable: false,
                direct: false,
            })
        );
        assert_eq!(
            info("0100001"),
            Some(DescriptorInfo {
                mount: 17,
                exclusive: false,
                path_only: false,
                writable: true,
                direct: false,
            })
        );
        assert_eq!(
            info("0102002"),
            Some(DescriptorInfo {
                mount: 17,
                exclusive: false,
                path_only: false,
                writable: true,
                direct: false,
            })
        );
        assert!(
            !info("012000002").unwrap().writable,
            "O_PATH gives no access"
        );
        assert_eq!(info("9"), None);
    }

    #[test]
    fn maps_with_blanks_and_escapes() {
        let text = "7f00-7f01 rw-s 00000000 fe:00 123                        /srv/a b\\012c (deleted)\n\
             7f02-7f03 r-xp 00001000 fe:00 124   /bin/sh\n\
             7f04-7f05 rw-p 00000000 00:00 0 \n\
             7f06-7f07 rw-p 00000000 00:00 0                          [heap]\n";
        let found: Vec<_> = mappings(text).collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].name, "/srv/a b\nc (deleted)");
        assert!(found[0].shared && found[0].writable);
        assert!(!found[1].shared && !found[1].writable);
        assert_eq!(found[2].name, "[heap]");
        assert_eq!(unescape("\\777\\12"), "\\777\\12");
    }

    #[test]
    fn what_smaps_says_of_a_mapping() {
        let text = "7f00-7f01 rw-s 00000000 fe:00 123      /memfd:a b (deleted)\n\
             Size:                  4 kB\nProtectionKey:         3\nVmFlags: rd wr sh lo \n\
             7f02-7f03 ---p 00000000 00:00 0 \nVmFlags: mr\n";
        let found = regions(text);
        let file = Region {
            range: "7f00-7f01".to_owned(),
            shared: true,
            name: "/memfd:a b (deleted)".to_owned(),
            flags: ["rd", "wr", "sh", "lo"].map(str::to_owned).to_vec(),
            key: 3,
        };
        let bare = Region {
            range: "7f02-7f03".to_owned(),
            flags: vec!["mr".to_owned()],
            ..Region::default()
        };
        assert_eq!(found, [file, bare]);
    }

    #[test]
    fn what_fanotify_reports() {
        let text = "pos:\t0\nfanotify flags:202 event-flags:8000\nfanotify ino:5 sdev:3d\n";
        assert_eq!(fanotify_flags(text), Some(0x202));
        assert_eq!(fanotify_flags("inotify wd:1"), None);
    }

    #[test]
    fn numbers() {
        let text = "00400000-7fff rollup\nRss:  2000 kB\nPss_Shmem:   4 kB\nAnonymous:  12 kB\n";
        assert_eq!(rollup(text, "Anonymous"), Some(12 * 1024));
        assert_eq!(rollup(text, "Swap"), None);
        assert_eq!(inode_of("socket:[46773]", "socket"), Some(46773));
        assert_eq!(inode_of("pipe:[46773]", "socket"), None);
        let table =
            "  sl  local_address rem_address   st\n   0: 00:1 00:0 0A 0\n   1: 00:1 00:2 01 0\n";
        assert_eq!(established(table), 1);
    }
}
