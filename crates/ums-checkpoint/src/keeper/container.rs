//! The container itself: what holds it, how it is first started, how it ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::protocol::{KeeperConfig, Phase};
use super::server::Shared;
use super::{adopted, log, place};
use crate::cgroup::Cgroup;
use crate::criu::watch;
use crate::freezer::Freezer;
use crate::loopback::{Hold, Holder, What};

/// How long a start is waited for by whoever wants the container killed: runc takes a part of a second.
const START_MAX: Duration = Duration::from_secs(30);

/// The exit code of an init whose code nobody tells.
const UNKNOWN_CODE: i32 = -1;

/// What exists of a container besides its processes.
pub(super) struct Container {
    netns: OwnedFd,
    cgroup: Cgroup,
    /// What a container runtime has made instead.
    given: OnceLock<Given>,
    /// Write ends of standard output and standard error, for runc or CRIU to hand on; none where a container
    /// runtime has them.
    pub(super) stdio: Vec<OwnedFd>,
    /// CRIU's names of these, or of what an engine has made in their place.
    pub(super) stdio_names: Vec<String>,
    loopback: Holder,
}

/// What a container runtime makes of a container.
pub(super) struct Given {
    pub(super) cgroup: Cgroup,
    /// Its network namespace, where it is not the keeper's.
    pub(super) netns: Option<OwnedFd>,
}

