//! The `ums` program from outside: what it prints and how it exits, against a Coordinator that
//! answers by script.

mod coordinator;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use coordinator::{Fake, Script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use ums_core::report::Outcome;

/// `ums` with nothing of this machine's settings.
fn ums(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ums"));
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    told(command.output().expect("ums starts"))
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().expect("an exit code"),
        text(output.stdout),
        text(output.stderr),
    )
}

/// `ums migrate redis --to b …` against a script.
fn migrate(script: Script, further: &[&str]) -> (i32, String, String) {
    let fake = Fake::start(script);
    let mut command = ums(&["migrate", "redis", "--to", "b"]);
    run(command.arg("--run-dir").arg(fake.run_dir()).args(further))
}

#[test]
fn a_completed_migration_prints_one_object_and_exits_with_0() {
    let (code, out, err) = migrate(Script::ends(Outcome::Completed), &["--json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let report: Value = serde_json::from_str(&out).expect("one JSON object");
    let mut fields: Vec<&str> = report
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    fields.sort_unstable();
    let wanted = [
        "approach",
        "bytes",
        "destination",
        "downtime_ms",
        "endpoint",
        "error",
        "freeze_ms",
        "migration_id",
        "outcome",
        "rounds",
        "service",
        "source",
        "steps",
        "technique",
        "total_ms",
    ];
    assert_eq!(fields, wanted);
    assert_eq!(report["outcome"], "completed");
    assert_eq!(report["bytes"]["memory"], 4096);
}

#[test]
fn progress_is_plain_lines_where_there_is_no_terminal() {
    let (code, out, err) = migrate(Script::ends(Outcome::Completed), &[]);
    assert_eq!(code, 0);
    assert!(out.starts_with("redis: a → b  completed\n"), "{out}");
    assert!(
        err.contains("step 9/15 transfer: streaming memory"),
        "{err}"
    );
    assert!(!err.contains('\x1b') && !out.contains('\x1b'), "{err}{out}");
}

#[test]
fn each_end_has_its_exit_code() {
    assert_eq!(migrate(Script::ends(Outcome::Abandoned), &["--json"]).0, 4);
    assert_eq!(migrate(Script::ends(Outcome::Stuck), &["--json"]).0, 5);
    let (code, out, _) = migrate(Script::Refuses, &[]);
    assert_eq!(code, 3);
    assert!(
        out.contains("port 6379 is taken") && out.contains("remedy: "),
        "{out}"
    );
}

#[test]
fn an_unknown_service_is_refused_in_either_form() {
    let (code, out, err) = migrate(Script::Unknown, &[]);
    assert_eq!((code, out.as_str()), (3, ""));
    assert_eq!(
        err,
        "ums: no such service: `redis` is not on this system; see `ums list`\n"
    );
    let (code, out, _) = migrate(Script::Unknown, &["--json"]);
    let problem: Value = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!((code, &problem["type"]), (3, &json!("service-unknown")));
}

#[test]
fn a_coordinator_that_is_restarted_is_waited_for() {
    let (code, out, err) = migrate(Script::RestartsOnce, &[]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("completed"), "{out}");
    assert!(
        err.contains("the Coordinator does not answer; waiting for it"),
        "{err}"
    );
}

#[test]
fn an_interrupt_asks_for_the_abort_once() {
    let fake = Fake::start(Script::UntilAborted);
    let mut command = ums(&["migrate", "redis", "--to", "b", "--json"]);
    command.arg("--run-dir").arg(fake.run_dir());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    fake.wait_for_watch();
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("interrupted");
    let (code, out, err) = told(child.wait_with_output().expect("ends"));
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("the abort is accepted"), "{err}");
    assert_eq!(fake.aborts(), 1);
    let report: Value = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!(report["outcome"], "abandoned");
}

#[test]
fn an_absent_coordinator_exits_with_6() {
    let empty = TempDir::new().expect("a directory");
    let (code, _, err) = run(ums(&["list"]).arg("--run-dir").arg(empty.path()));
    assert_eq!(code, 6);
    assert!(err.contains("start it with `ums serve`"), "{err}");
}

#[test]
fn lists_come_in_both_forms() {
    let fake = Fake::start(Script::ends(Outcome::Completed));
    let asked = |arguments: &[&str]| {
        let (code, out, err) = run(ums(arguments).arg("--run-dir").arg(fake.run_dir()));
        assert_eq!(code, 0, "{arguments:?}: {err}");
        out
    };
    assert_eq!(asked(&["list"]), "no services; start one with `ums run`\n");
    assert_eq!(asked(&["list", "--json"]), "[]\n");
    assert!(asked(&["history"]).contains("completed"));
    let history: Value = serde_json::from_str(&asked(&["history", "--json"])).expect("a list");
    assert_eq!(history[0]["outcome"], "completed");
    let status = asked(&["status"]);
    assert!(status.starts_with("system a, ums 9.9.9"));
    assert!(
        status.contains("frontman  redis    leading  6379 → 192.0.2.20:6379  2027-01-15 08:00:00Z"),
        "{status}"
    );
    let status: Value = serde_json::from_str(&asked(&["status", "--json"])).expect("an object");
    assert_eq!(status["attendants"][0]["kind"], "frontman");
    // It has moved away, so only its migration is known here.
    assert!(asked(&["status", "redis"]).contains("15 delete source"));
}

#[test]
fn what_needs_a_person_never_hides() {
    let fake = Fake::start(Script::CutOff);
    for arguments in [
        &["list"][..],
        &["history"],
        &["status"],
        &["status", "redis"],
    ] {
        let (code, out, err) = run(ums(arguments).arg("--run-dir").arg(fake.run_dir()));
        assert_eq!(code, 0, "{arguments:?}: {err}");
        for wanted in [
            "it is gone, and may have executed",
            "`ums resolve 0190f0f0-",
            "docs/runbook.md",
        ] {
            assert!(out.contains(wanted), "{arguments:?}: {out}");
        }
    }
}

#[test]
fn a_decision_is_told_its_risk_and_confirmed() {
    let fake = Fake::start(Script::CutOff);
    let asked = |arguments: &[&str]| run(ums(arguments).arg("--run-dir").arg(fake.run_dir()));
    let (code, out, _) = asked(&["resolve", "redis"]);
    assert_eq!(code, 0);
    for wanted in [
        "known here  committed",
        "61.00 s",
        "--take-back",
        "RISK      two copies execute",
    ] {
        assert!(out.contains(wanted), "`{wanted}` is not in {out}");
    }
    let (code, _, err) = asked(&["resolve", "redis", "--take-back"]);
    assert_eq!(code, 2);
    assert!(err.contains("--accept-risk-for redis"), "{err}");
    let (code, _, err) = asked(&["resolve", "redis", "--run", "--accept-risk-for", "redis"]);
    assert_eq!(code, 3, "{err}");
    assert_eq!(fake.decisions(), []);
    let decide = [
        "resolve",
        "redis",
        "--take-back",
        "--accept-risk-for",
        "redis",
        "--json",
    ];
    let (code, out, err) = asked(&decide);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!(report["outcome"], "abandoned");
    let [decided] = &fake.decisions()[..] else {
        panic!("decided once");
    };
    assert_eq!(decided.confirm, "redis");
}

#[test]
fn nothing_to_decide_is_refused() {
    let fake = Fake::start(Script::ends(Outcome::Completed));
    let asked = |which: &str| {
        run(ums(&["resolve", which])
            .arg("--run-dir")
            .arg(fake.run_dir()))
    };
    let (code, _, err) = asked("0190f0f0-0000-7000-8000-000000000001");
    assert_eq!(
        (code, err.as_str()),
        (3, "ums: there is nothing to decide: it is over\n")
    );
    let (code, _, err) = asked("redis");
    assert_eq!(code, 3);
    assert!(
        err.contains("no migration of `redis` is cut off here"),
        "{err}"
    );
}

#[test]
fn a_bad_configuration_is_named_with_its_place_and_exits_with_2() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("ums.toml");
    std::fs::write(&path, "system = \"a\"\nlisten = 7\n").expect("written");
    let (code, _, err) = run(ums(&["list"]).env("UMS_CONFIG", &path));
    assert_eq!(code, 2);
    assert!(
        err.starts_with(&format!("ums: {}:2:10: ", path.display())),
        "{err}"
    );
    let (code, _, err) = run(ums(&["list"]).env("UMS_LEASE", "1s"));
    assert_eq!(code, 2);
    assert!(
        err.starts_with("ums: environment variable UMS_LEASE: `1s`"),
        "{err}"
    );
    let (code, _, err) = run(&mut ums(&["list", "--lease", "1s"]));
    assert_eq!(code, 2);
    assert!(err.contains("--lease <TIME>"), "{err}");
}

