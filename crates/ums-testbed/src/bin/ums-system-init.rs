//! PID 1 of a system of the testbed: it mounts what is the system's own, reaps what is orphaned,
//! and ends, taking everything in its PID namespace along, when whoever started it is gone.
//!
//! `ums-system-init [DIRECTORY…] [unified] [cgroup:PATH]` mounts a tmpfs on each directory, mounts the
//! unified cgroup hierarchy alone where others may be (`unified`), lets the group at PATH look like
//! the root of every cgroup hierarchy, writes `ready` to standard output, and lives until its
//! standard input is closed.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> ExitCode {
    match init() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("ums-system-init: {error}");
            ExitCode::FAILURE
        }
    }
}

fn init() -> Result<std::convert::Infallible, std::io::Error> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    // Blocked before any thread starts, so that no thread takes the signal from the wait below.
    children.thread_block()?;
    for argument in std::env::args().skip(1) {
        match argument.strip_prefix("cgroup:") {
            Some(group) => make_cgroup_root(group)?,
            None if argument == "unified" => mount_unified()?,
            None => mount_tmpfs(&argument)?,
        }
    }
    std::thread::spawn(end_with_starter);
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        while reap()? {}
        children.wait()?;
    }
}

fn mount_tmpfs(directory: &str) -> std::io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(
        Some("tmpfs"),
        directory,
        Some("tmpfs"),
        flags,
        Some("mode=0755"),
    )?)
}

/// Leaves nothing at the place of cgroups but the unified hierarchy, as on a host that has no other.
fn mount_unified() -> std::io::Result<()> {
    const CGROUPS: &str = "/sys/fs/cgroup";
    let none = None::<&str>;
    // What is detached with it is detached here alone.
    umount2(CGROUPS, MntFlags::MNT_DETACH)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(
        Some("cgroup2"),
        CGROUPS,
        Some("cgroup2"),
        flags,
        none,
    )?)
}

/// Binds the group over the root of each hierarchy, so that two systems that use the same paths
/// do not meet.
fn make_cgroup_root(group: &str) -> std::io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let hierarchies = mounts.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        back.starts_with("cgroup")
            .then(|| front.split(' ').nth(4))
            .flatten()
    });
    for root in hierarchies {
        let mut path = PathBuf::from(root);
        for part in group.split('/').filter(|part| !part.is_empty()) {
            let above = path.clone();
            path.push(part);
            make_cgroup(&above, &path)?;
        }
        mount(
            Some(&path),
            root,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
    }
    Ok(())
}

/// Makes one group. A version 1 cpuset takes no process until it has processors and memory nodes.
fn make_cgroup(above: &Path, path: &Path) -> std::io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => made?,
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (above.join(file), path.join(file));
        // The unified hierarchy's files of that name are empty and need nothing.
        if from.exists() && to.exists() {
            let value = std::fs::read_to_string(from)?;
            if !value.trim().is_empty() {
                std::fs::write(to, value)?;
            }
        }
    }
    Ok(())
}

/// The end of standard input is the end of the process that holds its other end, however it died.
fn end_with_starter() {
    let mut buffer = [0; 64];
    while std::io::stdin()
        .read(&mut buffer)
        .is_ok_and(|count| count > 0)
    {}
    std::process::exit(0);
}

/// Takes one dead child; false when there is none.
fn reap() -> Result<bool, Errno> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => Ok(false),
        Ok(_) => Ok(true),
        Err(errno) => Err(errno),
    }
}
