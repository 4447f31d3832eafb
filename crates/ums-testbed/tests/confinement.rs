//! What confines a service is the same after a move as before it, on both layouts of control groups:
//! what the kernel says of each process from outside, and what it lets the service do from inside.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::PATIENCE;
use ums_core::report::Outcome;
use ums_testbed::namespace::{Layout, namespace_of};
use ums_testbed::rootfs;
use ums_testbed::system::System;
use ums_testbed::testbed::{Settings, Testbed};
use ums_testbed::tools::{Tools, skipped, wait_for};

/// The service: tries, over and over, what it may do, and writes it down beside a number. Devices
/// are tried by nodes that it makes itself.
/// (`true` and not `:`, whose failed redirection ends a shell.)
const PROBE: &str = r#"
try() { "$@" >/dev/null 2>/tmp/said && echo "ok: $*" || echo "$(busybox tail -n 1 /tmp/said): $*"; }
reading() { true <"$1"; }
writing() { true >>"$1"; }
probe() {
    while read -r name kind major minor; do
        busybox rm -f "/tmp/$name"
        try busybox mknod "/tmp/$name" "$kind" "$major" "$minor"
        try reading "/tmp/$name"
        try writing "/tmp/$name"
    done </etc/devices
    for name in null zero full random urandom; do try writing "/dev/$name"; done
    for path in /proc/keys /proc/timer_list /proc/kcore; do try busybox head -c 1 "$path"; done
    for path in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/default_smp_affinity \
        /sys/power/state /sys/kernel/mm/ksm/run; do try writing "$path"; done
    try busybox mount -t tmpfs none /tmp
    try busybox mount -o remount,rw /sys
    try busybox hostname other
    try busybox ip link set lo down
    try busybox chroot /
    try busybox date -s 2000-01-01
    try busybox nice -n -5 busybox true
}
busybox sleep 1000000 &
n=0
while true; do
    n=$((n + 1))
    { probe; echo "number $n"; } >/result.new
    busybox mv /result.new /result
    busybox sleep 0.05
done
"#;

/// Devices of a host: name, kind, numbers. The first are every container's, the others nobody's.
const DEVICES: &str = "\
null c 1 3
zero c 1 5
full c 1 7
random c 1 8
urandom c 1 9
mem c 1 1
port c 1 4
kmsg c 1 11
tty0 c 4 0
ttyS0 c 4 64
console c 5 1
loop-control c 10 237
fuse c 10 229
tun c 10 200
kvm c 10 232
loop0 b 7 0
sda b 8 0
vda b 254 0
nvme0n1 b 259 0
";

/// How many of [`DEVICES`] a service may use.
const ALLOWED: usize = 5;

/// What is compared of `/proc/PID/status`.
const STATUS: [&str; 14] = [
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed",
    "Mems_allowed",
];

/// What is compared of a process's other files.
const FILES: [&str; 10] = [
    "limits",
    "oom_score_adj",
    "attr/current",
    "attr/exec",
    "attr/fscreate",
    "attr/keycreate",
    "attr/sockcreate",
    "loginuid",
    "setgroups",
    "uid_map",
];

/// What is compared of a control group, in whatever hierarchy has it.
const LIMITS: [&str; 12] = [
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "pids.max",
    "devices.list",
    "cpu.shares",
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
];

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

type Seen = BTreeMap<String, String>;

fn systems(test: &str, layout: Layout) -> Option<Testbed> {
    let tools = Tools::find().expect("this program's own path is known");
    if let Some(lacking) = tools.lacking() {
        skipped(test, &lacking);
        return None;
    }
    let mut testbed =
        Testbed::with_cgroups(&tools, &Settings::default(), layout).expect("a testbed");
    testbed
        .start_coordinators()
        .expect("both Coordinators answer");
    Some(testbed)
}

fn start_probe(testbed: &Testbed, memory: Option<&str>) -> std::io::Result<std::process::Output> {
    let root = testbed.directory().join("probe-rootfs");
    let busybox = rootfs::program("busybox").expect("a busybox");
    rootfs::minimal(&root, &[]).expect("a root filesystem");
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    std::fs::write(root.join("etc/devices"), DEVICES)?;
    std::fs::write(root.join("bin/probe"), PROBE)?;
    let root = root.display().to_string();
    let mut arguments = vec!["run", "probe", "--rootfs", &root, "--volume", "data:/data"];
    arguments.extend(memory.iter().flat_map(|limit| ["--memory", limit]));
    arguments.extend(["--", "/bin/sh", "/bin/probe"]);
    let output = testbed.a.ums(&arguments).expect("`ums run` starts");
    Ok(output)
}

