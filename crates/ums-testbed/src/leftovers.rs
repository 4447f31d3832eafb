//! What a testbed leaves behind: nothing, or it is named here.
//!
//! Other testbeds may come and go on the same machine meanwhile, so what is new since the
//! [`Snapshot`] counts only where it bears the testbed's id or one of its namespaces, or lies in
//! the machine's own network, which no testbed may touch, under a name that UMS gives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::namespace::namespace_of;
use crate::testbed::PREFIX;
use crate::tools;

/// Kinds of namespace that a system or a service has of its own.
const NAMESPACES: [&str; 3] = ["net", "mnt", "pid"];

/// Names of the testbed's own links.
const LINKS: [&str; 4] = ["peer0", "world0", "to-a", "to-b"];

/// Where version 1 hierarchies and the unified one lie.
const CGROUPS: &str = "/sys/fs/cgroup";

/// How far up a process's ancestors are asked whose testbed's they are: more than any testbed stacks.
const ANCESTORS_MAX: usize = 32;

/// How deep service cgroups may lie below a hierarchy's root: `/ums/<id>/<system>/<service>/…`.
const CGROUP_DEPTH_MAX: usize = 8;

/// The state of the machine at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    links: BTreeSet<String>,
    tables: BTreeSet<String>,
    netns: BTreeSet<String>,
    mounts: BTreeSet<String>,
}

/// The marks by which what belongs to a testbed is known.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// The testbed's id; part of its directory, its cgroups and its processes' environment.
    pub id: String,
    /// Namespaces that its processes lived in.
    pub namespaces: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the machine.
    pub fn take(nft: &Path) -> Self {
        Self {
            links: links(),
            tables: tables(nft),
            netns: names_in("/run/netns"),
            mounts: lines(std::fs::read_to_string("/proc/self/mountinfo").ok()),
        }
    }
}

impl Marks {
    /// Marks for a testbed that has no process yet.
    pub fn new(id: &str) -> Self {
        let namespaces = BTreeSet::new();
        Self {
            id: id.to_owned(),
            namespaces,
        }
    }

    /// Remembers the namespaces of these processes, except those of this process itself.
    pub fn remember(&mut self, pids: &[i32]) {
        let own = own_namespaces();
        let all = pids
            .iter()
            .flat_map(|pid| NAMESPACES.map(|kind| namespace_of(*pid, kind)));
        self.namespaces
            .extend(all.flatten().filter(|namespace| !own.contains(namespace)));
    }
}

/// All that is left of a testbed, one line each; empty when it is gone without a trace.
pub fn leftovers(before: &Snapshot, marks: &Marks, nft: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let now = Snapshot::take(nft);
    let links = now.links.difference(&before.links);
    let ours = |name: &&String| name.starts_with("ums") || LINKS.contains(&name.as_str());
    found.extend(
        links
            .filter(ours)
            .map(|name| format!("network link {name}")),
    );
    let tables = now.tables.difference(&before.tables);
    let tables = tables.filter(|name| name.contains("ums"));
    found.extend(tables.map(|name| format!("nft {name}")));
    let bears_id = |text: &&String| text.contains(&marks.id);
    found.extend(
        now.netns
            .difference(&before.netns)
            .filter(bears_id)
            .map(|n| format!("netns {n}")),
    );
    found.extend(
        now.mounts
            .difference(&before.mounts)
            .filter(bears_id)
            .map(|m| format!("mount {m}")),
    );
    found.extend(
        cgroups(&marks.id)
            .into_iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    found.extend(
        processes(marks)
            .into_iter()
            .map(|(pid, name)| format!("process {pid} {name}")),
    );
    let directory = crate::testbed::directory_of(&marks.id);
    if directory.exists() {
        found.push(format!("directory {}", directory.display()));
    }
    found
}

/// Processes of a testbed: with its id in command line or environment, or in its namespaces and not another
/// testbed's. (The kernel gives the number of a namespace that is gone to a new one.)
pub fn processes(marks: &Marks) -> BTreeMap<i32, String> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let parents = tools::processes();
    let mut found = BTreeMap::new();
    for pid in parents.keys().copied().filter(|pid| *pid != own) {
        let inside = || {
            let mut namespaces = NAMESPACES.iter().filter_map(|kind| namespace_of(pid, kind));
            namespaces.any(|namespace| marks.namespaces.contains(&namespace))
        };
        let ours = match bearing(pid, &parents) {
            Some(text) => text.contains(&marks.id),
            None => inside(),
        };
        if ours {
            found.insert(pid, command_of(pid));
        }
    }
    found
}

