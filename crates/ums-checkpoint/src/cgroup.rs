//! The control groups of one service: where a restored tree is put, and what is removed with it.
//!
//! Both layouts are served: version 1 hierarchies (each controller mounted by itself), and the
//! unified hierarchy of version 2 (kernel `admin-guide/cgroup-v2.rst`). A service is in a group of its
//! own in every hierarchy, whether it was started or restored here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::devices;

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// How long a group may take to become empty after its tasks were killed.
const EMPTY_PATIENCE: Duration = Duration::from_secs(10);
/// How often the groups above are made again: each time somebody else has removed them, in a moment of
/// microseconds.
const MAKES_MAX: u32 = 100;
/// What stands in the way of a device filter where no hierarchy has one.
const NO_DEVICES: &str =
    "no devices controller is mounted below /sys/fs/cgroup: mount cgroup2 there";
/// Controllers of the unified hierarchy that a service's group is to have, where they exist.
const UNIFIED_CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Span of time that a limit of processors is counted in, microseconds: what container engines use.
const PROCESSOR_PERIOD_US: u64 = 100_000;
/// The smallest part of it that the kernel takes, microseconds (`admin-guide/cgroup-v2.rst`, `cpu.max`).
const PROCESSOR_QUOTA_MIN_US: u64 = 1000;

/// The control groups of one service, by their common path below every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Path below the hierarchies, beginning with a slash, for example `/ums/a/redis`.
    path: String,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<String>,
    unified: bool,
}

/// Whether the freezer that services have on this host is of version 2.
pub fn is_unified_here() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = parse_hierarchies(&mounts);
    hierarchies.iter().any(|hierarchy| hierarchy.unified)
}

impl Cgroup {
    /// The groups at `path`, whether they exist or not.
    ///
    /// # Errors
    /// When this host has no freezer in either layout, or `/proc/self/mountinfo` can't be read.
    pub fn at(path: &str) -> io::Result<Self> {
        let hierarchies = parse_hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
        let cgroup = Self {
            path: path.to_owned(),
            hierarchies,
        };
        if cgroup.freezer_dir().is_none() {
            return Err(unsupported(
                "no cgroup freezer is mounted below /sys/fs/cgroup: mount cgroup2 there",
            ));
        }
        Ok(cgroup)
    }

