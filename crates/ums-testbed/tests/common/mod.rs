//! What the tests of faults and refusals share: looking into a system from outside, striking at a
//! chosen moment, and the three things that must hold afterwards: one instance, in its right place,
//! and nothing left where it is not.

#![allow(dead_code, reason = "each test program uses the part that it needs")]

pub(crate) mod proxy;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use ums_core::report::{MigrationReport, Outcome};
use ums_testbed::client::ledger::Recorded;
use ums_testbed::hog::Request;
use ums_testbed::ledger::Trail;
use ums_testbed::system::System;
use ums_testbed::testbed::{Settings, Testbed};
use ums_testbed::tools::{Tools, skipped, text, wait_for};
use ums_testbed::workload::{ask_hog, ledger_file, start_hog};

/// Longest wait for anything that a fault leads to: above all limits of the programs themselves.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The link that is usual, in Mbit/s.
pub(crate) const LINK_MBIT: u32 = 1000;

/// A link slow enough that the copying of some MiB can be met with in its middle, in Mbit/s.
pub(crate) const SLOW_MBIT: u32 = 200;

/// Memory that takes seconds over that link, MiB.
pub(crate) const LARGE_MIB: u64 = 64;

/// Documented exit codes of `ums`.
pub(crate) mod exit {
    pub(crate) const DONE: i32 = 0;
    pub(crate) const FAILED: i32 = 1;
    pub(crate) const USAGE: i32 = 2;
    pub(crate) const REFUSED: i32 = 3;
    pub(crate) const ABANDONED: i32 = 4;
    pub(crate) const STUCK: i32 = 5;
}

/// Two systems with Coordinators, or `None` after saying that the test is left out.
pub(crate) fn systems(test: &str, rate_mbit: u32) -> Option<Testbed> {
    systems_set(test, rate_mbit, "")
}

/// The same, with lines for both configurations.
pub(crate) fn systems_set(test: &str, rate_mbit: u32, settings: &str) -> Option<Testbed> {
    let tools = Tools::find().expect("this program's own path is known");
    if let Some(lacking) = tools.lacking() {
        skipped(test, &lacking);
        return None;
    }
    let link = Settings {
        rate_mbit: Some(rate_mbit),
    };
    let mut testbed = Testbed::create(&tools, &link).expect("a testbed");
    testbed.a.set(settings);
    testbed.b.set(settings);
    testbed
        .start_coordinators()
        .expect("both Coordinators answer");
    Some(testbed)
}

/// Two systems, and on the first of them a hog that verifies its memory.
pub(crate) fn systems_with_hog(test: &str, rate_mbit: u32, mib: u64) -> Option<Testbed> {
    let testbed = systems(test, rate_mbit)?;
    start_hog(&testbed, &testbed.a, "hog", mib).expect("the hog runs");
    Some(testbed)
}

/// What a program of the system answers to a GET at its socket; `None` when it does not.
pub(crate) fn get(system: &System, socket: &str, path: &str) -> Option<Value> {
    ask(system, socket, &format!("GET {path}"), "")
}

/// The same for a POST of something.
pub(crate) fn post(system: &System, socket: &str, path: &str, body: &Value) -> Option<Value> {
    ask(system, socket, &format!("POST {path}"), &body.to_string())
}

fn ask(system: &System, socket: &str, what: &str, body: &str) -> Option<Value> {
    let socket = system.outside(&system.run_dir().join(socket));
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let length = body.len();
    let request = format!(
        "{what} HTTP/1.1\r\nhost: ums\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 2").then_some(())?;
    serde_json::from_str(body).ok()
}

/// The services that a system's agent has.
pub(crate) fn services(system: &System) -> Option<Vec<Value>> {
    Some(
        get(system, "agent.sock", "/v1/services")?
            .as_array()?
            .clone(),
    )
}

/// The newest migration that a system knows of.
pub(crate) fn newest(system: &System) -> Option<Value> {
    let all = get(system, "ums.sock", "/v1/migrations?limit=1")?;
    all.as_array()?.first().cloned()
}

/// A migration that was begun and is being watched.
pub(crate) struct Moving {
    child: Child,
    id: String,
}

