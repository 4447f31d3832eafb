//! Services that are started from container images, and move with what the images say of them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{LINK_MBIT, Moving, exit, process, remove, services, systems};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ums_core::report::Outcome;
use ums_testbed::hog::Request;
use ums_testbed::rootfs;
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::skipped;
use ums_testbed::workload::{ask_hog, root_of};

/// Two layers: the hog's root filesystem with something too much, and what removes that and names a user. They are
/// packed by GNU tar and put into a layout by skopeo: by none of our programs.
fn made(testbed: &Testbed) -> PathBuf {
    let root = PathBuf::from(
        root_of(testbed, "hog", testbed.tools().own("ums-hog").unwrap())
            .expect("a root filesystem"),
    );
    let dir = testbed.directory().join("image");
    let upper = dir.join("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::create_dir_all(root.join("junk")).unwrap();
    fs::write(root.join("junk/file"), "too much").unwrap();
    fs::write(upper.join(".wh.junk"), "").unwrap();
    fs::write(
        upper.join("etc/passwd"),
        "root:x:0:0::/:/bin/false\nhog:x:1234:1235::/data:/bin/false\n",
    )
    .unwrap();
    fs::write(
        upper.join("etc/group"),
        "root:x:0:\nhog:x:1235:\nothers:x:1236:root,hog\n",
    )
    .unwrap();
    std::os::unix::fs::chown(root.join("data"), Some(1234), Some(1235)).unwrap();
    fs::write(root.join("data/file"), "of the image").unwrap();
    let layers = [(&root, "lower.tar"), (&upper, "upper.tar")];
    let digests = layers.map(|(from, name)| packed(from, &dir.join(name)));
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {
            "Entrypoint": ["/bin/ums-hog"], "Cmd": ["--mib", "1"], "User": "hog", "WorkingDir": "/data",
            "Env": ["OF=image", "BOTH=image"], "Labels": {"of": "image"}, "ExposedPorts": {"7000/tcp": {}},
            "Volumes": {"/data": {}}, "StopSignal": "SIGINT", "Healthcheck": {"Test": ["CMD", "/bin/true"]},
        },
        "rootfs": {"type": "layers", "diff_ids": digests},
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["hog:v1"], "Layers": layers.map(|(_, name)| name) }]);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let files = ["config.json", "manifest.json", "lower.tar", "upper.tar"];
    run(
        "tar",
        &[
            "-c",
            "-f",
            &shown(&dir.join("saved.tar")),
            "-C",
            &shown(&dir),
            files[0],
            files[1],
            files[2],
            files[3],
        ],
    );
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn packed(from: &Path, to: &Path) -> String {
    run("tar", &["-c", "-f", &shown(to), "-C", &shown(from), "."]);
    let digest = Sha256::digest(fs::read(to).unwrap());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("it starts");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output.stderr)
    );
}

/// What the kernel tells of the hog.
fn told(system: &System) -> Vec<String> {
    let pid = process(system, &["/bin/ums-hog"]);
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let lines = status.lines();
    let ids = lines.filter(|line| {
        ["Uid:", "Gid:", "Groups:"]
            .iter()
            .any(|it| line.starts_with(it))
    });
    let mut told: Vec<String> = ids.map(|line| line.trim().to_owned()).collect();
    let mut environment: Vec<String> = fs::read_to_string(proc.join("environ"))
        .unwrap()
        .split('\0')
        .map(str::to_owned)
        .collect();
    environment.retain(|it| it.starts_with("OF=") || it.starts_with("BOTH="));
    told.extend(environment);
    told.push(format!(
        "cwd {}",
        fs::read_link(proc.join("cwd")).unwrap().display()
    ));
    told.push(format!("junk {}", proc.join("root/junk").exists()));
    let volume = fs::metadata(proc.join("root/data")).unwrap();
    told.push(format!(
        "data of {}",
        std::os::unix::fs::MetadataExt::uid(&volume)
    ));
    told.push(fs::read_to_string(proc.join("root/data/file")).unwrap());
    told.push(format!("quota {}", quota(system)));
    told
}