    /// The groups that a process is in which somebody else has put there.
    ///
    /// # Errors
    /// As [`at`](Self::at); and when the process has ended, or is in no group of its own.
    pub fn of(pid: u32) -> io::Result<Self> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = own_path(&groups).ok_or_else(|| {
            unsupported("the container has no control group of its own: its engine must make one")
        })?;
        Self::at(path)
    }

    /// The common path below the hierarchies.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount.join(self.path.trim_start_matches('/'))
    }

    /// The hierarchy that has a controller: of version 1 if there is one, else the unified one.
    fn home(&self, controller: &str) -> Option<&Hierarchy> {
        let of_its_own = |h: &&Hierarchy| h.controllers.iter().any(|name| name == controller);
        let unified = || self.hierarchies.iter().find(|h| h.unified);
        self.hierarchies.iter().find(of_its_own).or_else(unified)
    }

    /// Directory of the group in the hierarchy that freezes: the unified one where it is mounted,
    /// whatever controllers it has, since its freezer is no controller and is the better one (ADR 14);
    /// else the v1 freezer.
    pub fn freezer_dir(&self) -> Option<PathBuf> {
        let unified = self.hierarchies.iter().find(|h| h.unified);
        let own = self.home("freezer").filter(|h| !h.unified);
        // Some engines make no group in a unified hierarchy beside those of version 1.
        let only_own = |own: &&Hierarchy| {
            unified.is_none_or(|h| !self.dir(h).exists() && self.dir(own).exists())
        };
        let hierarchy = own.filter(only_own).or(unified);
        hierarchy.map(|h| self.dir(h))
    }

    /// Why a memory limit can't be set here; `None` when it can. Changes nothing.
    pub fn lacks_memory_limit(&self) -> Option<String> {
        let available = match self.home("memory") {
            Some(hierarchy) if hierarchy.unified => controllers_in(&hierarchy.mount),
            Some(_) => return None,
            None => Vec::new(),
        };
        let has = available.iter().any(|name| name == "memory");
        (!has).then(|| {
            "this host has no memory controller for control groups: boot without \
             `cgroup_disable=memory`, or have it delegated to where /sys/fs/cgroup begins"
                .to_owned()
        })
    }

    /// Why processors can't be limited here; `None` when they can. Changes nothing.
    pub fn lacks_processor_limit(&self) -> Option<String> {
        let has = match self.home("cpu") {
            Some(hierarchy) if hierarchy.unified => controllers_in(&hierarchy.mount)
                .iter()
                .any(|it| it == "cpu"),
            other => other.is_some(),
        };
        (!has).then(|| {
            "this host has no cpu controller for control groups: have it delegated to where \
             /sys/fs/cgroup begins"
                .to_owned()
        })
    }

    /// Limits the processors of a group that is there, in billionths of one: `cpu.max`, or `cpu.cfs_quota_us` of
    /// version 1. More than there are is no limit.
    ///
    /// # Errors
    /// When it can't be set, with the file.
    pub fn limit_processors(&self, nano_cpus: u64) -> io::Result<()> {
        let hierarchy = self.home("cpu").ok_or(io::ErrorKind::Unsupported)?;
        let quota = nano_cpus / (1_000_000_000 / PROCESSOR_PERIOD_US);
        let quota = quota.max(PROCESSOR_QUOTA_MIN_US);
        let dir = self.dir(hierarchy);
        let write = |file: &str, text: String| {
            let path = dir.join(file);
            fs::write(&path, text)
                .map_err(|error| naming(&path, "can't be set to the limit of processors", &error))
        };
        if hierarchy.unified {
            return write("cpu.max", format!("{quota} {PROCESSOR_PERIOD_US}"));
        }
        write("cpu.cfs_period_us", PROCESSOR_PERIOD_US.to_string())?;
        write("cpu.cfs_quota_us", quota.to_string())
    }

    /// Why a service's devices can't be filtered here; `None` when they can. Changes nothing.
    pub fn lacks_device_filter(&self) -> Option<String> {
        match self.home("devices") {
            Some(hierarchy) if hierarchy.unified => {
                devices::probe_v2().err().map(|error| error.to_string())
            }
            Some(_) => None,
            None => Some(NO_DEVICES.to_owned()),
        }
    }

    /// Makes the groups in the hierarchies that a service belongs to, sets its memory limit, and
    /// confines it to the devices that `devices` allow ([`devices::Rule`]).
    ///
    /// # Errors
    /// When something of it can't be done: a service must not run without its limits. What was made
    /// is removed again, unless something is in it.
    pub fn create(&self, memory_limit_bytes: Option<u64>, devices: &[String]) -> io::Result<()> {
        let made = self
            .make(memory_limit_bytes)
            .and_then(|()| self.confine(devices));
        made.inspect_err(|_| {
            // The cause is what counts.
            let _ = self.remove_within(Duration::ZERO);
        })
    }

    fn make(&self, memory_limit_bytes: Option<u64>) -> io::Result<()> {
        if let Some(reason) = memory_limit_bytes.and_then(|_| self.lacks_memory_limit()) {
            return Err(unsupported(&reason));
        }
        for hierarchy in &self.hierarchies {
            self.make_among_others(hierarchy)
                .map_err(|error| naming(&self.dir(hierarchy), "can't be made", &error))?;
        }
        let Some(limit) = memory_limit_bytes else {
            return Ok(());
        };
        let hierarchy = self.home("memory").ok_or(io::ErrorKind::Unsupported)?;
        let file = match hierarchy.unified {
            true => "memory.max",
            false => "memory.limit_in_bytes",
        };
        let path = self.dir(hierarchy).join(file);
        fs::write(&path, limit.to_string())
            .map_err(|error| naming(&path, "can't be set to the memory limit", &error))
    }

    /// Makes the group and those above it. Whoever removes the last other service removes those above, too.
    fn make_among_others(&self, hierarchy: &Hierarchy) -> io::Result<()> {
        for _ in 1..MAKES_MAX {
            match self.make_in(hierarchy) {
                Err(error) if is_gone(&error) => {}
                made => return made,
            }
        }
        self.make_in(hierarchy)
    }

    /// Makes the group and those above it, which others may remove meanwhile ([`is_gone`]).
    fn make_in(&self, hierarchy: &Hierarchy) -> io::Result<()> {
        let mut above = hierarchy.mount.clone();
        for part in self.path.split('/').filter(|part| !part.is_empty()) {
            if hierarchy.unified {
                enable(&above);
            }
            let dir = above.join(part);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            if hierarchy.controllers.iter().any(|name| name == "cpuset") {
                inherit_cpuset(&above, &dir)?;
            }
            above = dir;
        }
        Ok(())
    }

    /// Confines the group to the devices that these lines allow. Where processes are in it already
    /// they keep what they have open.
    ///
    /// # Errors
    /// When this can't be done here, with the remedy.
    pub fn confine(&self, devices: &[String]) -> io::Result<()> {
        match self.home("devices") {
            Some(hierarchy) if hierarchy.unified => {
                devices::confine_v2(&self.dir(hierarchy), devices)
            }
            Some(hierarchy) => devices::confine_v1(&self.dir(hierarchy), devices),
            None => Err(unsupported(NO_DEVICES)),
        }
    }

    /// Moves a process into the groups, into the one that freezes first: the first takes
    /// milliseconds, and should the caller be killed between two, whoever clears up looks there.
    pub fn enter(&self, pid: u32) -> io::Result<()> {
        let freezer = self.freezer_dir();
        let others = self.hierarchies.iter().map(|hierarchy| self.dir(hierarchy));
        let others = others.filter(|dir| Some(dir) != freezer.as_ref());
        for dir in freezer.iter().cloned().chain(others) {
            fs::write(dir.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Puts a process into this process's own group of the unified hierarchy.
    pub(crate) fn leave_freezer(&self, pid: u32) -> io::Result<()> {
        let unified = self.hierarchies.iter().find(|h| h.unified);
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        let (Some(unified), Some(own)) = (unified, own) else {
            return Err(unsupported(
                "there is no unified hierarchy of control groups",
            ));
        };
        let file = unified.mount.join(own).join("cgroup.procs");
        fs::write(&file, pid.to_string()).map_err(|error| naming(&file, "takes no process", &error))
    }

    /// Processes in the group that freezes, as this PID namespace sees them.
    pub fn processes(&self) -> Vec<i32> {
        let Some(dir) = self.freezer_dir() else {
            return Vec::new();
        };
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid > 0)
            .collect()
    }

    /// Waits until no process is left, then removes the groups wherever they exist.
    pub fn remove(&self) -> io::Result<()> {
        self.remove_within(EMPTY_PATIENCE)
    }

    fn remove_within(&self, patience: Duration) -> io::Result<()> {
        let end = Instant::now() + patience;
        for hierarchy in &self.hierarchies {
            let dir = self.dir(hierarchy);
            while let Err(error) = fs::remove_dir(&dir) {
                match error.raw_os_error() {
                    Some(nix::libc::ENOENT | nix::libc::ENOTDIR) => break,
                    // A task that has exited leaves its group a moment later, without an event.
                    Some(nix::libc::EBUSY) if Instant::now() < end => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    _ => return Err(error),
                }
            }
            // The groups above are shared with other services: they stay while one is in use.
            let own = dir
                .ancestors()
                .skip(1)
                .take_while(|above| *above != hierarchy.mount);
            own.take_while(|above| fs::remove_dir(above).is_ok())
                .for_each(drop);
        }
        Ok(())
    }
}

/// Whether a group was removed meanwhile: it can't be found, or a file of it that was open is dead
/// (kernel `fs/kernfs`).
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ENOENT | nix::libc::ENODEV)
    )
}

