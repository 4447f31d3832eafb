use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use super::descriptor::{character_device, judge, kernel_object};
use super::*;

/// A shell as the first process of a PID namespace of its own, that is gone when this is dropped.
struct Service {
    unshare: Child,
    init: i32,
}

impl Service {
    /// Runs `script`, which has to print `ready` when all is as wanted; it then waits.
    fn start(script: &str, stdin: Stdio) -> Self {
        Self::start_with(&["--pid", "--fork", "--kill-child"], script, stdin)
    }

    fn start_with(options: &[&str], script: &str, stdin: Stdio) -> Self {
        let mut unshare = Command::new("unshare")
            .args(options)
            .args([
                "bash",
                "-c",
                &format!("{script}\necho ready; read -r _ <&8"),
                "bash",
            ])
            .stdin(stdin)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        unshare
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut said)
            .unwrap();
        assert_eq!(&said, b"ready\n");
        let pid = unshare.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let init = children.split_whitespace().next().unwrap().parse().unwrap();
        Self { unshare, init }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.unshare.kill().unwrap();
        self.unshare.wait().unwrap();
    }
}

/// Descriptor 8 is a pipe that never gives anything, so that the shell waits without a child.
const WAITING: &str = "exec 8<> <(:)";

fn details(seen: &Seen) -> Vec<&str> {
    seen.obstacles
        .iter()
        .map(|obstacle| obstacle.detail.as_str())
        .collect()
}

#[test]
fn a_plain_service_can_be_carried() {
    let service = Service::start(&format!("{WAITING}\nsleep 100 &"), Stdio::null());
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("below")).unwrap();
    fs::write(dir.path().join("below/file"), vec![1; 70_000]).unwrap();
    let seen = inspect(service.init, &[dir.path()]).unwrap();
    assert_eq!(seen.obstacles, []);
    assert_eq!(seen.pids[0], service.init);
    assert!(
        seen.pids.len() >= 2,
        "the shell and what it started: {:?}",
        seen.pids
    );
    assert!(seen.threads as usize >= seen.pids.len());
    assert!(
        (100_000..1 << 30).contains(&seen.memory_bytes),
        "{}",
        seen.memory_bytes
    );
    assert_eq!(seen.filesystem_bytes, 70_000);
}

#[test]
fn what_can_not_be_carried_is_named() {
    let (near, far) = UnixStream::pair().unwrap();
    let script = format!("{WAITING}\nexec 5</dev/kmsg");
    let service = Service::start(&script, Stdio::from(std::os::fd::OwnedFd::from(far)));
    let seen = inspect(service.init, &[]).unwrap();
    let kinds: Vec<_> = seen
        .obstacles
        .iter()
        .map(|obstacle| obstacle.kind)
        .collect();
    assert_eq!(
        kinds,
        [ObstacleKind::Device, ObstacleKind::Socket],
        "{:?}",
        details(&seen)
    );
    assert!(seen.obstacles.iter().all(|obstacle| obstacle.pid == 1));
    drop(near);
}

#[test]
fn a_file_from_another_mount_namespace_is_foreign() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("outside")).unwrap();
    let options = ["--pid", "--fork", "--kill-child", "--mount"];
    let service = Service::start_with(&options, WAITING, Stdio::from(file));
    let seen = inspect(service.init, &[]).unwrap();
    // Standard error is foreign too, whatever the test was given.
    let outside = seen
        .obstacles
        .iter()
        .find(|obstacle| obstacle.detail.ends_with("/outside"));
    assert_eq!(outside.unwrap().kind, ObstacleKind::ForeignFile);
}

