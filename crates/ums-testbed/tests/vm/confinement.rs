//! What a service may reach of a stock host, which has the unified hierarchy of control groups alone
//! under systemd: the same after a move as before it.

use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::pair::SERVICES;

use crate::{moved, said, with_ums};

/// Makes nodes of the host's devices, over and over, opens them, and says what came of it.
const PROBE: &str = r#"
try() { "$@" >/dev/null 2>/tmp/said && echo "ok: $*" || echo "$(busybox tail -n 1 /tmp/said): $*"; }
reading() { true <"$1"; }
writing() { true >>"$1"; }
n=0
while true; do
    n=$((n + 1))
    {
        while read -r name kind major minor; do
            busybox rm -f "/tmp/$name"
            try busybox mknod "/tmp/$name" "$kind" "$major" "$minor"
            try reading "/tmp/$name"
            try writing "/tmp/$name"
        done </etc/devices
        echo "number $n"
    } >/data/new
    busybox mv /data/new /data/found
    busybox sleep 5
done
"#;

/// The host's disk, its console, and what lets a process mount or tunnel; and one that everybody has.
const DEVICES: &str = "\
vda b 254 0
ttyS0 c 4 64
fuse c 10 229
tun c 10 200
kmsg c 1 11
null c 1 3
";

/// Takes more memory than it may, over and over: the shell sees how its child ends.
const HOG: &str = r#"
n=0
while true; do
    n=$((n + 1))
    busybox dd if=/dev/zero of=/dev/null bs=16M count=1 2>/dev/null; small=$?
    busybox dd if=/dev/zero of=/dev/null bs=256M count=1 2>/dev/null; large=$?
    echo "small $small large $large number $n" >/data/new
    busybox mv /data/new /data/found
    busybox sleep 5
done
"#;

/// Status of a shell's child that a SIGKILL ended.
const KILLED: &str = "small 0 large 137";

/// A root filesystem with a script, whose volume `data` has what it finds.
fn start(machine: &Machine, name: &str, script: &str, options: &str) {
    let root = format!("/root/{name}");
    let make = format!(
        "cp -a {SERVICES}/redis {root} && cat >{root}/etc/devices <<'E'\n{DEVICES}E\n\
         cat >{root}/bin/{name} <<'E'\n{script}E\n\
         ums run {name} --rootfs {root} --volume data:/data {options} -- /bin/sh /bin/{name}"
    );
    let started = machine.ok(&make);
    started.unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)));
}

/// What a whole round found that began after this was called.
fn found(machine: &Machine, name: &str) -> String {
    let file = format!("/var/lib/ums/services/{name}/volumes/data/found");
    let number = format!("grep -o 'number [0-9]*' {file}");
    let first = machine.until("a round", 20, &number);
    let first = first.unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)));
    let first: u64 = first["number ".len()..].parse().expect("a number");
    let later = format!(
        "test $({number} | cut -d' ' -f2) -ge {} && cat {file}",
        first + 2
    );
    let found = machine.until("a whole round", 20, &later);
    let found = found.unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)));
    let (found, _) = found.rsplit_once("number").expect("the number is last");
    found.trim().to_owned()
}

#[test]
fn the_hosts_devices_are_out_of_reach_before_and_after_a_move() {
    let Some(pair) = with_ums("the_hosts_devices_are_out_of_reach_before_and_after_a_move") else {
        return;
    };
    for machine in pair.machines() {
        // They are there, and root of the host reads them.
        let devices = "modprobe fuse tun; head -c 1 /dev/vda >/dev/null && ls /dev/ttyS0 /dev/fuse /dev/net/tun";
        machine.ok(devices).expect("devices");
    }
    start(&pair.debian12, "probe", PROBE, "");
    let before = found(&pair.debian12, "probe");
    for name in ["vda", "ttyS0", "fuse", "tun", "kmsg"] {
        for verb in ["reading", "writing"] {
            let (ok, no) = (
                format!("ok: {verb} /tmp/{name}"),
                format!(": {verb} /tmp/{name}"),
            );
            assert!(
                !before.contains(&ok) && before.contains(&no),
                "{name}: {before}"
            );
        }
    }
    assert!(before.contains("ok: writing /tmp/null"), "{before}");
    moved(&pair, &pair.debian12, "probe");
    assert_eq!(found(&pair.debian13, "probe"), before);
    moved(&pair, &pair.debian13, "probe");
    assert_eq!(found(&pair.debian12, "probe"), before);
}

#[test]
fn a_memory_limit_holds_before_and_after_a_move() {
    let Some(pair) = with_ums("a_memory_limit_holds_before_and_after_a_move") else {
        return;
    };
    // The first service of a machine: nobody has switched the controllers on for it.
    start(&pair.debian12, "hog", HOG, "--memory 128M");
    assert_eq!(found(&pair.debian12, "hog"), KILLED);
    let killed = "dmesg | grep -c 'Memory cgroup out of memory'";
    assert_ne!(pair.debian12.ok(killed).expect("a number"), "0");
    moved(&pair, &pair.debian12, "hog");
    assert_eq!(found(&pair.debian13, "hog"), KILLED);
    assert_ne!(pair.debian13.ok(killed).expect("a number"), "0");
    moved(&pair, &pair.debian13, "hog");
    assert_eq!(found(&pair.debian12, "hog"), KILLED);
}

#[test]
fn a_service_that_can_not_start_leaves_no_control_group() {
    let Some(pair) = with_ums("a_service_that_can_not_start_leaves_no_control_group") else {
        return;
    };
    for machine in pair.machines() {
        let run = format!("ums run bad --rootfs {SERVICES}/redis --memory 64M -- /bin/nothing");
        let done = machine.run(&run).expect("it ends");
        assert_ne!(done.code(), Some(0), "{}", done.all());
        // So that the shell which asks is not found.
        let left = "find /sys/fs/cgroup /var/lib/ums/services /run/ums/services -name '*[b]ad*'; pgrep -fa '[b]ad'";
        let gone = format!("test -z \"$({left})\" || {{ {left}; false; }}");
        machine
            .until("nothing of it", 20, &gone)
            .expect("nothing is left");
        assert_eq!(machine.ok("ums list --json").expect("a list"), "[]");
    }
}
