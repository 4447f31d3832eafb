//! What is refused is refused before anything is frozen: with its cause, what to do about it and the
//! documented exit code, and nothing is left of the attempt.

mod common;

use std::net::{SocketAddr, TcpListener};

use common::{
    LARGE_MIB, Moving, PATIENCE, SLOW_MBIT, agent, exit, hog_is_only_at, hog_stayed, instances,
    is_only_at, no_frontman, remains, remove, strike, systems, systems_with_hog,
};
use serde_json::Value;
use ums_core::report::Outcome;
use ums_testbed::hog::Request;
use ums_testbed::rootfs;
use ums_testbed::system::{PEER_PORT, System};
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::{run, wait_for};
use ums_testbed::workload::postgresql::may_ask_for_limits;
use ums_testbed::workload::{HOG_PORT, ask_hog, start_hog};

/// The link's rate where it does not matter, Mbit/s.
const RATE_MBIT: u32 = 1000;

/// A freeze shows as a gap of a tenth of a second at least; a busy machine may delay a process a
/// little.
const NO_FREEZE_MS: f64 = 80.0;

/// Last step that does not touch anything.
const LAST_HARMLESS_STEP: u8 = 3;

/// Tries to migrate, which must be refused for a reason with these words, by `migrate` and by
/// `plan`.
fn is_refused(from: &System, arguments: &[&str], words: &[&str]) {
    let migrate = [&["migrate", "--json"], arguments].concat();
    let output = from.ums(&migrate).expect("`ums migrate` runs");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let said = format!("{object} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(exit::REFUSED), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    let steps = object["steps"].as_array().into_iter().flatten();
    let reached = steps.filter_map(|step| step["step"].as_u64()).max();
    assert!(reached <= Some(LAST_HARMLESS_STEP.into()), "{said}");
    assert!(object["freeze_ms"].is_null(), "{said}");
    if !object["outcome"].is_null() {
        assert_eq!(object["outcome"], "refused", "{said}");
    }

    let plan = [&["plan"], arguments].concat();
    let output = from.ums(&plan).expect("`ums plan` runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(output.status.code(), Some(exit::REFUSED), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in the plan: {said}");
    }
}

/// The hog must be refused its move for a reason with these words, and notice nothing of it.
fn hog_is_refused(testbed: &Testbed, arguments: &[&str], words: &[&str]) {
    ask_hog(testbed, &testbed.a, Request::Reset).expect("the hog answers");
    let arguments = [&["hog"], arguments].concat();
    is_refused(&testbed.a, &arguments, words);
    let status = ask_hog(testbed, &testbed.a, Request::Verify).expect("the hog answers");
    assert_eq!(status.intact, Some(true));
    assert!(status.largest_gap_ms < NO_FREEZE_MS, "{status:?}");
}

#[test]
fn a_second_migration_of_the_same_service() {
    let test = "a_second_migration_of_the_same_service";
    let Some(testbed) = systems_with_hog(test, SLOW_MBIT, LARGE_MIB) else {
        return;
    };
    let first = Moving::start(&testbed.a, &testbed.b, "hog");
    first.wait_for_step(&testbed.a, 7);
    let second = ["migrate", "hog", "--to", "b", "--json"];
    let output = testbed.a.ums(&second).expect("`ums migrate` runs");
    assert_eq!(output.status.code(), Some(exit::REFUSED));
    let problem: Value = serde_json::from_slice(&output.stdout).expect("a problem");
    assert_eq!(problem["status"], 409, "{problem}");
    assert!(problem.to_string().contains(first.id()), "{problem}");
    // Nor may it be removed.
    let removed = testbed.a.ums(&["rm", "hog"]).expect("`ums rm` runs");
    assert_eq!(removed.status.code(), Some(exit::REFUSED));
    let ended = first.end();
    assert_eq!(ended.report.outcome, Outcome::Completed, "{ended:?}");
    hog_is_only_at(&testbed, &testbed.b);
    remove(testbed);
}

