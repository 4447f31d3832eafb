//! The control groups of one service: where a restored tree is put, and what is removed with it.
//!
//! Both layouts are served: version 1 hierarchies (each controller mounted by itself), and the
//! unified hierarchy of version 2 (kernel `admin-guide/cgroup-v2.rst`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// How long a group may take to become empty after its tasks were killed.
const EMPTY_PATIENCE: Duration = Duration::from_secs(10);

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
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no cgroup freezer is mounted below /sys/fs/cgroup: mount cgroup2 there",
            ));
        }
        Ok(cgroup)
    }

    fn dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount.join(self.path.trim_start_matches('/'))
    }

    fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies
            .iter()
            .find(|h| h.controllers.iter().any(|name| name == controller))
    }

    /// Directory of the group in the hierarchy that freezes: the v1 freezer if there is one.
    pub fn freezer_dir(&self) -> Option<PathBuf> {
        let unified = || self.hierarchies.iter().find(|h| h.unified);
        self.hierarchy("freezer")
            .or_else(unified)
            .map(|h| self.dir(h))
    }

    /// Makes the groups in the hierarchies that a service needs, and sets its memory limit and the
    /// devices that it may use (lines of the version 1 devices controller).
    pub fn create(&self, memory_limit_bytes: Option<u64>, devices: &[String]) -> io::Result<()> {
        for hierarchy in self.wanted() {
            fs::create_dir_all(self.dir(hierarchy))?;
        }
        if let Some(hierarchy) = self.hierarchy("devices").filter(|_| !devices.is_empty()) {
            let dir = self.dir(hierarchy);
            fs::write(dir.join("devices.deny"), "a")?;
            for line in devices {
                fs::write(dir.join("devices.allow"), line)?;
            }
        }
        let Some(limit) = memory_limit_bytes else {
            return Ok(());
        };
        if let Some(v1) = self.hierarchy("memory").filter(|h| !h.unified) {
            fs::write(
                self.dir(v1).join("memory.limit_in_bytes"),
                limit.to_string(),
            )?;
        } else if let Some(v2) = self.hierarchies.iter().find(|h| h.unified) {
            fs::write(self.dir(v2).join("memory.max"), limit.to_string())?;
        }
        Ok(())
    }

    fn wanted(&self) -> impl Iterator<Item = &Hierarchy> {
        const NEEDED: [&str; 4] = ["freezer", "memory", "pids", "devices"];
        let needed = |h: &&Hierarchy| h.controllers.iter().any(|c| NEEDED.contains(&c.as_str()));
        self.hierarchies
            .iter()
            .filter(move |h| needed(h) || h.unified && self.only_unified())
    }

    fn only_unified(&self) -> bool {
        self.hierarchies.iter().all(|h| h.unified)
    }

    /// Moves a process into the groups, into the one that freezes first: each takes milliseconds,
    /// and should the caller be killed between two, whoever clears up looks there.
    pub fn enter(&self, pid: u32) -> io::Result<()> {
        let freezer = self.freezer_dir();
        let others = self.wanted().map(|hierarchy| self.dir(hierarchy));
        let others = others.filter(|dir| Some(dir) != freezer.as_ref());
        for dir in freezer.iter().cloned().chain(others) {
            fs::write(dir.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
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
        let end = Instant::now() + EMPTY_PATIENCE;
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

    #[test]
    fn the_v1_freezer_is_preferred_and_v2_serves_alone() {
        let cgroup = Cgroup {
            path: "/ums/a/x".to_owned(),
            hierarchies: parse_hierarchies(HYBRID),
        };
        assert_eq!(
            cgroup.freezer_dir().unwrap(),
            Path::new("/sys/fs/cgroup/freezer/ums/a/x")
        );
        assert_eq!(cgroup.wanted().count(), 2);
        let v2 = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let cgroup = Cgroup {
            path: "/ums/a/x".to_owned(),
            hierarchies: parse_hierarchies(v2),
        };
        assert_eq!(
            cgroup.freezer_dir().unwrap(),
            Path::new("/sys/fs/cgroup/ums/a/x")
        );
        assert_eq!(cgroup.wanted().count(), 1);
    }
}