/// What the service found in a round that began after this was called.
fn found(system: &System) -> Vec<String> {
    let path = system.state_dir().join("services/probe/upper/result");
    let read = || {
        let text = std::fs::read_to_string(&path).ok()?;
        let (found, number) = text.trim_end().rsplit_once("\nnumber ")?;
        let number: u64 = number.parse().ok()?;
        Some((found.lines().map(str::to_owned).collect(), number))
    };
    let wait = |what: &str, from: u64| {
        let got = wait_for(what, PATIENCE, || {
            read().filter(|(_, number)| *number >= from)
        });
        got.unwrap_or_else(|error| panic!("{error}; {}", system.said()))
    };
    let (_, number): (Vec<String>, u64) = wait("a first round", 0);
    wait("a whole round", number + 2).0
}

/// The processes of the service by their number inside, without those that come and go.
fn processes(system: &System) -> BTreeMap<String, i32> {
    let shell = common::processes(system, &["/bin/sh /bin/probe"]);
    let sleeper = common::processes(system, &["busybox sleep 1000000"]);
    let inside = |pid: &i32| {
        let status = read(&PathBuf::from(format!("/proc/{pid}/status")));
        let numbers = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        Some(numbers.split_whitespace().last()?.to_owned())
    };
    let numbered = shell.iter().chain(&sleeper);
    let numbered = numbered.filter_map(|pid| Some((inside(pid)?, *pid)));
    // The shell's children for a moment are copies of it.
    numbered
        .filter(|(number, pid)| number == "1" || sleeper.contains(pid))
        .collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| format!("({error})"))
}

/// All that is compared of a process, by name.
fn seen(testbed: &Testbed, system: &System, pid: i32) -> Seen {
    let mut seen = Seen::new();
    let proc = PathBuf::from(format!("/proc/{pid}"));
    for line in read(&proc.join("status")).lines() {
        if let Some((name, value)) = line.split_once(':').filter(|(n, _)| STATUS.contains(n)) {
            seen.insert(format!("status {name}"), value.trim().to_owned());
        }
    }
    for name in FILES {
        seen.insert(name.to_owned(), read(&proc.join(name)));
    }
    for kind in NAMESPACES {
        let shared = namespace_of(pid, kind) == namespace_of(system.namespace().init(), kind);
        let whose = if shared { "the system's" } else { "its own" };
        seen.insert(format!("namespace {kind}"), whose.to_owned());
    }
    for line in read(&proc.join("mountinfo")).lines() {
        let (point, mount) = mount(line);
        seen.entry(format!("mount {point}"))
            .or_default()
            .push_str(&mount);
    }
    let marks = format!("/{}/{}/ums/{}/", testbed.id(), system.name(), system.name());
    let groups = read(&proc.join("cgroup"));
    for line in groups.lines() {
        let (hierarchy, path) = line.rsplit_once(':').expect("a line of a hierarchy");
        let path = path.replace(&marks, "/ID/SYSTEM/ums/SYSTEM/");
        seen.insert(format!("group {hierarchy}"), path);
    }
    seen.extend(limits(system));
    seen
}

/// What a line of mountinfo says of a mount, without what names a place or a number of this node.
/// (`uuid` says how the kernel identifies an overlay, which it decides by what is in the upper layer.)
fn mount(line: &str) -> (&str, String) {
    let (front, back) = line.split_once(" - ").expect("a line of mountinfo");
    let front: Vec<&str> = front.split(' ').collect();
    let back: Vec<&str> = back.split(' ').collect();
    let (point, options, propagation) = (front[4], front[5], &front[6..]);
    let root = match back[0] {
        // External mounts have their place on the node in it.
        "proc" | "sysfs" | "devpts" | "mqueue" => front[3],
        _ => "",
    };
    let own = |option: &&str| {
        let of_the_node = [
            "lowerdir=",
            "upperdir=",
            "workdir=",
            "size=",
            "nr_inodes=",
            "uuid=",
        ];
        !of_the_node.iter().any(|name| option.starts_with(name))
    };
    let super_options: Vec<&str> = back[2].split(',').filter(own).collect();
    let kinds: Vec<&str> = propagation
        .iter()
        .map(|p| p.split(':').next().unwrap_or(p))
        .collect();
    let of_the_disk = point == "/data";
    let super_options = if of_the_disk { vec![] } else { super_options };
    (
        point,
        format!("[{root} {} {options} {kinds:?} {super_options:?}]", back[0]),
    )
}

