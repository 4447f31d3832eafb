//! The container itself: what holds it, how it is first started, how it ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::protocol::{KeeperConfig, Phase};
use super::server::Shared;
use crate::cgroup::Cgroup;
use crate::freezer::Freezer;

/// A log is cut back to nothing when it has grown to this, bytes: a chatty service must not fill
/// the disk of a node.
const LOG_LEN_MAX: u64 = 16 << 20;

/// What exists of a container besides its processes.
pub(super) struct Container {
    pub(super) netns: OwnedFd,
    pub(super) cgroup: Cgroup,
    /// Write ends of standard output and standard error, for runc or CRIU to hand on.
    pub(super) stdio: [OwnedFd; 2],
}

impl Container {
    /// Mounts the overlay, makes the network namespace, the control groups and the pipes.
    pub(super) fn prepare(config: &KeeperConfig) -> io::Result<Self> {
        let none: Option<&str> = None;
        // Unmounts on the host go on reaching us, our mounts never reach the host.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        let shm_options = format!("mode=1777,size={}", config.shm_bytes);
        let shm_flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("shm"),
            &config.shm,
            Some("tmpfs"),
            shm_flags,
            Some(&*shm_options),
        )?;
        let cgroup = Cgroup::at(&config.cgroup)?;
        cgroup.create(config.memory_limit_bytes, &config.devices)?;
        let stdio = [log_pipe(&config.log)?, log_pipe(&config.log)?];
        Ok(Self {
            netns: new_netns()?,
            cgroup,
            stdio,
        })
    }

    /// Removes the control groups; the rest goes with the keeper's process.
    pub(super) fn remove(&self) -> Result<(), String> {
        self.cgroup
            .remove()
            .map_err(|error| format!("control groups can't be removed: {error}"))
    }

    pub(super) fn freezer(&self) -> Result<Freezer, String> {
        Freezer::of(&self.cgroup).map_err(|error| format!("no freezer: {error}"))
    }

    /// CRIU's names of the two output pipes.
    pub(super) fn stdio_names(&self) -> io::Result<Vec<String>> {
        let name = |fd: &OwnedFd| Ok(format!("pipe:[{}]", nix::sys::stat::fstat(fd)?.st_ino));
        self.stdio.iter().map(name).collect()
    }

    /// The network namespace's number, as CRIU's `net[…]` wants it.
    pub(super) fn netns_inode(&self) -> io::Result<u64> {
        Ok(nix::sys::stat::fstat(&self.netns)?.st_ino)
    }
}

/// Mounts the overlay. Its upper layer must not be written by anybody else from now on (kernel
/// `filesystems/overlayfs.rst`, "Changes to underlying filesystems"), so this comes last before
/// the processes do.
pub(super) fn mount_root(config: &KeeperConfig) -> Result<(), String> {
    let none: Option<&str> = None;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        config.lower.display(),
        config.upper.display(),
        config.work.display()
    );
    let flags = MsFlags::empty();
    mount(
        Some("overlay"),
        &config.merged,
        Some("overlay"),
        flags,
        Some(&*options),
    )
    .and_then(|()| mount(none, &config.merged, none, MsFlags::MS_PRIVATE, none))
    .map_err(|errno| {
        format!(
            "overlay can't be mounted on {}: {errno}",
            config.merged.display()
        )
    })
}

/// Undoes [`mount_root`], so that a failed attempt can be repeated.
pub(super) fn unmount_root(config: &KeeperConfig) {
    // Not mounted is as good as unmounted.
    let _ = umount2(&config.merged, MntFlags::MNT_DETACH);
}

/// A network namespace that this process's descriptor keeps alive, with nothing in it.
fn new_netns() -> io::Result<OwnedFd> {
    // In a thread of its own: the namespace is a thread's, and this process stays where it is.
    let thread = std::thread::spawn(|| -> io::Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    });
    thread
        .join()
        .map_err(|_| io::Error::other("network namespace thread"))?
}

