//! All that is in a system at one moment, in names that are the same each time, so that two moments
//! can be compared: processes, namespaces, mounts, control groups, links, routes, firewall rules,
//! files, and what the Coordinator and the agent hold open.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::namespace::namespace_of;
use crate::system::System;
use crate::tools::{Tools, text};

/// Kinds of namespaces that a service has of its own.
const NAMESPACES: [&str; 5] = ["net", "mnt", "pid", "ipc", "uts"];

/// First port that the kernel chooses by itself.
const EPHEMERAL_PORT: u32 = 32_768;

/// How deep a system's directories are looked into: what lies deeper is a service's own.
const DEPTH_MAX: usize = 5;

/// What there is, and how many of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, usize>);

/// What one moment has more or less of than another, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference(pub Vec<String>);

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0.join("\n"))
    }
}

impl Inventory {
    /// Looks at a system.
    pub fn take(system: &System, tools: &Tools) -> Self {
        let mut inventory = Self::default();
        let members = system.namespace().members();
        inventory.processes(&members);
        inventory.networks(system, tools, &members);
        inventory.mounts(system);
        inventory.control_groups(system);
        inventory.files("run", &system.outside(&system.run_dir()), 0);
        inventory.files("state", &system.outside(&system.state_dir()), 0);
        inventory
    }

    /// How many things there are.
    pub fn count(&self) -> usize {
        self.0.values().sum()
    }

    /// Whether there is a link of this name in the system itself.
    pub fn has_link(&self, name: &str) -> bool {
        self.0.contains_key(&format!("link system: {name}"))
    }

    /// What this one has more (`+`) or less (`-`) than `before`.
    pub fn since(&self, before: &Self) -> Difference {
        let mut lines = Vec::new();
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(before.0.keys()).collect();
        for name in names {
            let of = |inventory: &Self| inventory.0.get(name).copied().unwrap_or_default();
            let (now, then) = (of(self), of(before));
            if now != then {
                let sign = if now > then { '+' } else { '-' };
                lines.push(format!("{sign} {name} ({then} before, {now} now)"));
            }
        }
        Difference(lines)
    }

    fn add(&mut self, kind: &str, name: &str) {
        *self.0.entry(format!("{kind} {name}")).or_default() += 1;
    }

    fn processes(&mut self, members: &[i32]) {
        for pid in members {
            let Some(role) = role_of(*pid) else { continue };
            if ["ums serve", "ums-agent serve"].contains(&role.as_str()) {
                self.descriptors(*pid, &role);
            }
            self.add("process", &role);
        }
    }

    /// Left out is what comes and goes by itself: sockets of connections that are kept for later, and
    /// pipes and process descriptors of tools that are running just now.
    fn descriptors(&mut self, pid: i32, role: &str) {
        for link in descriptors(pid) {
            let passing = ["socket:", "pipe:", "anon_inode:[pidfd]"];
            if !passing.iter().any(|kind| link.starts_with(kind)) {
                self.add("descriptor", &format!("{role}: {}", without_numbers(&link)));
            }
        }
    }

    /// Each network namespace with its links, routes and rules.
    fn networks(&mut self, system: &System, tools: &Tools, members: &[i32]) {
        for kind in NAMESPACES {
            let all: std::collections::BTreeMap<String, i32> = members
                .iter()
                .filter(|pid| role_of(**pid).is_some())
                .filter_map(|pid| Some((namespace_of(*pid, kind)?, *pid)))
                .collect();
            for pid in all.values() {
                self.add("namespace", kind);
                if kind == "net" {
                    self.network(system, tools, *pid);
                }
            }
        }
    }

    fn network(&mut self, system: &System, tools: &Tools, pid: i32) {
        let own = namespace_of(system.namespace().init(), "net");
        let whose = if namespace_of(pid, "net") == own {
            "system"
        } else {
            "service"
        };
        let inside = |program: PathBuf, arguments: &[&str]| {
            let mut command = std::process::Command::new("nsenter");
            command.args(["--target", &pid.to_string(), "--net", "--"]);
            text(command.arg(program).args(arguments)).unwrap_or_default()
        };
        let ip = PathBuf::from("ip");
        // Which connections a service's rules know is its clients' doing.
        let listing: &[&str] = match whose {
            "system" => &["list", "ruleset"],
            _ => &["--terse", "list", "ruleset"],
        };
        let queries: [(&str, PathBuf, &[&str]); 5] = [
            ("link", ip.clone(), &["-oneline", "-brief", "link"]),
            ("route", ip.clone(), &["route", "show", "table", "all"]),
            (
                "route",
                ip.clone(),
                &["-6", "route", "show", "table", "all"],
            ),
            ("policy", ip, &["rule"]),
            ("rule", tools.bundled("nft"), listing),
        ];
        for (kind, program, arguments) in queries {
            for line in inside(program, arguments).lines() {
                let line = match kind {
                    "link" => line.split(['@', ' ']).next().unwrap_or_default(),
                    // A comment says how many elements a set has.
                    "rule" => line.split('#').next().unwrap_or_default().trim(),
                    _ => line.trim(),
                };
                // The kernel's own routes follow from links and their addresses.
                let follows = line.contains("proto kernel") || line.contains("table local");
                if !["", "}"].contains(&line) && !follows {
                    self.add(kind, &format!("{whose}: {}", steady(line)));
                }
            }
        }
    }