fn quota(system: &System) -> String {
    let root = system.outside(Path::new("/sys/fs/cgroup"));
    let group = format!("ums/{}/hog", system.name());
    let v1 = fs::read_to_string(root.join("cpu").join(&group).join("cpu.cfs_quota_us"));
    let v2 = || fs::read_to_string(root.join(&group).join("cpu.max"));
    let text = v1.or_else(|_| v2()).expect("a limit of processors");
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

const TOLD: [&str; 10] = [
    "Uid:\t1234\t1234\t1234\t1234",
    "Gid:\t1235\t1235\t1235\t1235",
    "Groups:\t1236",
    "OF=image",
    "BOTH=flag",
    "cwd /data",
    "junk false",
    "data of 1234",
    "of the image",
    "quota 75000",
];

#[test]
fn a_service_from_an_image_is_what_the_image_says_and_moves() {
    let test = "a_service_from_an_image_is_what_the_image_says_and_moves";
    if rootfs::program("skopeo").is_err() {
        return skipped(test, "`skopeo` is not installed: run `cargo xtask setup`");
    }
    let Some(testbed) = systems(test, LINK_MBIT) else {
        return;
    };
    let dir = made(&testbed);
    let archive = format!("docker-archive:{}:hog:v1", shown(&dir.join("saved.tar")));
    let layout = format!("oci:{}:v1", shown(&dir.join("layout")));
    run(
        "skopeo",
        &["--insecure-policy", "copy", "--quiet", &archive, &layout],
    );
    let options = [
        "run",
        "hog",
        "-d",
        "-v",
        "data:/data",
        "-p",
        "7000",
        "--cpus",
        "0.75",
        "-e",
        "BOTH=flag",
        "-l",
        "own=1",
        "--json",
    ];
    let line = [&options[..], &[&layout]].concat();
    let started = testbed.a.ums_ok(&line).expect("it is started");
    let started: Value = serde_json::from_str(&started).expect("one object");
    let notes = started["notes"].to_string();
    assert!(notes.contains("SIGINT"), "{notes}");
    assert!(
        !notes.contains("exposes") && !notes.contains("VOLUME"),
        "{notes}"
    );
    assert_eq!(told(&testbed.a), TOLD);
    testbed.a.ums_ok(&["rm", "hog"]).expect("it is removed");

    // As root, so that it can be moved where there is no CAP_SYS_RESOURCE; with root's groups.
    let line = [&options[..], &["-u", "root", &layout]].concat();
    testbed.a.ums_ok(&line).expect("it is started");
    let mut wanted = TOLD.map(str::to_owned);
    wanted[0] = "Uid:\t0\t0\t0\t0".to_owned();
    wanted[1] = "Gid:\t0\t0\t0\t0".to_owned();
    assert_eq!(told(&testbed.a), wanted);
    let status = ask_hog(&testbed, &testbed.a, Request::Status).unwrap();
    assert_eq!(status.mib, 1);

    let ended = Moving::start(&testbed.a, &testbed.b, "hog").end();
    assert_eq!(ended.report.outcome, Outcome::Completed, "{ended:?}");
    assert_eq!(told(&testbed.b), wanted);
    let status = ask_hog(&testbed, &testbed.b, Request::Verify).unwrap();
    assert_eq!(status.intact, Some(true));
    let there = services(&testbed.b).expect("the agent answers");
    let creation = &there[0]["specification"]["creation"];
    assert_eq!(creation["labels"], json!({"of": "image", "own": "1"}));
    assert_eq!(
        (&creation["user"], &creation["stop_signal"]),
        (&json!("root"), &json!("SIGINT"))
    );
    testbed.b.ums_ok(&["rm", "hog"]).expect("it is removed");

    // The same layers again, from the archive this time, are the same image: nothing is unpacked twice.
    let images = testbed.a.outside(&testbed.a.state_dir()).join("images");
    let count = || fs::read_dir(&images).unwrap().count();
    let before = count();
    let line = ["run", "hog", "--json", &archive, "--mib", "2"];
    let started = testbed.a.ums_ok(&line).expect("it is started");
    // A layout has none: its format knows no health checks.
    assert!(started.contains("health"), "{started}");
    assert_eq!(count(), before);
    assert!(process(&testbed.a, &["/bin/ums-hog", "--mib", "2"]) > 0);
    testbed.a.ums_ok(&["rm", "hog"]).expect("it is removed");
    remove(testbed);
}

#[test]
fn images_that_can_not_be_had_are_refused_and_leave_nothing() {
    let test = "images_that_can_not_be_had_are_refused_and_leave_nothing";
    let Some(testbed) = systems(test, LINK_MBIT) else {
        return;
    };
    let dir = made(&testbed);
    let archive = dir.join("saved.tar");
    let damaged = dir.join("damaged.tar");
    let mut bytes = fs::read(&archive).unwrap();
    // In the middle of the lower layer.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let reference = |path: &Path| format!("docker-archive:{}", shown(path));
    let nobody = reference(&archive);
    let cases: [(&[&str], i32, &str); 6] = [
        (&[&reference(&damaged)], exit::REFUSED, "digest"),
        (
            &[&reference(&dir.join("none.tar"))],
            exit::REFUSED,
            "none.tar",
        ),
        (
            &[&format!("oci:{}", shown(&dir))],
            exit::REFUSED,
            "oci-layout",
        ),
        (
            &["-u", "nobody", &nobody],
            exit::REFUSED,
            "no user `nobody`",
        ),
        (
            &["--restart", "always", &nobody],
            exit::USAGE,
            "starts no service again",
        ),
        (
            &["-v", "/tmp:/tmp", &nobody],
            exit::USAGE,
            "directories of this host",
        ),
    ];
    for (arguments, code, word) in cases {
        let output = testbed
            .a
            .ums(&[&["run", "bad"], arguments].concat())
            .expect("`ums` runs");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
    assert!(common::remains(&testbed.a, "bad").is_empty());
    let images = testbed.a.outside(&testbed.a.state_dir()).join("images");
    let left = fs::read_dir(images).unwrap().flatten();
    let left: Vec<_> = left
        .filter(|it| it.file_name().to_string_lossy().starts_with(".unfinished"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    remove(testbed);
}
