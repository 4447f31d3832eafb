//! Two systems, a link between them, and the world their clients live in.
//!
//! ```text
//!            world (clients)
//!     10.77.1.2 |      | 10.77.2.2        not shaped
//!     10.77.1.1 |      | 10.77.2.1
//!            system a  system b
//!         10.77.0.1 ---- 10.77.0.2        shaped, 1 Gbps each way
//! ```
//!
//! The world reaches each system's address on the shaped link through its own link to that
//! system, so that clients do not take from the bandwidth that a migration has.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use ums_core::report::MigrationReport;

use crate::leftovers::{self, Marks, Snapshot};
use crate::namespace::{Layout, Namespace};
use crate::system::System;
use crate::tools::{Tools, run, wait_for};

/// Addresses of the two systems on the link between them.
const PEER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

/// Addresses of the two systems on their links to the world.
const DOOR: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 1, 1), Ipv4Addr::new(10, 77, 2, 1)];

/// Addresses of the world on its links to the two systems.
const WORLD: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 1, 2), Ipv4Addr::new(10, 77, 2, 2)];

/// The interface on the shaped link, in both systems.
pub const PEER_LINK: &str = "peer0";

/// What the shaper lets through at once: some packets of the largest size a virtual link has, so
/// that it never has to cut one, and small beside the smallest transfer measured.
const BURST: u32 = 256 * 1024;

/// How long a packet may wait in the shaper before it is dropped, as a full link would.
const QUEUE: &str = "20ms";

/// Longest wait for processes to be gone after they were killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What every id begins with.
pub(crate) const PREFIX: &str = "ums-testbed-";

/// What a testbed shall be like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Rate of the link between the systems in Mbit/s; `None` leaves it unshaped.
    pub rate_mbit: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rate_mbit: Some(1000),
        }
    }
}

/// Two systems and a world. Dropping it removes all of it.
#[derive(Debug)]
pub struct Testbed {
    /// System `a`.
    pub a: System,
    /// System `b`.
    pub b: System,
    /// Where clients live: reaches both systems.
    pub world: Namespace,
    tools: Tools,
    before: Snapshot,
    marks: Marks,
}

impl Testbed {
    /// Makes the systems and their links; nothing of ours runs in them yet.
    pub fn create(tools: &Tools, plan: &Settings) -> Result<Self> {
        Self::with_cgroups(tools, plan, Layout::Machine)
    }

    /// The same, with these cgroup hierarchies in both systems.
    pub fn with_cgroups(tools: &Tools, plan: &Settings, layout: Layout) -> Result<Self> {
        sweep();
        let id = new_id();
        let before = Snapshot::take(&tools.bundled("nft"));
        let directory = Directory::create(&id)?;
        let [a, b] =
            ["a", "b"].map(|name| System::create(tools, &id, directory.path(), name, layout));
        let (a, b) = (a?.at(PEER[0]), b?.at(PEER[1]));
        let world = Namespace::create(tools, &id, "world", &[], None, Layout::Machine)?;
        directory.keep();
        let marks = Marks::new(&id);
        let testbed = Self {
            a,
            b,
            world,
            tools: tools.clone(),
            before,
            marks,
        };
        testbed.link(plan).context("cannot join the systems")?;
        Ok(testbed)
    }

    /// What everything of this testbed bears in its name.
    pub fn id(&self) -> &str {
        &self.marks.id
    }

    /// Where the programs under test lie.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The testbed's own directory; it is removed with it.
    pub fn directory(&self) -> PathBuf {
        directory_of(self.id())
    }

    /// The system of that name.
    pub fn system(&self, name: &str) -> &System {
        if name == self.b.name() {
            &self.b
        } else {
            &self.a
        }
    }

    /// The world's address on its link to a system.
    pub fn world_ip(&self, system: &System) -> Ipv4Addr {
        WORLD[usize::from(system.name() == self.b.name())]
    }

    /// Makes certificates, starts both Coordinators and makes them known to each other.
    pub fn start_coordinators(&mut self) -> Result<()> {
        let authority = self.directory().join("ca");
        crate::system::introduce(&authority, [&mut self.a, &mut self.b])
    }

    /// Moves a service with `ums migrate` and returns its report, whatever the outcome.
    pub fn migrate(
        &self,
        from: &System,
        to: &System,
        service: &str,
        arguments: &[&str],
    ) -> Result<MigrationReport> {
        let mut all = vec!["migrate", service, "--to", to.name(), "--json"];
        all.extend(arguments);
        let output = from.ums(&all)?;
        let (said, object) = (String::from_utf8_lossy(&output.stderr), &output.stdout);
        serde_json::from_slice(object).with_context(|| {
            let object = String::from_utf8_lossy(object);
            format!(
                "`ums migrate` gave no report ({}): {object}\n{said}",
                output.status
            )
        })
    }

    /// Gives the link between the systems another rate, Mbit/s.
    pub fn shape(&self, rate_mbit: u32) -> Result<()> {
        for system in [&self.a, &self.b] {
            shape(system.namespace(), rate_mbit)?;
        }
        Ok(())
    }

    /// Ends and removes everything; returns what is left all the same.
    pub fn remove(mut self) -> Result<Vec<String>> {
        self.clean()?;
        let nft = self.tools.bundled("nft");
        let left = || leftovers::leftovers(&self.before, &self.marks, &nft);
        // A process that is on its way out may show once more; what stays is told.
        let gone = wait_for("nothing left", PATIENCE, || left().is_empty().then_some(()));
        Ok(if gone.is_ok() { Vec::new() } else { left() })
    }