    fn mounts(&mut self, system: &System) {
        let path = format!("/proc/{}/mountinfo", system.namespace().init());
        let mounts = std::fs::read_to_string(path).unwrap_or_default();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if mount.contains(&system.directory().display().to_string()) {
                self.add("mount", mount);
            }
        }
    }

    fn control_groups(&mut self, system: &System) {
        let find = [
            "/sys/fs/cgroup",
            "-mindepth",
            "2",
            "-path",
            "*ums*",
            "-type",
            "d",
        ];
        let found = text(system.exec("find").args(find)).unwrap_or_default();
        for path in found.lines() {
            self.add("cgroup", path);
        }
    }

    fn files(&mut self, whose: &str, directory: &Path, depth: usize) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = format!("{whose}/{}", entry.file_name().to_string_lossy());
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory && depth < DEPTH_MAX {
                self.files(&name, &entry.path(), depth + 1);
            }
            self.add("file", &steady(&name));
        }
    }
}

/// What a process's descriptors lead to.
pub fn descriptors(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect()
}

/// Program and subcommand of a process; `None` for what only looks at the system, and the dead.
fn role_of(pid: i32) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&bytes).into_owned();
    let mut words = line.split('\0').filter(|word| !word.is_empty());
    let program = Path::new(words.next()?)
        .file_name()?
        .to_string_lossy()
        .into_owned();
    let what = words
        .find(|word| !word.starts_with('-'))
        .unwrap_or_default();
    match program.as_str() {
        "ums-agent" => Some(format!("ums-agent {what}")),
        "ums" => (what == "serve").then(|| "ums serve".to_owned()),
        "nsenter" | "ip" | "nft" | "find" | "tc" | "sh" => None,
        _ => Some(program),
    }
}

/// A name without what differs each time: ids, and ports that the kernel chose.
fn steady(name: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for character in name.chars().chain([' ']) {
        if character.is_ascii_hexdigit() || character == '-' {
            word.push(character);
            continue;
        }
        out.push_str(&steady_word(&word));
        word.clear();
        out.push(character);
    }
    out.trim_end().to_owned()
}

fn steady_word(word: &str) -> String {
    let is_id = word.len() >= 32 && word.chars().any(|character| character.is_ascii_digit());
    let is_port = word
        .parse()
        .is_ok_and(|number: u32| (EPHEMERAL_PORT..=u32::from(u16::MAX)).contains(&number));
    match (is_id, is_port) {
        (true, _) => "ID".to_owned(),
        (_, true) => "PORT".to_owned(),
        _ => word.to_owned(),
    }
}

fn without_numbers(link: &str) -> String {
    match link.split_once(":[") {
        Some((kind, inside)) if inside.starts_with(|first: char| first.is_ascii_digit()) => {
            kind.to_owned()
        }
        _ => steady(link),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_each_time_has_one_name() {
        let line = "images/0190f0f0-0000-7000-8000-000000000001.json : 10.88.0.1 . 41234 : 8080";
        assert_eq!(steady(line), "images/ID.json : 10.88.0.1 . PORT : 8080");
        assert_eq!(without_numbers("net:[4026531840]"), "net");
        assert_eq!(
            without_numbers("anon_inode:[eventfd]"),
            "anon_inode:[eventfd]"
        );
    }

    #[test]
    fn what_came_and_what_went_is_told() {
        let mut before = Inventory::default();
        before.add("file", "run/a");
        let mut now = Inventory::default();
        now.add("file", "run/b");
        let lines = now.since(&before).0;
        assert_eq!(
            lines,
            [
                "- file run/a (1 before, 0 now)",
                "+ file run/b (0 before, 1 now)"
            ]
        );
        assert!(now.since(&now).0.is_empty());
    }
}
