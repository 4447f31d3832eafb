//! States of processes that CRIU refuses: known from `/proc` and `kcmp(2)` before anything is frozen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::signal::Signal;
use ums_checkpoint::carry;
use ums_checkpoint::kcmp::{self, Shared};
use ums_checkpoint::watches;
use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind};

use super::process::Process;
use super::{lasting, loss, obstacle, parse, proc_file, proc_path};

/// Descriptors that CRIU opens inside of a process while it looks at it.
const DESCRIPTORS_NEEDED: u64 = 3;

/// What one process is.
pub(super) fn obstacles(process: &Process) -> Vec<Obstacle> {
    let (pid, inner) = (process.pid, process.inner);
    let mut found = Vec::new();
    if process.main_thread_ended() {
        let what = format!("{} threads of it go on", process.threads - 1);
        found.push(obstacle(ObstacleKind::MainThread, inner, what));
    }
    let program = fs::read_link(proc_path(pid, "exe")).unwrap_or_default();
    let program = program.to_string_lossy();
    if program.starts_with("/memfd:") {
        found.push(obstacle(ObstacleKind::MemoryProgram, inner, program));
    }
    found.extend(timers(process));
    if let Some(signal) = trap_pending(process) {
        found.push(obstacle(ObstacleKind::PendingTrap, inner, signal));
    }
    found.extend(descriptors_are_short(process));
    found.extend(thread_apart(process));
    found
}

/// POSIX timers that are bound to a thread in a way that CRIU can't make again: it makes all timers of a
/// process in its first thread (`criu/pie/restorer.c`, `create_posix_timers`), and looks for the thread
/// that one signals among those that live.
fn timers(process: &Process) -> Vec<Obstacle> {
    let timers = parse::timers(&proc_file(process.pid, "timers").unwrap_or_default());
    let lives = |tid: i32| proc_path(process.pid, &format!("task/{tid}")).exists();
    let gone = |timer: &&parse::Timer| timer.thread.is_some_and(|thread| !lives(thread));
    let foreign = |timer: &&parse::Timer| match timer.cpu_time_of() {
        Some(0) => process.threads > 1,
        Some(inner) => inner != process.inner && !process.has_thread(inner),
        None => false,
    };
    let mut found = Vec::new();
    if timers.iter().any(|timer| gone(&timer)) {
        found.push("its signal goes to a thread that has ended");
    }
    if timers.iter().any(|timer| foreign(&timer)) {
        found.push(
            "it counts the CPU time of one thread (CLOCK_THREAD_CPUTIME_ID), or of another process",
        );
    }
    let found = found.into_iter();
    found
        .map(|what| obstacle(ObstacleKind::ThreadTimer, process.inner, what))
        .collect()
}

/// A SIGTRAP that a thread has not taken yet: CRIU's own code inside of it works by this signal (compel
/// `infect.c`, `compel_wait_task`). One that is not blocked is taken in a moment: looked at again.
fn trap_pending(process: &Process) -> Option<String> {
    let pending = lasting(|| {
        let threads = fs::read_dir(proc_path(process.pid, "task"));
        let threads = threads.into_iter().flatten().flatten();
        let pending = threads.filter(|thread| {
            let status = fs::read_to_string(thread.path().join("status"));
            status.is_ok_and(|text| parse::is_pending(&text, Signal::SIGTRAP as u32))
        });
        pending.map(|thread| thread.file_name()).collect()
    });
    let threads = pending.len();
    (threads > 0).then(|| format!("{threads} of its {} threads", process.threads))
}

/// CRIU looks at the first thread's places and descriptors, and gives them to all.
fn thread_apart(process: &Process) -> Option<Obstacle> {
    if process.threads < 2 || process.main_thread_ended() {
        return None;
    }
    let entries = fs::read_dir(proc_path(process.pid, "task")).into_iter();
    let tids = entries
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_apart = |tid: &i32| {
        let differ = |what| kcmp::differ(process.pid, *tid, what);
        differ(Shared::Places) || differ(Shared::Descriptors)
    };
    let apart = tids.filter(is_apart).count();
    let what = format!("{apart} of its {} threads", process.threads);
    (apart > 0).then(|| obstacle(ObstacleKind::ThreadApart, process.inner, what))
}

/// What the first process alone may not be.
pub(super) fn root_directory(init: i32) -> Option<Obstacle> {
    let root = fs::read_link(proc_path(init, "root")).ok()?;
    let what = root.to_string_lossy().into_owned();
    (what != "/").then(|| obstacle(ObstacleKind::RootDirectory, 1, what))
}