#[test]
fn namespaces_inside_and_processes_from_outside_are_named() {
    let script = format!("{WAITING}\nunshare --uts sleep 100 &\nsleep 0.1");
    let service = Service::start(&script, Stdio::null());
    let wait = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let seen = loop {
        let seen = inspect(service.init, &[]).unwrap();
        if !seen.obstacles.is_empty() || std::time::Instant::now() > wait {
            break seen;
        }
    };
    assert_eq!(details(&seen), ["uts namespace inside the service's own"]);

    let mut entered = Command::new("nsenter")
        .args([
            "--pid",
            "--target",
            &service.init.to_string(),
            "sleep",
            "100",
        ])
        .spawn()
        .unwrap();
    let found = loop {
        let seen = inspect(service.init, &[]).unwrap();
        let found = details(&seen)
            .iter()
            .any(|detail| detail.contains("from outside"));
        if found || std::time::Instant::now() > wait {
            break found;
        }
    };
    // Its child, which is what entered, dies with the namespace.
    drop(service);
    entered.wait().unwrap();
    assert!(found);
}

#[test]
fn connections_are_counted_in_the_network_namespace() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let own = std::process::id() as i32;
    assert!(socket::established(own).unwrap() >= 2);
    drop(client);
    let options = ["--pid", "--fork", "--kill-child", "--net"];
    let service = Service::start_with(&options, WAITING, Stdio::null());
    assert_eq!(inspect(service.init, &[]).unwrap().connections, 0);
}

#[test]
fn files_that_may_be_changing_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut written = fs::File::create(path("written")).unwrap();
    written.write_all(b"x").unwrap();
    fs::write(path("read"), "x").unwrap();
    let read = fs::File::open(path("read")).unwrap();
    let deleted = fs::File::create(path("deleted")).unwrap();
    fs::remove_file(path("deleted")).unwrap();
    let files = shared_writable_files(&[std::process::id() as i32]).unwrap();
    assert!(files.contains(&path("written")));
    assert!(!files.contains(&path("read")));
    assert!(
        !files
            .iter()
            .any(|file| file.to_string_lossy().contains("deleted"))
    );
    drop((read, deleted));
}

#[test]
fn a_service_that_has_ended_is_an_error() {
    let service = Service::start(WAITING, Stdio::null());
    let init = service.init;
    drop(service);
    // It is told to end with the one that was killed, and takes its time.
    let start = std::time::Instant::now();
    while fs::read_link(format!("/proc/{init}/exe")).is_ok() {
        assert!(
            start.elapsed() < std::time::Duration::from_secs(10),
            "it goes on"
        );
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(matches!(inspect(init, &[]), Err(InspectError::Gone(_))));
}

#[test]
fn kernel_objects_and_devices_by_name() {
    for carried in [
        "[eventfd]",
        "[eventpoll]",
        "[signalfd]",
        "[timerfd]",
        "inotify",
        "[fanotify]",
    ] {
        assert_eq!(kernel_object(carried), None, "{carried}");
    }
    assert_eq!(kernel_object("[io_uring]"), Some(ObstacleKind::IoUring));
    for refused in [
        "[userfaultfd]",
        "[perf_event]",
        "bpf-prog",
        "bpf-map",
        "kvm-vm",
        "[new]",
    ] {
        assert_eq!(
            kernel_object(refused),
            Some(ObstacleKind::Descriptor),
            "{refused}"
        );
    }
    assert_eq!(character_device("/dev/null", (1, 3)), None);
    assert_eq!(character_device("/dev/pts/3", (136, 3)), None);
    assert_eq!(
        character_device("/dev/mem", (1, 1)),
        Some(ObstacleKind::Device)
    );
    assert_eq!(
        character_device("/dev/net/tun", (10, 200)),
        Some(ObstacleKind::Device)
    );
    assert_eq!(
        character_device("/dev/dri/card0", (226, 0)),
        Some(ObstacleKind::Gpu)
    );
    assert_eq!(
        character_device("/dev/nvidia0", (195, 0)),
        Some(ObstacleKind::Gpu)
    );
    assert_eq!(
        character_device("/dev/kfd", (510, 0)),
        Some(ObstacleKind::Gpu)
    );
    let metadata = fs::metadata("/dev/zero").unwrap();
    assert_eq!(judge("/dev/zero", &metadata), None);
}