#[test]
fn a_service_or_a_peer_that_is_not_known() {
    let test = "a_service_or_a_peer_that_is_not_known";
    let Some(testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    let nobody = ["nobody", "--to", "b"];
    is_refused(&testbed.a, &nobody, &["nobody", "ums list"]);
    hog_is_refused(&testbed, &["--to", "c"], &["`c`", "ums peer add c"]);
    for bad in [["Bad Name", "--to", "b"], ["hog", "--to", "../b"]] {
        let arguments = [&["migrate"], &bad[..]].concat();
        let output = testbed.a.ums(&arguments).expect("`ums migrate` runs");
        assert_eq!(output.status.code(), Some(exit::USAGE), "{output:?}");
    }
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn a_peer_that_does_not_allow_it() {
    let Some(testbed) = systems_with_hog("a_peer_that_does_not_allow_it", RATE_MBIT, 1) else {
        return;
    };
    let allow = |system: &System, peer: &System, what: &str| {
        let address = format!("{}:{PEER_PORT}", peer.ip());
        let add = ["peer", "add", peer.name(), "--address", &address, "--allow"];
        system
            .ums_ok(&[&add[..], &[what]].concat())
            .expect("a peer");
    };
    let learnt = |allowed: bool| {
        let plan = || testbed.a.ums(&["plan", "hog", "--to", "b"]).ok();
        wait_for("the change to be learnt", PATIENCE, || {
            (plan()?.status.success() == allowed).then_some(())
        })
        .expect("a Coordinator takes up its peers")
    };
    // The destination does not let the source send.
    allow(&testbed.b, &testbed.a, "receive");
    learnt(false);
    hog_is_refused(
        &testbed,
        &["--to", "b"],
        &["not allowed", "`a`", "`b`", "send"],
    );
    allow(&testbed.b, &testbed.a, "send,receive");
    learnt(true);
    // The source does not let the destination receive.
    allow(&testbed.a, &testbed.b, "send");
    learnt(false);
    hog_is_refused(&testbed, &["--to", "b"], &["not allowed", "`b`", "receive"]);
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn a_peer_with_a_certificate_of_another_authority() {
    let test = "a_peer_with_a_certificate_of_another_authority";
    let Some(mut testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    let other = testbed.directory().join("other-ca").display().to_string();
    let (out, ip) = (
        testbed.b.state_dir().join("pki"),
        testbed.b.ip().to_string(),
    );
    std::fs::remove_dir_all(&out).expect("the old certificate goes");
    let out = out.display().to_string();
    let issue = [
        "ca", "issue", "b", "--dir", &other, "--ip", &ip, "--out", &out,
    ];
    testbed.b.kill_coordinator().expect("it was running");
    testbed
        .b
        .ums_ok(&["ca", "init", "--dir", &other])
        .expect("another CA");
    testbed.b.ums_ok(&issue).expect("a certificate");
    testbed.b.start_coordinator().expect("it answers again");
    hog_is_refused(
        &testbed,
        &["--to", "b"],
        &["`b` is not trusted", "certificate"],
    );
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn a_peer_that_does_not_answer() {
    let test = "a_peer_that_does_not_answer";
    let Some(mut testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    testbed.b.kill_coordinator().expect("it was running");
    hog_is_refused(
        &testbed,
        &["--to", "b"],
        &["`b` does not answer", "ums serve"],
    );
    hog_stayed(&testbed);
    remove(testbed);
}

#[test]
fn a_name_and_a_port_that_are_taken() {
    let test = "a_name_and_a_port_that_are_taken";
    let Some(testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    start_hog(&testbed, &testbed.b, "hog", 1).expect("another hog runs there");
    let (name, port) = ("service named `hog`", format!("port {HOG_PORT}"));
    let words = [name, &port, "ums rm"];
    hog_is_refused(&testbed, &["--to", "b"], &words);
    assert_eq!(instances(&testbed, "/bin/ums-hog"), 2, "both run on");
    ask_hog(&testbed, &testbed.b, Request::Status).expect("the other one answers");
    testbed.b.ums_ok(&["rm", "hog"]).expect("it is removed");
    hog_stayed(&testbed);

    // A port may be anybody's.
    let address = SocketAddr::from((testbed.b.ip(), HOG_PORT));
    let inside = testbed.b.namespace();
    let listener = inside.in_network(|| Ok(TcpListener::bind(address)?));
    let listener = listener.expect("a program of somebody else");
    hog_is_refused(&testbed, &["--to", "b"], &[&port, "end what holds it"]);
    hog_stayed(&testbed);
    drop(listener);
    remove(testbed);
}

#[test]
fn a_disk_that_has_no_room_for_the_image() {
    let test = "a_disk_that_has_no_room_for_the_image";
    let Some(mut testbed) = systems_with_hog(test, RATE_MBIT, 1) else {
        return;
    };
    // All that b keeps goes to a small disk: the files would fit, the image does not.
    testbed.b.kill_coordinator().expect("it was running");
    strike(agent(&testbed.b));
    let state = testbed.b.state_dir().display().to_string();
    let move_there = format!(
        "cp -a {state} {state}.old && mount -t tmpfs -o size=70m tmpfs {state} && \
         cp -a {state}.old/. {state}/"
    );
    run(testbed.b.exec("sh").args(["-c", &move_there])).expect("a small disk");
    testbed.b.start_coordinator().expect("it answers again");
    let words = ["MiB of disk free", "MiB of image", "free space there"];
    hog_is_refused(&testbed, &["--to", "b"], &words);
    hog_stayed(&testbed);
    let remount = ["-o", "remount,size=400m", &state];
    run(testbed.b.exec("mount").args(remount)).expect("a larger disk");
    let report = testbed.migrate(&testbed.a, &testbed.b, "hog", &[]);
    let report = report.expect("a report");
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    hog_is_only_at(&testbed, &testbed.b);
    remove(testbed);
}

#[test]
fn a_downtime_that_cannot_be_met() {
    let Some(testbed) = systems_with_hog("a_downtime_that_cannot_be_met", RATE_MBIT, 64) else {
        return;
    };
    let arguments = ["--to", "b", "--max-downtime", "50ms"];
    hog_is_refused(&testbed, &arguments, &["50 ms", "downtime"]);
    hog_stayed(&testbed);
    remove(testbed);
}

/// Name, what a Perl program does to have it (by numbers of x86-64's system calls), and what it is called
/// when it is refused.
const OBSTACLES: [(&str, &str, &str); 9] = [
    (
        "uring",
        "my $p = qq(\\0) x 120; my $fd = syscall(425, 8, $p);",
        "io_uring",
    ),
    (
        "landlock",
        "my $p = pack(q(Q), 1); my $fd = syscall(444, $p, 8, 0);",
        "landlock",
    ),
    (
        "mptcp",
        "my $socket; my $fd = socket($socket, 2, 1, 262) ? fileno($socket) : undef;",
        "MPTCP socket",
    ),
    (
        "mqueue",
        "my $name = qq(queue\\0); my $fd = syscall(240, $name, 66, 384, 0);",
        "POSIX message queue",
    ),
    ("secret", "my $fd = syscall(447, 0);", "secret memory"),
    (
        "packets",
        "my $ends = pack('ii', 0, 0); my $fd = syscall(293, $ends, 040000);",
        "packet mode",
    ),
    (
        "procdir",
        "opendir(my $directory, '/proc/self') or die; my $fd = 0;",
        "directory of a process below /proc",
    ),
    (
        "limit",
        "my $limit = pack('QQ', 4, 4096); my $fd = syscall(160, 7, $limit);",
        "RLIMIT_NOFILE",
    ),
    (
        "netlink",
        "socket(my $socket, 16, 3, 0) or die; my $ask = pack('LSSLLCx3', 20, 18, 0x301, 1, 0, 0); \
         my $fd = defined(send($socket, $ask, 0)) ? 0 : -1;",
        "netlink socket with messages",
    ),
];

#[test]
fn a_service_that_holds_what_cannot_be_carried() {
    let test = "a_service_that_holds_what_cannot_be_carried";
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    let root = testbed.directory().join("rootfs-perl");
    let perl = rootfs::program("perl").expect("perl is installed");
    rootfs::minimal(&root, &[&perl]).expect("a root filesystem");
    let root = root.display().to_string();
    for (name, make, word) in OBSTACLES {
        let script = format!(
            "$| = 1; {make} open(my $told, '>', '/told') or die; \
             print $told defined($fd) && $fd >= 0 ? 'made' : qq(failed $!); close $told; \
             sleep 1000;"
        );
        let run = [
            "run",
            name,
            "--rootfs",
            &root,
            "--",
            "/bin/perl",
            "-e",
            &script,
        ];
        testbed.a.ums_ok(&run).expect("it runs");
        let told = testbed
            .a
            .state_dir()
            .join("services")
            .join(name)
            .join("upper/told");
        let told = wait_for("its word", PATIENCE, || {
            let text = std::fs::read_to_string(&told).ok()?;
            (!text.is_empty()).then_some(text)
        });
        assert_eq!(told.expect("it says how it went"), "made", "{name}");
        is_refused(&testbed.a, &[name, "--to", "b"], &[word]);
        is_only_at(&testbed, &testbed.a, name, "/bin/perl");
        assert_eq!(remains(&testbed.b, name), Vec::<String>::new());
        no_frontman(&testbed.a);
        testbed.a.ums_ok(&["rm", name]).expect("it is removed");
    }
    remove(testbed);
}

/// Where CRIU could not read its limits, it is refused before the freeze instead of being abandoned in it.
#[test]
fn a_service_of_another_user_needs_a_capability_of_the_agent() {
    let test = "a_service_of_another_user_needs_a_capability_of_the_agent";
    let Some(testbed) = systems(test, RATE_MBIT) else {
        return;
    };
    let root = testbed.directory().join("rootfs-sh");
    rootfs::minimal(&root, &[&rootfs::program("sh").expect("a shell")]).expect("a root filesystem");
    let root = root.display().to_string();
    let options = ["--rootfs", &root, "--user", "33:34", "--"];
    let waiting = ["/bin/sh", "-c", "while :; do read -r _ </dev/zero; done"];
    let run = [&["run", "waiting"], &options[..], &waiting].concat();
    testbed.a.ums_ok(&run).expect("it runs");
    if may_ask_for_limits().expect("/proc") {
        let report = testbed.migrate(&testbed.a, &testbed.b, "waiting", &[]);
        let report = report.expect("a report");
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        is_only_at(&testbed, &testbed.b, "waiting", "/bin/sh");
    } else {
        let words = ["user 33, group 34", "CAP_SYS_RESOURCE", "root inside"];
        is_refused(&testbed.a, &["waiting", "--to", "b"], &words);
        is_only_at(&testbed, &testbed.a, "waiting", "/bin/sh");
        assert_eq!(remains(&testbed.b, "waiting"), Vec::<String>::new());
        testbed.a.ums_ok(&["rm", "waiting"]).expect("it is removed");
    }
    remove(testbed);
}