/// Watches of files that have lost their names.
pub(super) fn watches(init: i32, tree: &[Process]) -> Option<Obstacle> {
    let pids: Vec<i32> = tree.iter().map(|process| process.pid).collect();
    let nameless = watches::nameless(&pids, init).ok()?;
    let what = format!("{nameless} of them");
    (nameless > 0).then(|| obstacle(ObstacleKind::WatchedFile, 1, what))
}

/// CRIU's own code inside of the process opens some descriptors.
fn descriptors_are_short(process: &Process) -> Option<Obstacle> {
    let limit = parse::open_files_max(&proc_file(process.pid, "limits")?)?;
    let open = super::descriptor::numbers(process.pid);
    let numbers = open.iter().filter_map(|number| number.parse::<u64>().ok());
    let below = numbers.filter(|number| *number < limit).count() as u64;
    let what = format!("{below} of {limit} are open, and {DESCRIPTORS_NEEDED} more are needed");
    (limit - below.min(limit) < DESCRIPTORS_NEEDED)
        .then(|| obstacle(ObstacleKind::DescriptorLimit, process.inner, what))
}

/// What processes have in common that CRIU makes for each alone (its `dump_task_kobj_ids` refuses it).
/// A `vfork` is over in a moment, mostly: looked at again.
pub(super) fn sharing(tree: &[Process]) -> Vec<Obstacle> {
    let pids: Vec<i32> = tree.iter().map(|process| process.pid).collect();
    let inner: BTreeMap<i32, i32> = tree
        .iter()
        .map(|process| (process.pid, process.inner))
        .collect();
    let mut found = Vec::new();
    for (what, kind) in [
        (Shared::Memory, ObstacleKind::SharedAddressSpace),
        (Shared::Places, ObstacleKind::SharedPlaces),
    ] {
        for (other, pid) in lasting(|| kcmp::pairs(&pids, what).into_iter().collect()) {
            let detail = format!("with process {}", inner[&other]);
            found.push(obstacle(kind, inner[&pid], detail));
        }
    }
    found
}

/// What threads have of what CRIU alone hands on to those that it makes (see [`carry::differing`]).
pub(super) fn losses(tree: &[Process]) -> Vec<Loss> {
    let of = |process: &Process| carry::Process {
        pid: process.pid,
        inner: process.inner,
    };
    let all: Vec<carry::Process> = tree.iter().map(of).collect();
    let lost = all.first().map(|first| carry::differing(*first, &all));
    let lost = lost.into_iter().flatten().map(Loss::from);
    lost.chain(unread_events(&all)).collect()
}

/// Events of inotify that wait to be read: longer than a moment.
fn unread_events(all: &[carry::Process]) -> Vec<Loss> {
    let unread = lasting(|| {
        carry::unread_events(all)
            .unwrap_or_default()
            .into_iter()
            .collect()
    });
    let told = unread.into_iter().map(|(pid, number)| {
        let what = format!("events behind descriptor {number} (inotify) that it does not read");
        loss(LossKind::UnreadEvents, pid, what)
    });
    told.collect()
}

/// Data that CRIU can't take out of sockets. `sockets`: inode number → process id in the service.
pub(super) fn held_data(init: i32, sockets: &BTreeMap<u64, i32>) -> Vec<Obstacle> {
    let read = |name: &str| proc_file(init, name).unwrap_or_default();
    let own = |inodes: Vec<u64>| -> BTreeSet<u64> {
        let own = inodes.into_iter();
        own.filter(|inode| sockets.contains_key(inode)).collect()
    };
    let unread = lasting(|| {
        let unread = parse::with_queue(&read("net/netlink"), parse::Table::Netlink);
        let mut unread = own(unread);
        if !unread.is_empty() {
            // What our own devices have caused is taken out in the freeze.
            unread.retain(|inode| !is_only_ours(init, *inode));
        }
        unread
    });
    let corked = lasting(|| {
        let texts = [read("net/udp"), read("net/udp6"), read("net/udplite")];
        let found = texts
            .iter()
            .flat_map(|text| parse::with_queue(text, parse::Table::Udp));
        own(found.collect())
    });
    let unread = unread.into_iter().map(|inode| {
        let what = "netlink socket with messages that it has not read";
        obstacle(ObstacleKind::UnreadMessages, sockets[&inode], what)
    });
    let corked = corked.into_iter().map(|inode| {
        let what = "UDP socket that holds data back (UDP_CORK, MSG_MORE)";
        obstacle(ObstacleKind::HeldData, sockets[&inode], what)
    });
    unread.chain(corked).collect()
}

/// Whether what was not read from a netlink socket is about devices of ours.
fn is_only_ours(init: i32, inode: u64) -> bool {
    let places = super::unix::places(init).unwrap_or_default();
    let place = places.get(&inode);
    place.is_some_and(|place| carry::is_only_ours(place.pid, place.fd))
}
