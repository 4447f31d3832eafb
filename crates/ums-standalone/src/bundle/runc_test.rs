//! The bundle with the real runc: what `config.json` says has to come out as meant.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ums_core::specification::Volume;

use super::test::specification;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A container's directories, and a mount namespace that holds its root filesystem.
struct Node {
    dir: tempfile::TempDir,
    runc: PathBuf,
    keeper: Child,
    cgroup: String,
}

impl Node {
    fn new(runc: PathBuf, busybox: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [
            "lower/bin",
            "upper",
            "work",
            "merged",
            "volumes/data",
            "shm",
            "bundle",
            "state",
        ] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::copy(busybox, at("lower/bin/busybox")).unwrap();
        let script = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged \
                      && mount -t tmpfs -o size=1m,mode=1777 shm shm && touch ready && read -r _";
        let mut unshare = Command::new("unshare");
        unshare.args([
            "--mount",
            "--net",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
        ]);
        unshare.current_dir(dir.path()).stdin(Stdio::piped());
        let keeper = unshare.spawn().unwrap();
        let cgroup = format!("/ums-test-{}/web", std::process::id());
        let node = Self {
            dir,
            runc,
            keeper,
            cgroup,
        };
        node.wait_for("the mounts", || node.at("ready").exists());
        node
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn wait_for(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "{what} did not come about");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    fn write_config(&self) {
        let mut specification = specification();
        specification.command = ["/bin/busybox", "sleep", "1000"].map(String::from).to_vec();
        specification.volumes = vec![Volume {
            name: "data".parse().unwrap(),
            path: "/srv/data".into(),
        }];
        let netns = PathBuf::from(format!("/proc/{}/ns/net", self.keeper.id()));
        let (rootfs, volumes, shm) = (self.at("merged"), self.at("volumes"), self.at("shm"));
        let places = Places {
            rootfs: &rootfs,
            netns: &netns,
            volumes: &volumes,
            shm: &shm,
            cgroup: &self.cgroup,
        };
        let config = config(&specification, &places, (256, 256)).unwrap();
        fs::write(self.at("bundle/config.json"), config.to_string()).unwrap();
    }

    fn runc(&self, arguments: &[&str]) -> bool {
        let target = self.keeper.id().to_string();
        let status = Command::new("nsenter")
            .args(["--mount", "--target", &target])
            .arg(&self.runc)
            .arg("--root")
            .arg(self.at("state"))
            .arg("--log")
            .arg(self.at("log"))
            .args(arguments)
            // runc opens it anew inside, so that the container has no file of this machine's.
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.unwrap().success()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.runc(&["delete", "--force", "web"]);
        self.keeper.stdin.take().unwrap().write_all(b"\n").unwrap();
        self.keeper.wait().unwrap();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let group = hierarchy.path().join(self.cgroup.trim_start_matches('/'));
            let parent = group.parent().unwrap().to_owned();
            if !parent.exists() {
                continue;
            }
            // The kernel may take a moment to let go of a group whose last process has died.
            self.wait_for("the end of the cgroups", || {
                let _ = fs::remove_dir(&group);
                fs::remove_dir(&parent).is_ok() || !parent.exists()
            });
        }
    }
}

fn programs() -> Result<(PathBuf, PathBuf), &'static str> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err("containers need root");
    }
    let own = std::env::current_exe().map_err(|_| "this program has no path")?;
    let beside = own
        .ancestors()
        .nth(3)
        .map(|target| target.join("ums-bundle"));
    let bundle = std::env::var_os("UMS_BUNDLE").map(PathBuf::from).or(beside);
    let runc = bundle
        .map(|bundle| bundle.join("bin/runc"))
        .filter(|runc| runc.exists());
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let busybox = busybox.into_iter().find(|path| path.exists());
    Ok((
        runc.ok_or("no checkpoint/restore bundle: run `cargo xtask bundle`")?,
        busybox.ok_or("no static busybox: install busybox-static")?,
    ))
}