/// The limits of the service's control groups, as the system sees them.
fn limits(system: &System) -> Seen {
    let root = system.outside(Path::new("/sys/fs/cgroup"));
    let hierarchies = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let groups = hierarchies.map(|entry| entry.path()).chain([root.clone()]);
    let mut limits = Seen::new();
    for group in groups {
        let service = group.join(format!("ums/{}/probe", system.name()));
        let hierarchy = group
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if service.exists() {
            limits.insert(format!("{hierarchy} exists"), String::new());
        }
        for name in LIMITS {
            if let Ok(value) = std::fs::read_to_string(service.join(name)) {
                limits.insert(format!("{hierarchy} {name}"), value);
            }
        }
    }
    limits
}

fn all_seen(testbed: &Testbed, system: &System) -> BTreeMap<String, Seen> {
    let of = |(number, pid)| (number, seen(testbed, system, pid));
    let seen: BTreeMap<_, _> = processes(system).into_iter().map(of).collect();
    assert_eq!(
        seen.len(),
        2,
        "the shell and its sleeper: {:?}",
        seen.keys()
    );
    seen
}

/// What differs between the two, one line each.
fn differences(before: &BTreeMap<String, Seen>, after: &BTreeMap<String, Seen>) -> Vec<String> {
    let mut differences = Vec::new();
    for (number, before) in before {
        let after = &after[number];
        let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for name in names {
            let (was, is) = (before.get(name), after.get(name));
            // CRIU makes a time namespace so that clocks go on; runc makes none.
            if was != is && name != "namespace time" {
                differences.push(format!("process {number}, {name}: {was:?}, now {is:?}"));
            }
        }
    }
    differences
}

fn what_confines_is_the_same(testbed: &Testbed, memory: Option<&str>) {
    let started = start_probe(testbed, memory).expect("a root filesystem");
    assert!(started.status.success(), "{started:?}");
    let (was_found, was_seen) = (found(&testbed.a), all_seen(testbed, &testbed.a));
    let opened = |prefix: &str, found: &[String]| {
        let is = |line: &&String| line.starts_with("ok: ") && line.contains(prefix);
        found.iter().filter(is).count()
    };
    // Each is made; the first are opened, and no other.
    assert_eq!(opened("mknod /tmp/", &was_found), DEVICES.lines().count());
    for way in ["reading /tmp/", "writing /tmp/"] {
        assert_eq!(opened(way, &was_found), ALLOWED, "{was_found:#?}");
    }
    let denied = |line: &&String| {
        line.contains("ing /tmp/") && !line.starts_with("ok") && !line.contains("not permitted")
    };
    assert_eq!(was_found.iter().find(denied), None, "each by the filter");
    for (from, to) in [(&testbed.a, &testbed.b), (&testbed.b, &testbed.a)] {
        let report = testbed.migrate(from, to, "probe", &[]).expect("a report");
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        assert_eq!(found(to), was_found, "at {}", to.name());
        let differences = differences(&was_seen, &all_seen(testbed, to));
        assert_eq!(differences, Vec::<String>::new(), "at {}", to.name());
    }
}

#[test]
fn what_confines_a_service_is_the_same_after_a_move() {
    let test = "what_confines_a_service_is_the_same_after_a_move";
    let Some(testbed) = systems(test, Layout::Machine) else {
        return;
    };
    what_confines_is_the_same(&testbed, Some("256M"));
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

#[test]
fn what_confines_a_service_is_the_same_where_there_is_the_unified_hierarchy_alone() {
    let test = "what_confines_a_service_is_the_same_where_there_is_the_unified_hierarchy_alone";
    let Some(testbed) = systems(test, Layout::Unified) else {
        return;
    };
    let limit = has_memory_controller(&testbed).then_some("256M");
    what_confines_is_the_same(&testbed, limit);
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

fn has_memory_controller(testbed: &Testbed) -> bool {
    let root = testbed
        .a
        .outside(Path::new("/sys/fs/cgroup/cgroup.controllers"));
    read(&root).split_whitespace().any(|name| name == "memory")
}

#[test]
fn a_memory_limit_that_can_not_be_kept_is_refused_before_anything_is_made() {
    let test = "a_memory_limit_that_can_not_be_kept_is_refused_before_anything_is_made";
    let Some(testbed) = systems(test, Layout::Unified) else {
        return;
    };
    if has_memory_controller(&testbed) {
        skipped(
            test,
            "this machine's unified hierarchy has the memory controller",
        );
        return;
    }
    let output = start_probe(&testbed, Some("256M")).expect("a root filesystem");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(common::exit::REFUSED), "{said}");
    assert!(said.contains("no memory controller"), "{said}");
    let made = testbed.a.state_dir().join("services/probe");
    assert!(!made.exists(), "{}", made.display());
    assert_eq!(limits(&testbed.a), Seen::new());
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}