    fn clean(&mut self) -> Result<()> {
        for namespace in [self.a.namespace(), self.b.namespace(), &self.world] {
            self.marks.remember(&namespace.members());
        }
        leftovers::thaw(self.id());
        self.a.end()?;
        self.b.end()?;
        self.world.end()?;
        // What was frozen while it was being killed.
        leftovers::thaw(self.id());
        let marks = &self.marks;
        // If they stay, `leftovers` names them: there is more to clean up.
        let _ = wait_for("the end of all processes", PATIENCE, || {
            leftovers::processes(marks).is_empty().then_some(())
        });
        leftovers::remove_cgroups(self.id());
        remove_directory(&directory_of(self.id()))
    }

    fn link(&self, plan: &Settings) -> Result<()> {
        let [a, b] = [self.a.namespace(), self.b.namespace()];
        join((a, PEER_LINK, PEER[0]), (b, PEER_LINK, PEER[1]))?;
        for (index, system) in [a, b].into_iter().enumerate() {
            if let Some(rate) = plan.rate_mbit {
                shape(system, rate)?;
            }
            let door = format!("to-{}", system.name());
            join(
                (&self.world, &door, WORLD[index]),
                (system, "world0", DOOR[index]),
            )?;
            let (to, via) = (format!("{}/32", PEER[index]), DOOR[index].to_string());
            run(self
                .world
                .command("ip")
                .args(["route", "add", &to, "via", &via]))?;
        }
        Ok(())
    }
}

/// Shapes what a system sends to the other one.
fn shape(system: &Namespace, rate_mbit: u32) -> Result<()> {
    let mut tc = system.command("tc");
    tc.args(["qdisc", "replace", "dev", PEER_LINK, "root", "tbf", "rate"]);
    // As much as 2 ms of it, so that a tick of the kernel's clock does not bound the rate.
    let burst = (rate_mbit * 250).max(BURST);
    tc.args([
        &format!("{rate_mbit}mbit"),
        "burst",
        &burst.to_string(),
        "latency",
        QUEUE,
    ]);
    run(&mut tc).map(drop)
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("cannot remove the testbed {}: {error:#}", self.id());
        }
    }
}

/// The directory of the testbed with this id.
pub fn directory_of(id: &str) -> PathBuf {
    std::env::temp_dir().join(id)
}

/// One end of a link: where, the interface's name, its address.
type End<'a> = (&'a Namespace, &'a str, Ipv4Addr);

/// Makes a virtual link whose ends exist nowhere else, not even for a moment.
fn join(near: End<'_>, far: End<'_>) -> Result<()> {
    let mut link = Command::new("nsenter");
    link.args(["--target", &near.0.init().to_string(), "--net", "--"]);
    link.args([
        "ip", "link", "add", near.1, "type", "veth", "peer", "name", far.1,
    ]);
    run(link.args(["netns", &far.0.init().to_string()]))?;
    for (namespace, name, address) in [near, far] {
        run(namespace
            .command("ip")
            .args(["addr", "add", &format!("{address}/30"), "dev", name]))?;
        run(namespace.command("ip").args(["link", "set", name, "up"]))?;
    }
    Ok(())
}

/// Unlike any other on this machine, now and earlier; short, because it is part of socket paths.
fn new_id() -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!(
        "{PREFIX}{:x}-{:x}-{count}",
        now.as_millis(),
        std::process::id()
    )
}

/// Removes testbeds whose maker was killed before it could.
fn sweep() {
    let entries = std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten();
    for id in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let maker = maker_of(&id);
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            abandon(&id);
        }
    }
}

/// Ends and removes a testbed knowing no more than its id; for when there is no time to drop it.
pub fn abandon(id: &str) {
    let marks = Marks::new(id);
    let gone = wait_for("the end of all processes", PATIENCE, || {
        leftovers::thaw(id);
        let left = leftovers::processes(&marks);
        for pid in left.keys() {
            let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        left.is_empty().then_some(())
    });
    leftovers::remove_cgroups(id);
    if let Err(error) = gone.and_then(|()| remove_directory(&directory_of(id))) {
        eprintln!("cannot remove the testbed {id}: {error:#}");
    }
}

/// Abandons this process's testbeds when it is told to end by a signal.
///
/// To be called before the first thread is started: the others inherit that they do not take
/// these signals.
pub fn remove_on_signal() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("{signal}: removing what was made");
        let entries = std::fs::read_dir(std::env::temp_dir())
            .into_iter()
            .flatten()
            .flatten();
        let ids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        ids.filter(|id| maker_of(id) == Some(std::process::id()))
            .for_each(|id| abandon(&id));
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

/// The process that made the testbed with this id; `None` when it is no testbed's id.
fn maker_of(id: &str) -> Option<u32> {
    let mut parts = id.strip_prefix(PREFIX)?.split('-');
    u32::from_str_radix(parts.nth(1)?, 16).ok()
}

/// A directory that goes away unless it is kept: nothing may stay when a system can't be made.
struct Directory(Option<PathBuf>);

impl Directory {
    fn create(id: &str) -> Result<Self> {
        let path = directory_of(id);
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(Some(path)))
    }

    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new("/nonexistent"))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|path| remove_directory(&path)) {
            eprintln!("{error:#}");
        }
    }
}

fn remove_directory(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    // Deleting through a mount would delete what is mounted.
    let mounted = mounts
        .lines()
        .any(|line| line.contains(&*path.to_string_lossy()));
    ensure!(
        !mounted,
        "something is still mounted below {}",
        path.display()
    );
    std::fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_maker_and_no_two_are_alike() {
        let (one, other) = (new_id(), new_id());
        assert_ne!(one, other);
        assert_eq!(maker_of(&one), Some(std::process::id()));
        assert_eq!(maker_of("something-else"), None);
    }
}