#[test]
fn serve_refuses_a_certificate_of_another_system() {
    let top = TempDir::new().expect("a directory");
    let (ca, pki) = (top.path().join("ca"), top.path().join("state/pki"));
    let path = |path: &std::path::Path| path.display().to_string();
    assert_eq!(run(&mut ums(&["ca", "init", "--dir", &path(&ca)])).0, 0);
    let issue = [
        "ca",
        "issue",
        "b",
        "--dir",
        &path(&ca),
        "--out",
        &path(&pki),
    ];
    assert_eq!(run(&mut ums(&issue)).0, 0);
    let state = path(&top.path().join("state"));
    let (code, _, err) = run(&mut ums(&["serve", "--system", "a", "--state-dir", &state]));
    assert_eq!(code, 2);
    assert!(
        err.contains("is of system `b`, and this system is `a`"),
        "{err}"
    );
}

/// A directory with a certificate, and `ums serve` in it.
fn place_to_serve() -> (TempDir, Vec<String>) {
    let top = TempDir::new().expect("a directory");
    let at = |name: &str| top.path().join(name).display().to_string();
    assert_eq!(run(&mut ums(&["ca", "init", "--dir", &at("ca")])).0, 0);
    let (ca, pki) = (at("ca"), at("state/pki"));
    let issue = ["ca", "issue", "a", "--dir", &ca, "--out", &pki];
    assert_eq!(run(&mut ums(&issue)).0, 0);
    // There is no agent to start in an empty directory.
    std::fs::create_dir(top.path().join("bin")).expect("made");
    let (state, run_dir, bin) = (at("state"), at("run"), at("bin"));
    let serve = [
        "serve",
        "--system",
        "a",
        "--listen",
        "127.0.0.1:0",
        "--state-dir",
        &state,
        "--run-dir",
        &run_dir,
        "--bin-dir",
        &bin,
    ];
    let serve = serve.map(str::to_owned).to_vec();
    (top, serve)
}

