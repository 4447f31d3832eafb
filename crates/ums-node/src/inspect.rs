//! What a running service is made of, and what of it a checkpoint can't carry.
//!
//! Everything is read from `/proc` while the service runs, so it is a picture of one moment:
//! processes and descriptors that vanish meanwhile are passed over. CRIU has the last word; what is
//! found here is found before anything is frozen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind, ServiceFacts};
use ums_core::id::MigrationId;
use ums_core::specification::Specification;

mod descriptor;
mod eventfd;
mod files;
mod lease;
mod limits;
mod mapping;
mod parse;
mod place;
mod process;
mod renamed;
mod semaphore;
mod session;
mod socket;
mod state;
mod terminal;
#[cfg(test)]
mod test;
mod unix;
mod unmapped;
mod unseen;
mod unshared;

pub use files::{bytes as files_bytes, mapped_writable_files, shared_writable_files};
pub use unshared::over_limit;

/// Most processes that are looked at (the default `pid_max` of the kernel).
const PROCESSES_MAX: usize = 32_768;
/// Most obstacles that are named; the first is reason enough to refuse.
const OBSTACLES_MAX: usize = 64;
/// Most losses that are told.
const LOSSES_MAX: usize = 256;

/// How often, and how far apart, something is looked at that is over in a moment where all is well.
const PATIENCE: (u32, Duration) = (5, Duration::from_millis(20));

/// Takes a text apart as each of the kernel's files that a service can put words into.
#[doc(hidden)]
pub fn understand(text: &str) {
    let _ = parse::status(text);
    let _ = parse::mount_ids(text);
    let _ = parse::root_mount(text);
    let _ = parse::lease(text);
    let _ = parse::descriptor_info(text);
    parse::mappings(text).for_each(drop);
    let _ = parse::areas(text);
    drop(parse::regions(text));
    let _ = parse::fanotify_flags(text);
    let _ = parse::rollup(text, "Anonymous");
    let _ = parse::established(text);
    let of = parse::timers(text)
        .into_iter()
        .map(parse::Timer::cpu_time_of);
    of.for_each(drop);
    let _ = parse::is_pending(text, 5);
    let _ = parse::parent_and_session(text);
    let _ = parse::leads_terminal(text);
    let _ = parse::is_semaphore(text);
    let _ = parse::terminal_number(text);
    let _ = parse::is_temporary(text);
    let _ = parse::open_files_max(text);
    let _ = parse::kibibytes(text, "VmSize:");
    let _ = parse::exit_signal(text);
    let _ = parse::memory_policies(text).count();
    let _ = parse::with_queue(text, parse::Table::Netlink);
    let _ = parse::with_queue(text, parse::Table::Udp);
    let _ = parse::inode_of(text, "socket");
    let _ = descriptor::kernel_object(text);
    let _ = descriptor::character_device(text, (1, 3));
}

/// Why a service could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It has ended.
    #[error("the service's first process, {0}, is gone: the service has ended")]
    Gone(i32),
    /// A file of the kernel's could not be read.
    #[error("cannot read `{}`: the agent has to be root in the PID namespace above", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// More processes than are looked at.
    #[error("the service has more than {PROCESSES_MAX} processes: that many can't be moved")]
    TooManyProcesses,
    /// The sockets could not be asked for.
    #[error("cannot ask the kernel for the service's sockets")]
    Sockets(#[source] io::Error),
}

impl InspectError {
    fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }
}

/// What was seen of a running service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its processes, by their ids in the agent's PID namespace.
    pub pids: Vec<i32>,
    /// Number of threads.
    pub threads: u32,
    /// What a checkpoint of its memory has to carry, bytes.
    pub memory_bytes: u64,
    /// Bytes in its changed files and volumes.
    pub filesystem_bytes: u64,
    /// Established TCP connections.
    pub connections: u32,
    /// What can't be carried.
    pub obstacles: Vec<Obstacle>,
    /// What a move changes.
    pub losses: Vec<Loss>,
}

impl Seen {
    /// Together with what the agent knows, the facts that a preflight judges.
    pub fn facts(
        self,
        specification: Specification,
        migrating: Option<MigrationId>,
    ) -> ServiceFacts {
        ServiceFacts {
            specification,
            running: true,
            processes: u32::try_from(self.pids.len()).unwrap_or(u32::MAX),
            threads: self.threads,
            memory_bytes: self.memory_bytes,
            filesystem_bytes: self.filesystem_bytes,
            image_bytes: 0,
            connections: self.connections,
            obstacles: self.obstacles,
            losses: self.losses,
            migrating,
        }
    }
}

/// All processes of the service whose first process is `init`.
pub fn processes(init: i32) -> Result<Vec<i32>, InspectError> {
    let tree = process::tree(init)?;
    Ok(tree.into_iter().map(|process| process.pid).collect())
}