/// How a watched migration ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) report: MigrationReport,
}

impl Ended {
    /// Its error, which an abandoned migration must have.
    pub(crate) fn error(&self) -> &str {
        self.report.error.as_deref().unwrap_or_default()
    }

    /// It must have been abandoned, for a reason that holds all these words.
    pub(crate) fn must_be_abandoned(&self, words: &[&str]) {
        assert_eq!(self.report.outcome, Outcome::Abandoned, "{self:?}");
        assert_eq!(self.code, Some(exit::ABANDONED), "{self:?}");
        for word in words {
            assert!(self.error().contains(word), "`{word}` is not in: {self:?}");
        }
    }
}

impl Moving {
    /// Starts `ums migrate` and waits until there is a migration. All memory moves in the freeze, so that there is time
    /// to do something in it.
    pub(crate) fn start(from: &System, to: &System, service: &str) -> Self {
        Self::start_by("stop-and-copy", from, to, service)
    }

    /// The same by a technique and with options that follow it.
    pub(crate) fn start_with(options: &[&str], from: &System, to: &System, service: &str) -> Self {
        Self::started(options, from, to, service)
    }

    /// The same by another technique.
    pub(crate) fn start_by(technique: &str, from: &System, to: &System, service: &str) -> Self {
        Self::started(&[technique], from, to, service)
    }

    fn started(technique: &[&str], from: &System, to: &System, service: &str) -> Self {
        let before = newest(from);
        let arguments = [
            "migrate",
            service,
            "--to",
            to.name(),
            "--json",
            "--technique",
        ];
        let mut command = from.ums_command(&[&arguments[..], technique].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("`ums migrate` starts");
        let view = wait_for("the migration's beginning", PATIENCE, || {
            newest(from).filter(|view| Some(id_of(view)) != before.as_ref().map(id_of))
        });
        let id = id_of(&view.expect("a migration")).to_owned();
        Self { child, id }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// What the system says of it now.
    pub(crate) fn view(&self, system: &System) -> Option<Value> {
        get(system, "ums.sock", &format!("/v1/migrations/{}", self.id))
    }

    /// Waits until this step has begun, or the migration is over.
    pub(crate) fn wait_for_step(&self, system: &System, step: u64) {
        self.wait(system, &format!("step {step}"), |view| {
            view["progress"]["step"].as_u64() >= Some(step)
        });
    }

    /// Waits until so many bytes have gone over, in the freeze.
    pub(crate) fn wait_for_memory(&self, system: &System, bytes: u64) {
        self.wait(system, &format!("{bytes} bytes in step 8"), |view| {
            view["progress"]["step"].as_u64() >= Some(8)
                && view["report"]["bytes"]["memory"].as_u64() >= Some(bytes)
        });
    }

    /// Waits until this holds of what the system says, or the migration is over.
    pub(crate) fn wait(&self, system: &System, what: &str, until: impl Fn(&Value) -> bool) {
        let reached = wait_for(what, PATIENCE, || {
            self.view(system)
                .filter(|view| until(view) || view["report"]["outcome"] != "running")
        });
        reached.unwrap_or_else(|error| panic!("{error}; {}", system.said()));
    }

    /// Waits for the end.
    pub(crate) fn end(self) -> Ended {
        let output = self.child.wait_with_output().expect("`ums migrate` ends");
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            let said = String::from_utf8_lossy(&output.stderr);
            let object = String::from_utf8_lossy(&output.stdout);
            panic!("no report ({error}): {object}{said}")
        });
        Ended {
            code: output.status.code(),
            report,
        }
    }
}

fn id_of(view: &Value) -> &str {
    view["report"]["migration_id"].as_str().unwrap_or_default()
}

/// The running processes of a system whose command line holds all these words.
pub(crate) fn processes(system: &System, words: &[&str]) -> Vec<i32> {
    let matches = |pid: &i32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
        // The nsenter by which a program was started bears its words too.
        !line.starts_with("nsenter ") && words.iter().all(|word| line.contains(word))
    };
    let mut found = system.namespace().members();
    found.retain(matches);
    found
}