/// What of a process, or else of the nearest of its ancestors, names a testbed.
fn bearing(pid: i32, parents: &BTreeMap<i32, i32>) -> Option<String> {
    let line = std::iter::successors(Some(pid), |pid| parents.get(pid).copied());
    line.take(ANCESTORS_MAX).find_map(|pid| {
        let said = ["cmdline", "environ"].map(|file| std::fs::read(format!("/proc/{pid}/{file}")));
        let said = said.map(Result::unwrap_or_default).concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        said.contains(PREFIX).then_some(said)
    })
}

fn command_of(pid: i32) -> String {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    command.trim().to_owned()
}

/// Lets frozen processes of a testbed run again: a frozen process can't even be killed.
pub fn thaw(id: &str) {
    for cgroup in cgroups(id) {
        for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            let path = cgroup.join(file);
            if path.exists() {
                // One that is being removed at this moment has nothing frozen in it.
                let _ = std::fs::write(path, word);
            }
        }
    }
}

/// Removes a testbed's cgroups, the deepest first; what stays shows in [`leftovers`].
pub fn remove_cgroups(id: &str) {
    for cgroup in cgroups(id).into_iter().rev() {
        let _ = std::fs::remove_dir(cgroup);
    }
    for hierarchy in hierarchies() {
        // Fails while another testbed has its own below; the last one takes it away.
        let _ = std::fs::remove_dir(hierarchy.join("ums"));
    }
}

/// The testbed's cgroups in all hierarchies, each before those below it.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = hierarchies()
        .into_iter()
        .map(|root| root.join("ums").join(id))
        .filter(|p| p.exists())
        .collect();
    let mut at = 0;
    while at < found.len() {
        let below = std::fs::read_dir(&found[at])
            .into_iter()
            .flatten()
            .flatten();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        let shallow = |path: &PathBuf| path.components().count() <= 4 + CGROUP_DEPTH_MAX;
        found.extend(below.into_iter().filter(shallow));
        at += 1;
    }
    found
}

fn hierarchies() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from(CGROUPS)];
    let entries = std::fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    all.extend(
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir()),
    );
    all
}

fn own_namespaces() -> BTreeSet<String> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    NAMESPACES
        .iter()
        .filter_map(|kind| namespace_of(own, kind))
        .collect()
}

fn links() -> BTreeSet<String> {
    names_in("/sys/class/net")
}

fn tables(nft: &Path) -> BTreeSet<String> {
    lines(tools::text(Command::new(nft).args(["list", "tables"])).ok())
}

fn names_in(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn lines(text: Option<String>) -> BTreeSet<String> {
    text.unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::MARK;

    /// A process that is marked as this testbed's, and is in the namespaces of this one.
    fn found_as(mark: &str, asked: &str) -> bool {
        let mut child = Command::new("sleep")
            .arg("60")
            .env(MARK, mark)
            .spawn()
            .expect("sleep");
        let pid = i32::try_from(child.id()).expect("a pid");
        // As where the number of a namespace was given away again.
        let namespaces = NAMESPACES.iter().filter_map(|kind| namespace_of(pid, kind));
        let marks = Marks {
            id: asked.to_owned(),
            namespaces: namespaces.collect(),
        };
        let found = processes(&marks).contains_key(&pid);
        child.kill().expect("killed");
        child.wait().expect("waited for");
        found
    }

    #[test]
    fn a_process_is_its_own_testbeds_though_namespaces_have_the_same_number() {
        assert!(found_as("ums-testbed-one", "ums-testbed-one"));
        assert!(!found_as("ums-testbed-other", "ums-testbed-one"));
    }

    #[test]
    fn a_process_that_names_no_testbed_is_known_by_its_namespaces() {
        assert!(found_as("", "ums-testbed-one"));
    }
}