/// What a checkpoint of the memory of the service has to carry, bytes, whose first process is `init`; 0 once it is gone.
pub fn memory_bytes(init: i32) -> u64 {
    let pids = processes(init).unwrap_or_default();
    pids.into_iter().map(mapping::memory_bytes).sum()
}

/// Inspects the service whose first process is `init`; `directories` hold its changed files and
/// volumes.
pub fn inspect(init: i32, directories: &[&Path]) -> Result<Seen, InspectError> {
    let tree = process::tree(init)?;
    let mut seen = Seen {
        pids: tree.iter().map(|process| process.pid).collect(),
        threads: tree.iter().map(|process| process.threads).sum(),
        memory_bytes: tree
            .iter()
            .map(|process| mapping::memory_bytes(process.pid))
            .chain([unmapped::memory_bytes(&tree)])
            .sum(),
        filesystem_bytes: directories.iter().map(|dir| files::bytes(dir)).sum(),
        connections: socket::established(init)?,
        obstacles: process::obstacles(init, &tree)?,
        losses: semaphore::losses(init, &tree),
    };
    let mut sockets = BTreeMap::new();
    let mut deleted = place::Deleted::default();
    for process in &tree {
        let mounts = files::mounts(process.pid);
        let found = descriptor::obstacles(process, &mounts, &mut sockets, &mut deleted);
        seen.obstacles.extend(found);
        seen.obstacles.extend(state::obstacles(process));
        seen.obstacles.extend(limits::obstacles(process));
        seen.losses.extend(limits::losses(process));
        seen.losses.extend(eventfd::losses(process));
        seen.losses.extend(unseen::losses(process));
        seen.losses.extend(renamed::losses(process));
        seen.obstacles.extend(mapping::obstacles(process));
        seen.losses.extend(descriptor::temporary(process));
        if seen.obstacles.len() >= OBSTACLES_MAX {
            break;
        }
    }
    seen.obstacles.extend(state::root_directory(init));
    seen.obstacles.extend(state::watches(init, &tree));
    seen.obstacles.extend(state::sharing(&tree));
    seen.obstacles.extend(session::obstacles(&tree));
    seen.obstacles.extend(lease::obstacles(init, &tree));
    seen.losses.extend(state::losses(&tree));
    seen.losses.extend(unseen::of_all(init, &tree));
    seen.obstacles.extend(deleted.obstacles());
    seen.obstacles.extend(state::held_data(init, &sockets));
    seen.obstacles.extend(socket::signed(init, &sockets));
    let odd = socket::oddities(&tree);
    seen.obstacles.extend(socket::odd(&odd));
    seen.losses.extend(socket::losses(&odd));
    let (obstacles, losses) = unix::look(init, &sockets, directories)?;
    seen.obstacles.extend(obstacles);
    seen.losses.extend(losses);
    let (obstacles, losses) = terminal::look(&tree);
    seen.obstacles.extend(obstacles);
    seen.losses.extend(losses);
    deduplicate(&mut seen.obstacles);
    order(&mut seen.losses);
    Ok(seen)
}

/// Each once; where there are too many those that have to be accepted first.
fn order(losses: &mut Vec<Loss>) {
    losses.sort_by_key(|loss| (!loss.kind.needs_consent(), loss.clone()));
    losses.dedup();
    losses.truncate(LOSSES_MAX);
}

/// Children inherit descriptors: the same thing is named once for each process that holds it.
fn deduplicate(obstacles: &mut Vec<Obstacle>) {
    let mut known = BTreeSet::new();
    obstacles.retain(|obstacle| known.insert((obstacle.pid, obstacle.detail.clone())));
    obstacles.truncate(OBSTACLES_MAX);
}

fn obstacle(kind: ObstacleKind, pid: i32, detail: impl Into<String>) -> Obstacle {
    Obstacle {
        kind,
        pid,
        detail: detail.into(),
    }
}

fn loss(kind: LossKind, pid: i32, detail: impl Into<String>) -> Loss {
    Loss {
        kind,
        pid,
        detail: detail.into(),
    }
}

/// A file below `/proc/PID`; `None` once the process is gone.
fn proc_file(pid: i32, name: &str) -> Option<String> {
    let bytes = fs::read(proc_path(pid, name)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn proc_path(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// What is there each time that one looks.
fn lasting<T: Ord>(look: impl Fn() -> BTreeSet<T>) -> BTreeSet<T> {
    let (times, pause) = PATIENCE;
    let mut found = look();
    for _ in 1..times {
        if found.is_empty() {
            break;
        }
        thread::sleep(pause);
        let again = look();
        found.retain(|one| again.contains(one));
    }
    found
}