/// The one process of a system whose command line holds all these words.
pub(crate) fn process(system: &System, words: &[&str]) -> i32 {
    let found = wait_for(&format!("a process {words:?}"), PATIENCE, || {
        processes(system, words).first().copied()
    });
    found.expect("it runs")
}

/// The serving agent.
pub(crate) fn agent(system: &System) -> i32 {
    process(system, &["ums-agent", "serve"])
}

/// The Coordinator.
pub(crate) fn coordinator(system: &System) -> i32 {
    process(system, &["/ums serve"])
}

/// Kills without a chance to put anything in order.
pub(crate) fn strike(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there to be killed");
}

/// Lets a process stand still until it is killed.
pub(crate) fn stop(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it is there to be stopped");
}

/// Lets the CRIU of a restore stand still until it is killed, with the service's groups: where its keeper puts it
/// right after its start. One that stood still before that would be killed by nobody.
pub(crate) fn stop_criu(system: &System, service: &str) {
    let criu = process(system, &["criu", "swrk"]);
    stop(criu);
    let group = format!("/{service}");
    let placed = || {
        let groups = std::fs::read_to_string(format!("/proc/{criu}/cgroup")).ok()?;
        groups
            .lines()
            .any(|line| line.ends_with(&group))
            .then_some(())
    };
    wait_for("CRIU in the service's groups", PATIENCE, placed).expect("its keeper puts it there");
}

/// The processes of services, on both systems.
pub(crate) fn instances(testbed: &Testbed, program: &str) -> usize {
    let alive = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        !status.contains("State:\tZ")
    };
    let of = |system| {
        processes(system, &[program])
            .into_iter()
            .filter(alive)
            .count()
    };
    of(&testbed.a) + of(&testbed.b)
}

/// The hog runs on `at` and nowhere else, all of its memory right, and answers there; the other
/// system has nothing of it, and no migration is left on either.
pub(crate) fn hog_is_only_at(testbed: &Testbed, at: &System) {
    let first = ask_hog(testbed, at, Request::Verify).expect("the hog answers");
    assert_eq!(first.intact, Some(true), "its memory is as it was written");
    let then = ask_hog(testbed, at, Request::Status).expect("the hog answers again");
    assert!(then.stamps > first.stamps, "it executes");
    is_only_at(testbed, at, "hog", "/bin/ums-hog");
}

/// The service runs on `at` and nowhere else; the other system has nothing of it, and no migration
/// is left on either.
pub(crate) fn is_only_at(testbed: &Testbed, at: &System, service: &str, program: &str) {
    let other = if at.name() == testbed.a.name() {
        &testbed.b
    } else {
        &testbed.a
    };
    let mut seen = Vec::new();
    let settled = wait_for("one instance and nothing else", PATIENCE, || {
        seen = unsettled(testbed, at, service, program);
        seen.extend(remains(other, service));
        seen.is_empty().then_some(())
    });
    settled.unwrap_or_else(|error| {
        panic!(
            "{error}: {seen:#?}\na said:\n{}\nb said:\n{}",
            testbed.a.said(),
            testbed.b.said()
        )
    });
}

/// What is wrong with the place where the service should run.
fn unsettled(testbed: &Testbed, at: &System, service: &str, program: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let instances = instances(testbed, program);
    if instances != 1 {
        wrong.push(format!("{instances} instances run"));
    }
    let view = services(at).and_then(|all| {
        all.into_iter()
            .find(|view| view["specification"]["name"] == service)
    });
    match view {
        Some(view) if view["status"] == "running" && view["migration"].is_null() => {}
        other => wrong.push(format!("{} has {other:?}", at.name())),
    }
    for system in [&testbed.a, &testbed.b] {
        let left = get(system, "agent.sock", "/v1/migrations");
        if left
            .as_ref()
            .and_then(Value::as_array)
            .is_none_or(|all| !all.is_empty())
        {
            wrong.push(format!("migrations at {}: {left:?}", system.name()));
        }
        let criu = processes(system, &["criu", "swrk"]);
        wrong.extend(
            criu.iter()
                .map(|pid| format!("CRIU {pid} on {}", system.name())),
        );
    }
    wrong
}

