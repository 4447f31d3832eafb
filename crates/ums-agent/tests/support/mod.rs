//! A container that keepers hold on one node, for tests with real CRIU and runc.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    missing_docs,
    reason = "not every test uses all of it"
)]

pub mod departed;
pub mod docker;
pub mod podman;

pub use std::os::fd::{AsFd, AsRawFd};
pub use std::os::unix::net::UnixStream;
pub use std::path::{Path, PathBuf};
pub use std::process::Command;
pub use std::time::{Duration, Instant};

pub use std::io::Read;

pub use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
pub use ums_checkpoint::criu::page_server::{self, PAGE_LEN};
pub use ums_checkpoint::keeper::client::Keeper;
pub use ums_checkpoint::keeper::protocol::{
    CheckpointInfo, Connections, DumpRequest, FREEZE_MS, INDEX_NAME, INFO_NAME, KeeperConfig,
    MemoryBy, PROTOCOL, Phase, Reply, Request, RestoreRequest, Status,
};
pub use ums_checkpoint::memory_dir::MemoryDir;
pub use ums_checkpoint::message;
pub use ums_checkpoint::store::{PageStore, Stored, index};
pub use ums_core::budget::Part;

/// No connection is open here.
pub const CLOSE: DumpRequest = DumpRequest {
    freeze_ms: FREEZE_MS,
    connections: Connections::Close,
    memory: MemoryBy::Criu,
};

/// How long anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn bundle() -> Option<PathBuf> {
    let given = std::env::var_os("UMS_BUNDLE").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_BIN_EXE_ums-agent"))
        .ancestors()
        .nth(2)
        .map(|target| target.join("ums-bundle"));
    given
        .or(beside)
        .filter(|path| path.join("bin/criu").exists())
}

/// Says by name why a test does not run here.
pub fn skip(name: &str, reason: &str) {
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(log) = std::env::var_os("UMS_SKIP_LOG")
        && let Ok(mut log) = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)
    {
        use std::io::Write;
        let _ = writeln!(log, "{name}: {reason}");
    }
}

/// One place for a container: directories, a keeper's configuration, and its end.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub config: KeeperConfig,
}

impl Place {
    pub fn new(bundle: &Path, lower: &Path, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["upper", "work", "merged", "shm", "bundle"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let agent = env!("CARGO_BIN_EXE_ums-agent").to_owned();
        let config = KeeperConfig {
            service: name.to_owned(),
            socket: at("keeper.sock"),
            bundle_bin: bundle.join("bin"),
            guard: vec![agent.clone(), "guard".to_owned()],
            log_pump: vec![agent, "log".to_owned()],
            cgroup: format!("/ums-test/{}/{name}", std::process::id()),
            memory_limit_bytes: Some(256 << 20),
            lower: lower.to_owned(),
            upper: at("upper"),
            work: at("work"),
            merged: at("merged"),
            shm: at("shm"),
            shm_bytes: 1 << 20,
            devices: ums_standalone::bundle::ALLOWED_DEVICES
                .map(str::to_owned)
                .to_vec(),
            log: at("log"),
            mounts: vec![ums_checkpoint::keeper::protocol::ExternalMount {
                mountpoint: "/dev/shm".to_owned(),
                key: "shm".to_owned(),
                source: at("shm"),
            }],
            placed: false,
            adopted: None,
        };
        Self { dir, config }
    }

    pub fn start(&self) -> Keeper {
        let agent = env!("CARGO_BIN_EXE_ums-agent").to_owned();
        Keeper::start(&[agent, "keeper".to_owned()], &self.config).unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.config.log).unwrap_or_default()
    }

    pub fn cgroup_dir(&self) -> PathBuf {
        ums_checkpoint::cgroup::Cgroup::at(&self.config.cgroup)
            .unwrap()
            .freezer_dir()
            .unwrap()
    }
}

/// A root filesystem with busybox alone.
pub fn rootfs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", dir.path().join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", dir.path().join("bin/sh")).unwrap();
    for name in ["state", "gone"] {
        std::fs::write(dir.path().join("etc").join(name), "old\n").unwrap();
    }
    dir
}

pub fn specification(script: &str) -> ums_core::specification::Specification {
    ums_core::specification::Specification {
        name: "counter".parse().unwrap(),
        image: "0".repeat(64).try_into().unwrap(),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        memory_limit_bytes: None,
        volumes: vec![],
        address: "10.88.0.2".parse().unwrap(),
        prefix_len: 16,
        ports: vec![],
        mounts: Vec::new(),
        creation: None,
        engine: None,
        capabilities: vec![],
        hostname: "counter".to_owned(),
    }
}