#[test]
fn serve_refuses_a_journal_that_it_can_not_use_and_leaves_it_as_it_is() {
    let (top, serve) = place_to_serve();
    let serve: Vec<&str> = serve.iter().map(String::as_str).collect();
    let journal = top.path().join("state/journal.redb");
    // A good one, to be damaged.
    let mut serving = Serving(ums(&serve).spawn().expect("starts"));
    wait_for("the journal", || journal.exists());
    let socket = top.path().join("run/ums.sock");
    wait_for("its answer", || UnixStream::connect(&socket).is_ok());
    serving.signal(Signal::SIGTERM);
    wait_for("its end", || {
        serving.0.try_wait().expect("a child").is_some()
    });
    let good = std::fs::read(&journal).expect("a journal");
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let cases = [
        ("garbage", vec![0xa5; 8192]),
        ("text", b"this is no journal\n".to_vec()),
        ("empty", Vec::new()),
        (
            "cut short",
            damaged(&|bytes| bytes.truncate(bytes.len() / 2)),
        ),
        ("cut to a header", damaged(&|bytes| bytes.truncate(300))),
        ("overwritten", damaged(&|bytes| bytes[64..4096].fill(0xff))),
    ];
    for (what, bytes) in cases {
        std::fs::write(&journal, &bytes).expect("written");
        let (code, _, err) = run(&mut ums(&serve));
        assert_eq!(code, 1, "{what}: {err}");
        for word in [
            "journal.redb can't be used",
            "from a backup",
            "move it aside",
        ] {
            assert!(err.contains(word), "{what}: `{word}` is not in: {err}");
        }
        let after = std::fs::read(&journal).expect("it is still there");
        assert!(after == bytes, "{what}: it was written to");
    }
    // Nothing of the attempts is in the way of the good one.
    std::fs::write(&journal, &good).expect("written");
    let mut serving = Serving(ums(&serve).spawn().expect("starts"));
    wait_for("its answer", || UnixStream::connect(&socket).is_ok());
    serving.signal(Signal::SIGTERM);
    wait_for("its end", || {
        serving.0.try_wait().expect("a child").is_some()
    });
    assert!(serving.0.wait().expect("ended").success());
}

/// A process that ends with the test, whatever becomes of it.
struct Serving(std::process::Child);