/// What a system that a service is not on still has of it, and should not.
pub(crate) fn remains(system: &System, service: &str) -> Vec<String> {
    let mut left = Vec::new();
    match services(system) {
        Some(all) => left.extend(
            all.iter()
                .filter(|view| view["specification"]["name"] == service)
                .map(|view| format!("service {view}")),
        ),
        None => left.push("the agent does not answer".to_owned()),
    }
    let keepers = processes(system, &["ums-agent", "keeper", service]);
    left.extend(keepers.iter().map(|pid| format!("keeper {pid}")));
    let guards = processes(system, &["ums-agent", "guard", service]);
    left.extend(guards.iter().map(|pid| format!("guard {pid}")));
    let keeper = system
        .run_dir()
        .join("keepers")
        .join(format!("{service}.sock"));
    for path in [
        system.state_dir().join("services").join(service),
        system.outside(&keeper),
    ] {
        if path.exists() {
            left.push(format!("file {}", path.display()));
        }
    }
    let find = ["/sys/fs/cgroup", "-type", "d", "-name", service];
    left.extend(lines(system.exec("find").args(find)).map(|path| format!("cgroup {path}")));
    let links = ["-brief", "link"];
    // The place on the bridge of a service that has left is its Frontman's.
    let led = !processes(system, &["ums-frontman", "near"]).is_empty();
    left.extend(
        lines(system.exec("ip").args(links))
            .filter(|line| line.starts_with("ums") && !line.starts_with("ums0 "))
            .filter(|line| !led || !["umsv", "umsw"].iter().any(|end| line.starts_with(end)))
            .map(|line| format!("link {line}")),
    );
    let images = std::fs::read_dir(system.state_dir().join("images"));
    left.extend(
        images
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(".unfinished"))
            .map(|name| format!("unfinished image {name}")),
    );
    for pid in processes(system, &["ums-agent", "serve"]) {
        left.extend(memory_files(pid).map(|link| format!("memory of the agent: {link}")));
    }
    left
}

/// Files in memory that a process holds.
fn memory_files(pid: i32) -> impl Iterator<Item = String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let entries = descriptors.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|link| link.starts_with("/memfd:"))
}

fn lines(command: &mut Command) -> impl Iterator<Item = String> + use<> {
    let lines: Vec<String> = text(command)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.into_iter()
}

/// The service was never moved: no Frontman stands at its endpoint.
pub(crate) fn no_frontman(system: &System) {
    let gone = wait_for("the Frontman's end", PATIENCE, || {
        processes(system, &["ums-frontman"])
            .is_empty()
            .then_some(())
    });
    gone.unwrap_or_else(|error| panic!("{error}; {}", system.said()));
}

/// The migration was undone without a trace: the hog is where it was.
pub(crate) fn hog_stayed(testbed: &Testbed) {
    hog_is_only_at(testbed, &testbed.a);
    no_frontman(&testbed.a);
    let rules = lines(
        testbed
            .b
            .exec(testbed.tools().bundled("nft"))
            .args(["list", "tables"]),
    );
    let tables: Vec<String> = rules.filter(|line| line.contains("ums")).collect();
    assert_eq!(tables, Vec::<String>::new(), "rules at the destination");
}

/// Everything goes with the testbed.
pub(crate) fn remove(testbed: Testbed) {
    assert_eq!(testbed.remove().expect("removed"), Vec::<String>::new());
}

/// Every record that the ledger acknowledged is in its file here, and none is there twice.
pub(crate) fn nothing_acknowledged_is_lost(system: &System, recorded: &Recorded) {
    let bytes = std::fs::read(ledger_file(system)).expect("the ledger's file");
    let trail = Trail::read(&bytes).expect("a whole trail");
    let distinct: BTreeSet<_> = trail.records.iter().collect();
    assert_eq!(distinct.len(), trail.records.len(), "records twice");
    let lost = (1..=recorded.acknowledged).filter(|id| !distinct.contains(id));
    assert_eq!(lost.count(), 0, "acknowledged records lost");
    eprintln!("{} records acknowledged, none lost", recorded.acknowledged);
}