#[test]
fn runc_makes_what_the_bundle_says() {
    let (runc, busybox) = match programs() {
        Ok(found) => found,
        Err(reason) => return skip("runc_makes_what_the_bundle_says", reason),
    };
    let node = Node::new(runc, &busybox);
    node.write_config();
    let (bundle, pid_file) = (node.at("bundle"), node.at("pid"));
    let [bundle, pid_file] = [&bundle, &pid_file].map(|path| path.to_str().unwrap());
    let create = ["create", "--bundle", bundle, "--pid-file", pid_file, "web"];
    assert!(node.runc(&create), "{}", node.log());
    assert!(node.runc(&["start", "web"]), "{}", node.log());
    let pid: i32 = fs::read_to_string(node.at("pid")).unwrap().parse().unwrap();
    let inside = |path: &str| PathBuf::from(format!("/proc/{pid}/root{path}"));
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        let node = fs::metadata(inside(&format!("/dev/{device}"))).unwrap();
        assert!(node.file_type().is_char_device(), "{device}");
    }
    assert_eq!(
        fs::read_link(inside("/dev/ptmx")).unwrap(),
        Path::new("pts/ptmx")
    );
    check_mounts(&fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap());

    fs::write(inside("/srv/data/file"), "kept").unwrap();
    assert_eq!(fs::read(node.at("volumes/data/file")).unwrap(), b"kept");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("CapEff:\t00000000a80425fb"));
    let link = |path: String| fs::read_link(path).unwrap();
    let network = |pid: u32| link(format!("/proc/{pid}/ns/net"));
    assert_eq!(network(pid as u32), network(node.keeper.id()));
    assert_ne!(network(pid as u32), network(std::process::id()));
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroups.contains(&node.cgroup), "{cgroups}");
    assert_eq!(link(format!("/proc/{pid}/fd/0")), Path::new("/dev/null"));

    let seen = ums_node::inspect::inspect(pid, &[&node.at("upper")]).unwrap();
    // Standard output is the test's own here; nothing else may be in the way.
    let others = seen
        .obstacles
        .iter()
        .filter(|obstacle| obstacle.detail != "/dev/null");
    assert_eq!(others.count(), 0, "{:?}", seen.obstacles);

    let dir = node.dir.path().to_owned();
    drop(node);
    assert!(!dir.exists());
    // Its parent may not have taken note of its end yet, but a dead process has no program.
    assert!(
        fs::read_link(format!("/proc/{pid}/exe")).is_err(),
        "the container outlived the test"
    );
}

/// As few as can be, and none whose content would be dumped.
fn check_mounts(mountinfo: &str) {
    let kinds_at = |point: &str| -> Vec<&str> {
        let at = mountinfo
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some(point));
        at.filter_map(|line| line.split(" - ").nth(1)?.split(' ').next())
            .collect()
    };
    assert_eq!(kinds_at("/"), ["overlay"]);
    assert_eq!(kinds_at("/proc/sys"), ["proc"]);
    assert_eq!(kinds_at("/dev"), [""; 0]);
    // The one tmpfs is external.
    assert_eq!(kinds_at("/dev/shm"), ["tmpfs"]);
    let tmpfs = mountinfo.lines().filter(|line| line.contains(" - tmpfs "));
    assert_eq!(tmpfs.count(), 1, "{mountinfo}");
    assert!(!mountinfo.contains("cgroup"), "{mountinfo}");
    assert!(
        mountinfo
            .lines()
            .any(|line| line.contains(" /proc/sys ro,")),
        "{mountinfo}"
    );
}

/// Says by name why a test doesn't run here: the harness has no such outcome.
fn skip(name: &str, reason: &str) {
    let line = format!("SKIPPED {name}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("UMS_SKIP_LOG") {
        let mut log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        log.write_all(line.as_bytes()).unwrap();
    }
}