pub fn run(place: &Place, keeper: &Keeper, script: &str) -> Status {
    let status = keeper.status().unwrap();
    let netns = ums_node::container::netns_path(&status);
    let places = ums_standalone::bundle::Places {
        rootfs: &place.config.merged,
        netns: &netns,
        volumes: place.dir.path(),
        shm: &place.config.shm,
        cgroup: &place.config.cgroup,
    };
    let config =
        ums_standalone::bundle::config(&specification(script), &places, (1024, 4096)).unwrap();
    let bundle = place.dir.path().join("bundle");
    std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    keeper.call(&Request::Start { bundle }, &[]).unwrap()
}

pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < end, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes a checkpoint the way an agent does, straight into a page store.
pub fn checkpoint(keeper: &Keeper) -> (MemoryDir, Stored) {
    checkpoint_as(keeper, CLOSE)
}

/// The same, with connections that may be open.
pub fn checkpoint_as(keeper: &Keeper, request: DumpRequest) -> (MemoryDir, Stored) {
    let images = MemoryDir::new(64 << 20).unwrap();
    let target = MemoryDir::new(512 << 20).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut store = PageStore::new(512 << 20, true).unwrap();
    let owners = std::thread::scope(|scope| {
        let dump = scope.spawn(|| {
            keeper
                .call(&Request::Dump(request), &[images.as_fd(), theirs.as_fd()])
                .unwrap();
        });
        let owners = page_server::serve(
            &mut ours,
            || {},
            |run, stream| {
                let mut bytes = vec![0; run.pages as usize * PAGE_LEN];
                stream.read_exact(&mut bytes)?;
                store
                    .push(run.owner, run.address, run.flags, &bytes, &target)
                    .unwrap();
                Ok(())
            },
        )
        .unwrap();
        dump.join().unwrap();
        owners
    });
    for owner in &owners {
        store.open(*owner, &target).unwrap();
    }
    for (name, _) in images.files().unwrap() {
        let bytes = std::fs::read(images.path().join(&name)).unwrap();
        target.write(&name, &bytes).unwrap();
    }
    let stored = store.finish(&target).unwrap();
    target
        .write(INDEX_NAME, &index::encode(&stored.index))
        .unwrap();
    (target, stored)
}

pub fn restore(keeper: &Keeper, images: &MemoryDir, stored: &Stored) -> Status {
    restore_as(keeper, images, stored, Connections::Close)
}

/// The same, with connections that may be open.
pub fn restore_as(
    keeper: &Keeper,
    images: &MemoryDir,
    stored: &Stored,
    connections: Connections,
) -> Status {
    let request = RestoreRequest {
        lazy_bytes: stored.lazy_bytes,
        lazy: true,
        connections,
    };
    let fds = [images.as_fd(), stored.lazy.as_fd()];
    keeper.call(&Request::Restore(request), &fds).unwrap()
}

pub fn ready(name: &str) -> Option<(PathBuf, tempfile::TempDir)> {
    if !nix::unistd::geteuid().is_root() {
        skip(name, "needs root");
        return None;
    }
    if !Path::new("/bin/busybox").exists() {
        skip(name, "needs /bin/busybox: install busybox-static");
        return None;
    }
    let Some(bundle) = bundle() else {
        skip(name, "needs the C/R bundle: run `cargo xtask bundle`");
        return None;
    };
    Some((bundle, rootfs()))
}

pub const COUNTING: &str = "i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.02; done";

/// The same of a service that has changed files.
pub const CHANGING: &str = "echo new > /etc/state; rm /etc/gone; echo made > /etc/made; \
    i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.02; done";

/// Says its number, its time since boot and its own process id.
pub const TELLING: &str = "i=0; while true; do i=$((i+1)); read up rest < /proc/uptime; \
    echo tick $i $up $$; sleep 0.02; done";

pub fn last_tick(log: &str) -> u32 {
    log.lines()
        .filter_map(|line| line.strip_prefix("tick ")?.split(' ').next()?.parse().ok())
        .next_back()
        .unwrap_or(0)
}

pub fn copy_upper(a: &Place, b: &Place) {
    let from = format!("{}/.", a.config.upper.display());
    let copied = Command::new("cp")
        .args(["-a", &from])
        .arg(&b.config.upper)
        .status()
        .unwrap();
    assert!(copied.success());
}

pub fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Mount points below a directory, innermost first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut below: Vec<PathBuf> = points
        .map(PathBuf::from)
        .filter(|it| it.starts_with(dir))
        .collect();
    below.reverse();
    below
}

pub fn is_mounted_below(dir: &Path) -> bool {
    !mounts_below(dir).is_empty()
}

/// Engines leave mounts behind when they end.
pub fn unmount_below(dir: &Path) {
    for point in mounts_below(dir) {
        let _ = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH);
    }
}