impl Container {
    /// Makes the network namespace, the pipes, the tmpfs for shared memory and the control groups.
    /// When it fails no control group is left of it.
    pub(super) fn prepare(config: &KeeperConfig) -> io::Result<Self> {
        let none: Option<&str> = None;
        // Unmounts on the host go on reaching us, our mounts never reach the host.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        if let Some(of) = &config.adopted {
            return Ok(Self {
                netns: adopted::netns(of)?,
                cgroup: Cgroup::at(&config.cgroup)?,
                given: OnceLock::new(),
                stdio: Vec::new(),
                stdio_names: of.stdio.to_vec(),
                loopback: Holder::default(),
            });
        }
        let shm_options = format!("mode=1777,size={}", config.shm_bytes);
        let shm_flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("shm"),
            &config.shm,
            Some("tmpfs"),
            shm_flags,
            Some(&*shm_options),
        )?;
        if config.placed {
            return Ok(Self {
                netns: new_netns()?,
                cgroup: Cgroup::at(&config.cgroup)?,
                given: OnceLock::new(),
                stdio: Vec::new(),
                stdio_names: Vec::new(),
                loopback: Holder::default(),
            });
        }
        let netns = new_netns()?;
        let stdio = log::start(&config.log_pump, &config.log)?;
        let cgroup = Cgroup::at(&config.cgroup)?;
        let name = |fd: &OwnedFd| Ok(format!("pipe:[{}]", nix::sys::stat::fstat(fd)?.st_ino));
        let stdio_names = stdio.iter().map(name).collect::<io::Result<_>>()?;
        // Last: it has a name, the rest goes with this process.
        cgroup.create(config.memory_limit_bytes, &config.devices)?;
        Ok(Self {
            netns,
            cgroup,
            given: OnceLock::new(),
            stdio: stdio.into(),
            stdio_names,
            loopback: Holder::default(),
        })
    }

    /// Takes over what a container runtime has made. Only once: it is not exchanged for another.
    pub(super) fn give(&self, given: Given) -> Result<(), String> {
        let again =
            |_| "a container was made for this service before: it takes a new keeper".to_owned();
        self.given.set(given).map_err(again)
    }

    /// Its control groups; before a container runtime has made them, some that are not there.
    pub(super) fn cgroup(&self) -> &Cgroup {
        self.given.get().map_or(&self.cgroup, |given| &given.cgroup)
    }

    /// Its network namespace.
    pub(super) fn netns(&self) -> &OwnedFd {
        let given = self.given.get().and_then(|given| given.netns.as_ref());
        given.unwrap_or(&self.netns)
    }

    /// Removes the control groups that it has made; the rest goes with the keeper's process.
    pub(super) fn remove(&self) -> Result<(), String> {
        self.cgroup
            .remove()
            .map_err(|error| format!("control groups can't be removed: {error}"))
    }

    /// Holds what the service sends to itself, and in a dump what its connections send.
    pub(super) fn hold(&self, what: What) -> Result<Hold<'_>, String> {
        let held = self.loopback.hold(self.netns().as_fd(), what);
        held.map_err(|error| {
            format!(
                "what the service sends to itself can't be held: {error}; it takes Linux 5.12 or later with \
                 nf_tables (`modprobe nf_tables`)"
            )
        })
    }

    pub(super) fn freezer(&self) -> Result<Freezer, String> {
        Freezer::of(self.cgroup()).map_err(|error| format!("no freezer: {error}"))
    }

    /// The network namespace's number, as CRIU's `net[…]` wants it.
    pub(super) fn netns_inode(&self) -> io::Result<u64> {
        Ok(nix::sys::stat::fstat(self.netns())?.st_ino)
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

/// Creates and starts the container with runc. One that was started before is left as it is.
pub(super) fn start(shared: &Arc<Shared>, bundle: &Path) -> Result<(), String> {
    if shared.config.placed {
        return Err("a container runtime starts it, and not its keeper".to_owned());
    }
    let begins = shared.wait_for(|state| {
        let begins = state.phase == Phase::Created;
        (!state.starting).then(|| {
            state.starting = begins;
            begins
        })
    });
    if !begins {
        return Ok(());
    }
    let started = start_created(shared, bundle);
    shared.update(|state| state.starting = false);
    started
}

fn start_created(shared: &Arc<Shared>, bundle: &Path) -> Result<(), String> {
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
    let begun = runc(shared, &root, &create)
        .and_then(|()| confine(shared, &pid_file))
        .and_then(|pid| runc(shared, &root, &["start", id]).map(|()| pid));
    // From here on the container is ours alone: runc's record of it would only grow stale.
    let _ = fs::remove_dir_all(&root);
    let _ = fs::remove_file(&pid_file);
    let pid = begun.inspect_err(|_| {
        let _ = kill_all(shared);
        unmount_root(&shared.config);
    })?;
    begin(shared, pid);
    Ok(())
}

/// Makes the confinement of a container that runc has created, and not started yet, what it will be
/// after a restore: the same control groups, and no device but ours. runc has its own list, which
/// depends on its version (`/dev/net/tun` is in some of them), in place of what was there before.
fn confine(shared: &Shared, pid_file: &Path) -> Result<i32, String> {
    let pid = fs::read_to_string(pid_file).map_err(|error| error.to_string())?;
    let pid: i32 = pid
        .trim()
        .parse()
        .map_err(|_| "runc wrote no process id".to_owned())?;
    let cgroup = shared.container.cgroup();
    let confined = cgroup
        .enter(pid.unsigned_abs())
        .and_then(|()| cgroup.confine(&shared.config.devices));
    confined
        .map(|()| pid)
        .map_err(|error| format!("the container can't be confined: {error}"))
}

fn runc(shared: &Shared, root: &Path, args: &[&str]) -> Result<(), String> {
    let log = root.with_extension("log");
    let [out, err] = &shared.container.stdio[..] else {
        return Err("its keeper has no log".to_owned());
    };
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

/// Notes that the container runs, with this init, and later that the init has ended.
///
/// In this order: an init that ends at once must not be noted as running after its end.
pub(super) fn begin(shared: &Arc<Shared>, pid: i32) {
    shared.update(|state| {
        state.init_pid = Some(pid);
        state.phase = Phase::Running;
    });
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let code = match shared.config.placed {
            false => collect(pid),
            // Whoever made the container is told, and tells it.
            true => {
                let _ = watch::wait(pid);
                UNKNOWN_CODE
            }
        };
        shared.update(|state| {
            state.phase = Phase::Dead { code };
            state.init_pid = None;
        });
    });
}

/// Waits for a child, and gives its exit code, or 128 plus the signal.
fn collect(pid: i32) -> i32 {
    loop {
        match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return UNKNOWN_CODE,
        }
    }
}

/// Kills the container, frozen, held or running, and waits until its init is gone. One that is being
/// started is waited for, since what runc has begun would else be left.
pub(super) fn kill(shared: &Arc<Shared>) -> Result<(), String> {
    shared.wait_at_most(START_MAX, |state| (!state.starting).then_some(()));
    // It is in the control groups, which are to be empty.
    drop(shared.update(|state| state.ready.take()));
    place::give_up(shared, "the migration was abandoned");
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