/// Lets the groups below `dir` have the controllers that a service needs, as far as they are there.
/// A group that has processes of its own can't (the kernel's "no internal processes"): what is missing
/// then shows where it is used.
fn enable(dir: &Path) {
    let control = dir.join("cgroup.subtree_control");
    let (available, enabled) = (controllers_in(dir), words_of(&control));
    for name in UNIFIED_CONTROLLERS {
        let has = |list: &[String]| list.iter().any(|other| other == name);
        if has(&available)
            && !has(&enabled)
            && let Err(error) = fs::write(&control, format!("+{name}"))
        {
            tracing::debug!(control = %control.display(), name, %error, "controller not enabled");
        }
    }
}

/// Controllers that may be enabled below a group of the unified hierarchy.
fn controllers_in(dir: &Path) -> Vec<String> {
    words_of(&dir.join("cgroup.controllers"))
}

fn words_of(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// A cpuset of version 1 takes no process until it has processors and memory nodes.
fn inherit_cpuset(above: &Path, dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if words_of(&dir.join(file)).is_empty() {
            fs::write(dir.join(file), fs::read(above.join(file))?)?;
        }
    }
    Ok(())
}

/// Moves a process into the groups of another one, in every hierarchy (`/proc/PID/cgroup`, cgroups(7)).
///
/// # Errors
/// When one of the two has ended, or a group takes no process.
pub fn follow(pid: u32, other: u32) -> io::Result<()> {
    let hierarchies = parse_hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
    let groups = fs::read_to_string(format!("/proc/{other}/cgroup"))?;
    for (controllers, path) in groups.lines().filter_map(group_of) {
        let is_it = |h: &&Hierarchy| match controllers.is_empty() {
            true => h.unified,
            false => {
                !h.unified
                    && controllers
                        .split(',')
                        .all(|it| h.controllers.iter().any(|c| c == it))
            }
        };
        let Some(hierarchy) = hierarchies.iter().find(is_it) else {
            continue;
        };
        let file = hierarchy
            .mount
            .join(path.trim_start_matches('/'))
            .join("cgroup.procs");
        fs::write(&file, pid.to_string())
            .map_err(|error| naming(&file, "takes no process", &error))?;
    }
    Ok(())
}