impl Serving {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        kill(pid, signal).expect("signalled");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already, as it should.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn serve_answers_learns_a_peer_and_ends_when_asked() {
    let top = TempDir::new().expect("a directory");
    let at = |name: &str| top.path().join(name).display().to_string();
    assert_eq!(run(&mut ums(&["ca", "init", "--dir", &at("ca")])).0, 0);
    let issue = [
        "ca",
        "issue",
        "a",
        "--dir",
        &at("ca"),
        "--out",
        &at("state/pki"),
    ];
    assert_eq!(run(&mut ums(&issue)).0, 0);
    // There is no agent to start in an empty directory: what needs none is tested here.
    std::fs::create_dir(top.path().join("bin")).expect("made");
    let config = format!(
        "system = \"a\"\nstate_dir = \"{}\"\nrun_dir = \"{}\"\nbin_dir = \"{}\"\n\
         listen = \"127.0.0.1:0\"\n",
        at("state"),
        at("run"),
        at("bin")
    );
    std::fs::write(top.path().join("ums.toml"), &config).expect("written");
    let log_says = |text: &str| {
        let log = std::fs::read_to_string(top.path().join("log")).unwrap_or_default();
        log.contains(text)
    };
    let with = |arguments: &[&str]| {
        let mut command = ums(arguments);
        command.env("UMS_CONFIG", top.path().join("ums.toml"));
        command
    };
    let log = std::fs::File::create(top.path().join("log")).expect("made");
    let mut serving = Serving(with(&["serve"]).stderr(log).spawn().expect("starts"));
    wait_for("the first answer", || run(&mut with(&["history"])).0 == 0);
    assert_eq!(run(&mut with(&["peer", "list", "--json"])).1, "[]\n");

    // Somebody is in the middle of a request while settings change, and is not cut off.
    let mut asking = UnixStream::connect(top.path().join("run/ums.sock")).expect("a connection");
    asking
        .write_all(b"GET /v1/hello HTTP/1.1\r\nhost: a\r\n")
        .expect("half a request");

    // Nobody is there: it is known, and can't be used.
    let add = ["peer", "add", "b", "--address", "127.0.0.1:1"];
    assert_eq!(run(&mut with(&add)).0, 0);
    wait_for("the peer", || {
        let (code, out, _) = run(&mut with(&["peer", "list", "--json"]));
        code == 0 && out.contains("\"b\"") && !out.contains("does not run")
    });
    assert_eq!(run(&mut with(&["history"])).1, "no migrations yet\n");
    asking.write_all(b"\r\n").expect("the other half");
    let mut status = [0; 12];
    asking.read_exact(&mut status).expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 200");

    // So are limits in the file; what is only taken up at a start is said in the log.
    let limited = format!("{config}listen_twice = 1\n");
    std::fs::write(top.path().join("ums.toml"), limited).expect("written");
    wait_for("a complaint", || {
        log_says("what was in force before stays so")
    });
    let limited = format!("{config}data_port = 7444\n[limits]\noutgoing = 7\n");
    std::fs::write(top.path().join("ums.toml"), limited).expect("written");
    wait_for("the limits", || log_says("limits\":\"(7, 8)"));
    wait_for("a hint", || log_says("are started again"));

    serving.signal(Signal::SIGTERM);
    wait_for("its end", || {
        serving.0.try_wait().expect("a child").is_some()
    });
    let said = std::fs::read_to_string(top.path().join("log")).expect("a log");
    assert!(serving.0.wait().expect("ended").success(), "{said}");
    assert!(
        said.lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{said}"
    );
}

#[test]
fn peers_are_kept_without_a_coordinator() {
    let top = TempDir::new().expect("a directory");
    let asked = |arguments: &[&str]| {
        let mut command = ums(arguments);
        command
            .arg("--state-dir")
            .arg(top.path())
            .arg("--run-dir")
            .arg(top.path());
        run(&mut command)
    };
    assert_eq!(
        asked(&["peer", "add", "b", "--address", "10.77.0.2:7443"]).0,
        0
    );
    let (code, out, _) = asked(&["peer", "list", "--json"]);
    let list: Value = serde_json::from_str(&out).expect("a list");
    assert_eq!((code, &list[0]["allow"]), (0, &json!(["send", "receive"])));
    assert_eq!(asked(&["peer", "remove", "b"]).0, 0);
    assert_eq!(asked(&["peer", "remove", "b"]).0, 3);
}

#[test]
fn doctor_tells_what_is_missing_and_exits_with_7() {
    let top = TempDir::new().expect("a directory");
    let mut command = ums(&["doctor", "--json", "--system", "a"]);
    for flag in ["--state-dir", "--run-dir", "--bundle"] {
        command.arg(flag).arg(top.path());
    }
    let (code, out, _) = run(&mut command);
    assert_eq!(code, 7);
    let findings: Value = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!(findings["fit"], false);
    let of = |name: &str| {
        let checks = findings["checks"].as_array().expect("a list");
        checks
            .iter()
            .find(|check| check["name"] == name)
            .expect("a line")
            .clone()
    };
    for name in ["bundle", "certificate"] {
        assert_eq!(of(name)["verdict"], "fail", "{name}");
        assert!(of(name)["remedy"].is_string(), "{name}");
    }
}

/// The longest that a test waits for what it has caused.
const PATIENCE: Duration = Duration::from_secs(20);