/// The write end of a pipe whose other end is copied into the log.
fn log_pipe(log: &Path) -> io::Result<OwnedFd> {
    let (mut reader, writer) = io::pipe()?;
    let mut log = OpenOptions::new().create(true).append(true).open(log)?;
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(len @ 1..) = reader.read(&mut buffer) {
            if log
                .metadata()
                .is_ok_and(|metadata| metadata.len() > LOG_LEN_MAX)
            {
                let _ = log.set_len(0);
            }
            // A log that can't be written must not stop the service.
            let _ = log.write_all(&buffer[..len]);
        }
    });
    Ok(writer.into())
}

/// Creates and starts the container with runc.
pub(super) fn start(shared: &Arc<Shared>, bundle: &Path) -> Result<(), String> {
    if shared.state().phase != Phase::Created {
        return Ok(());
    }
    mount_root(&shared.config)?;
    let pid_file = bundle.join("init.pid");
    let root = bundle.join("runc");
    let id = "service";
    let pid_arg = pid_file.to_string_lossy().into_owned();
    let bundle_arg = bundle.to_string_lossy().into_owned();
    let create = [
        "create",
        "--bundle",
        &bundle_arg,
        "--pid-file",
        &pid_arg,
        id,
    ];
    runc(shared, &root, &create)
        .and_then(|()| runc(shared, &root, &["start", id]))
        .inspect_err(|_| {
            let _ = kill_all(shared);
            unmount_root(&shared.config);
        })?;
    let pid = fs::read_to_string(&pid_file).map_err(|error| error.to_string())?;
    let pid = pid
        .trim()
        .parse()
        .map_err(|_| "runc wrote no process id".to_owned())?;
    // From here on the container is ours alone: runc's record of it would only grow stale.
    let _ = fs::remove_dir_all(&root);
    let _ = fs::remove_file(&pid_file);
    watch(shared, pid);
    shared.update(|state| state.phase = Phase::Running);
    Ok(())
}

fn runc(shared: &Shared, root: &Path, args: &[&str]) -> Result<(), String> {
    let log = root.with_extension("log");
    let [out, err] = &shared.container.stdio;
    let clone = |fd: &OwnedFd| {
        fd.try_clone()
            .map(Stdio::from)
            .map_err(|error| error.to_string())
    };
    let mut path = std::ffi::OsString::from(&shared.config.bundle_bin);
    path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
    let status = Command::new(shared.config.bundle_bin.join("runc"))
        .arg("--root")
        .arg(root)
        .arg("--log")
        .arg(&log)
        .args(args)
        .env_clear()
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(clone(out)?)
        .stderr(clone(err)?)
        .status()
        .map_err(|error| format!("runc can't be started: {error}; is the C/R bundle there?"))?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    if status.success() {
        return Ok(());
    }
    Err(format!(
        "runc {} failed: {}",
        args[0],
        said.lines().last().unwrap_or("it said nothing")
    ))
}

/// Remembers the init and notes its end.
pub(super) fn watch(shared: &Arc<Shared>, pid: i32) {
    shared.update(|state| state.init_pid = Some(pid));
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let code = loop {
            match waitpid(Pid::from_raw(pid), None) {
                Ok(WaitStatus::Exited(_, code)) => break code,
                Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(_) => break -1,
            }
        };
        shared.update(|state| {
            state.phase = Phase::Dead { code };
            state.init_pid = None;
        });
    });
}

/// Kills the container, frozen, held or running, and waits until its init is gone.
pub(super) fn kill(shared: &Arc<Shared>) -> Result<(), String> {
    let held = shared.update(|state| {
        let held = matches!(state.phase, Phase::Held | Phase::Restoring);
        if held {
            state.decision = Some(false);
        }
        held
    });
    if held {
        // CRIU is waiting for our answer: its veto kills what it has restored.
        shared.wait_for(|state| {
            (!matches!(state.phase, Phase::Held | Phase::Restoring)).then_some(())
        });
    }
    kill_all(shared)?;
    shared.wait_for(|state| state.init_pid.is_none().then_some(()));
    Ok(())
}

fn kill_all(shared: &Shared) -> Result<(), String> {
    let freezer = shared.container.freezer()?;
    match freezer.kill() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("the container can't be killed: {error}"))
        }
        _ => Ok(()),
    }
}

/// A borrowed number, for CRIU's messages, which carry our descriptors by number.
pub(super) fn raw(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}