/// Controllers and path of a line of `/proc/PID/cgroup`.
fn group_of(line: &str) -> Option<(&str, &str)> {
    line.split_once(':')?.1.split_once(':')
}

/// The path of the group that a process was put into: the one in the hierarchy that freezes.
fn own_path(groups: &str) -> Option<&str> {
    let path = |wanted: &str| {
        let mut all = groups.lines().filter_map(group_of);
        let found = all.find(|(controllers, _)| controllers.split(',').any(|it| it == wanted));
        found.map(|(_, path)| path).filter(|path| *path != "/")
    };
    path("freezer").or_else(|| path(""))
}

fn naming(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} {what}: {error}", path.display()))
}

fn unsupported(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Hierarchies from `/proc/self/mountinfo` (proc(5)): fields after ` - ` are type, source, options.
fn parse_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mount = Path::new(front.split(' ').nth(4)?);
        let mut back = back.split(' ');
        let (kind, _source, options) = (back.next()?, back.next()?, back.next()?);
        if !mount.starts_with(ROOT) {
            return None;
        }
        let unified = kind == "cgroup2";
        let controllers = match kind {
            "cgroup" => options.split(',').map(str::to_owned).collect(),
            "cgroup2" => Vec::new(),
            _ => return None,
        };
        Some(Hierarchy {
            mount: mount.to_owned(),
            controllers,
            unified,
        })
    };
    let mut hierarchies: Vec<Hierarchy> = mountinfo.lines().filter_map(parse).collect();
    hierarchies.dedup_by(|a, b| a.mount == b.mount);
    hierarchies
}

#[cfg(test)]
mod test {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 30 0:29 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
34 30 0:30 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
";

    fn group(mountinfo: &str) -> Cgroup {
        Cgroup {
            path: "/ums/a/x".to_owned(),
            hierarchies: parse_hierarchies(mountinfo),
        }
    }

    #[test]
    fn the_unified_freezer_is_preferred_and_each_serves_alone() {
        let hybrid = group(HYBRID);
        assert_eq!(
            hybrid.freezer_dir().unwrap(),
            Path::new("/sys/fs/cgroup/unified/ums/a/x")
        );
        let v1 = HYBRID.replace("cgroup2", "tmpfs");
        assert_eq!(
            group(&v1).freezer_dir().unwrap(),
            Path::new("/sys/fs/cgroup/freezer/ums/a/x")
        );
        let v2 = group("30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(
            v2.freezer_dir().unwrap(),
            Path::new("/sys/fs/cgroup/ums/a/x")
        );
    }

    #[test]
    fn v2_stands_in_for_what_v1_lacks() {
        let hybrid = group(HYBRID);
        assert!(hybrid.home("devices").unwrap().unified);
        assert!(!hybrid.home("memory").unwrap().unified);
        let devices = "35 30 0:31 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n";
        let whole = group(&format!("{HYBRID}{devices}"));
        assert!(!whole.home("devices").unwrap().unified);
    }

    #[test]
    fn processors_are_limited_in_the_words_of_either_version() {
        let mount = tempfile::tempdir().unwrap();
        let of = |unified| Cgroup {
            path: String::new(),
            hierarchies: vec![Hierarchy {
                mount: mount.path().to_owned(),
                controllers: vec!["cpu".to_owned()],
                unified,
            }],
        };
        let read = |file: &str| fs::read_to_string(mount.path().join(file)).unwrap();
        of(true).limit_processors(1_500_000_000).unwrap();
        assert_eq!(read("cpu.max"), "150000 100000");
        of(false).limit_processors(1).unwrap();
        assert_eq!(
            read("cpu.cfs_quota_us") + &read("cpu.cfs_period_us"),
            "1000100000"
        );
        assert!(
            of(true).lacks_processor_limit().is_some(),
            "no cgroup.controllers"
        );
        assert!(of(false).lacks_processor_limit().is_none());
    }

    #[test]
    fn a_group_is_made_while_its_last_neighbour_is_removed() {
        let mount = tempfile::tempdir().unwrap();
        let of = |name: &str| Cgroup {
            path: format!("/ums/a/{name}"),
            hierarchies: vec![Hierarchy {
                mount: mount.path().to_owned(),
                controllers: Vec::new(),
                unified: false,
            }],
        };
        let come_and_go = |name: &str| {
            let group = of(name);
            for _ in 0..2000 {
                group.make(None).unwrap();
                group.remove().unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| come_and_go("one"));
            scope.spawn(|| come_and_go("other"));
        });
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    }
}
