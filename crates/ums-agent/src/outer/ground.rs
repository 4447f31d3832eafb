//! What an outer container makes of the namespaces that its engine has given it: a root of its own, in which
//! programs find the bundle's libraries whatever the image has, `/proc` can be written, and the control groups
//! below its own are its own.
//!
//! Nobody outside this container sees any of it. The service's control groups lie below the container's, so that its
//! limits hold for the service.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use ums_core::wrap;

/// Where hierarchies of control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";
/// Where the unified one is, beside those of version 1.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// Where processes of this container go in a unified hierarchy that has controllers: a group above others has
/// none of its own (kernel `admin-guide/cgroup-v2.rst`, "No Internal Process Constraint").
const BESIDE: &str = "ums-outer";
/// Where a root of its own is made.
const ROOT: &str = "/.ums/root";
/// Where the image is seen in it.
pub(super) const IMAGE: &str = "/image";
const NONE: Option<&str> = None;

/// Makes them, for this process and those that it starts. It has to have one thread.
pub(super) fn prepare() -> anyhow::Result<()> {
    let groups = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let hierarchies = hierarchies(&groups);
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace of its own")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("mounts are shared")?;
    if let Some(name) = lacks_own_group(&hierarchies) {
        enter_own_group(&name).context("no group of its own in the unified hierarchy")?;
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).context("no control group namespace of its own")?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // What engines mask and make read-only is not what the service sees: it has a `/proc` of its own.
    fresh("proc", "/proc", quiet, NONE)?;
    mount_groups(&hierarchies)?;
    own_root()
}

/// Makes a root of its own, in memory, and goes there. The image is at [`IMAGE`] in it, without what is mounted
/// in it.
fn own_root() -> anyhow::Result<()> {
    let root = Path::new(ROOT);
    // `/run` is in memory too, where CRIU keeps what it has seen of this kernel.
    fresh(
        "tmpfs",
        ROOT,
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    )?;
    for name in ["etc", "run", "tmp"] {
        fs::create_dir(root.join(name))?;
    }
    for (from, recursive) in [
        (wrap::DIRECTORY, true),
        ("/proc", true),
        ("/sys", true),
        ("/dev", true),
        ("/", false),
    ] {
        let at = match from {
            "/" => root.join(IMAGE.trim_start_matches('/')),
            _ => root.join(from.trim_start_matches('/')),
        };
        let flags = if recursive {
            MsFlags::MS_REC
        } else {
            MsFlags::empty()
        };
        fs::create_dir(&at)?;
        mount(Some(from), &at, NONE, flags | MsFlags::MS_BIND, NONE)
            .with_context(|| format!("{from} can't be mounted"))?;
    }
    let _ = umount2(
        &root.join(ROOT.trim_start_matches('/')),
        MntFlags::MNT_DETACH,
    );
    engines_files(root)?;
    libraries(root)?;
    std::env::set_current_dir(root)?;
    nix::unistd::pivot_root(".", ".").context("no root of its own")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Small files that an engine mounts one by one over those of the image, and that the service is to have.
pub(super) const FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];

fn engines_files(root: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for name in FILES {
        let path = Path::new("/").join(name);
        let is_it = |line: &str| line.split(' ').nth(4) == path.to_str();
        if mounts.lines().any(is_it) {
            fs::copy(&path, root.join(name)).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Puts the bundle's loader and libraries where programs look for them: runc executes itself by a way on which it
/// loses the path that the bundle has given it.
fn libraries(root: &Path) -> anyhow::Result<()> {
    let lib = root.join("lib");
    fs::create_dir(&lib)?;
    for name in ["lib64", "usr"] {
        fs::create_dir(root.join(name))?;
    }
    symlink("/lib", root.join("usr/lib"))?;
    symlink(
        Path::new(wrap::BUNDLE).join("lib/ld.so"),
        root.join("lib64/ld-linux-x86-64.so.2"),
    )?;
    for from in ["bundle/lib", "bundle/lib/runc", "lib"] {
        let from = Path::new(wrap::DIRECTORY).join(from);
        for entry in fs::read_dir(&from).into_iter().flatten().flatten() {
            let at = lib.join(entry.file_name());
            if !at.exists() {
                symlink(entry.path(), at)?;
            }
        }
    }
    Ok(())
}

fn fresh(kind: &str, at: &str, flags: MsFlags, options: Option<&str>) -> anyhow::Result<()> {
    fs::create_dir_all(at).with_context(|| at.to_owned())?;
    mount(Some(kind), at, Some(kind), flags, options)
        .with_context(|| format!("{kind} can't be mounted at {at}"))
}

/// A hierarchy of control groups that processes of this container are in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Controllers, or `name=…`; empty is the unified one.
    controllers: String,
    /// The group that this process is in.
    group: String,
}

/// From `/proc/self/cgroup` (cgroups(7)).
fn hierarchies(text: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        Some(Hierarchy {
            controllers: controllers.to_owned(),
            group: group.to_owned(),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// The name that a group of this container's own should have in the unified hierarchy: engines that use
/// version 1 leave the container where they are themselves there. Its name in the others tells it from others.
fn lacks_own_group(all: &[Hierarchy]) -> Option<String> {
    let unified = all.iter().find(|it| it.controllers.is_empty())?;
    let other = all
        .iter()
        .find(|it| it.controllers == "freezer" || it.controllers == "memory")?;
    let id = Path::new(&other.group).file_name()?.to_str()?;
    (!unified.group.ends_with(id)).then(|| format!("ums-outer-{id}"))
}

/// Makes a group below this process's own in the unified hierarchy, and enters it.
fn enter_own_group(name: &str) -> anyhow::Result<()> {
    let _ = umount2(GROUPS, MntFlags::MNT_DETACH);
    fresh("cgroup2", GROUPS, MsFlags::empty(), NONE)?;
    let own = own_group(Path::new(GROUPS))?;
    let made = own.join(name);
    match fs::create_dir(&made) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error)?,
        _ => {}
    }
    fs::write(made.join("cgroup.procs"), "0")?;
    umount2(GROUPS, MntFlags::MNT_DETACH)?;
    Ok(())
}

/// Where this process's group is, below a unified hierarchy that is mounted there. The mount begins where the
/// control group namespace does, as the names do.
fn own_group(mounted: &Path) -> anyhow::Result<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let own = hierarchies(&groups)
        .into_iter()
        .find(|it| it.controllers.is_empty());
    let own = own.context("there is no unified hierarchy")?;
    Ok(mounted.join(own.group.trim_start_matches('/')))
}

/// Mounts each hierarchy anew: in a control group namespace its top is this container's group.
fn mount_groups(all: &[Hierarchy]) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = umount2(GROUPS, MntFlags::MNT_DETACH);
    if all.iter().all(|it| it.controllers.is_empty()) {
        fresh("cgroup2", GROUPS, flags, NONE)?;
        return step_aside();
    }
    fresh("tmpfs", GROUPS, flags, Some("mode=755"))?;
    for hierarchy in all {
        let controllers = &hierarchy.controllers;
        if controllers.is_empty() {
            fresh("cgroup2", UNIFIED, flags, NONE)?;
            continue;
        }
        let at = format!("{GROUPS}/{}", controllers.trim_start_matches("name="));
        let options = match controllers.starts_with("name=") {
            true => format!("none,{controllers}"),
            false => controllers.clone(),
        };
        fs::create_dir_all(&at)?;
        match mount(Some("cgroup"), &*at, Some("cgroup"), flags, Some(&*options)) {
            // A hierarchy without a controller, which others have for themselves.
            Err(Errno::EINVAL | Errno::EBUSY) if controllers.starts_with("name=") => {
                fs::remove_dir(&at)?;
            }
            mounted => mounted.with_context(|| format!("{controllers} can't be mounted"))?,
        }
    }
    Ok(())
}

/// Leaves the container's own group to the groups below it.
fn step_aside() -> anyhow::Result<()> {
    let beside = Path::new(GROUPS).join(BESIDE);
    fs::create_dir_all(&beside)?;
    let all = fs::read_to_string(Path::new(GROUPS).join("cgroup.procs"))?;
    for pid in all.lines() {
        // One that has ended is in no group any more.
        let _ = fs::write(beside.join("cgroup.procs"), pid);
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_container_of_version_1_has_no_group_of_its_own_in_the_unified_hierarchy() {
        let hybrid = hierarchies("4:memory:/docker/0123\n6:freezer:/docker/0123\n0::/\n");
        assert_eq!(lacks_own_group(&hybrid).as_deref(), Some("ums-outer-0123"));
        let made = hierarchies("4:memory:/docker/0123\n0::/docker/0123\n");
        assert_eq!(lacks_own_group(&made), None);
        assert_eq!(lacks_own_group(&hierarchies("0::/\n")), None);
    }

    #[test]
    fn named_hierarchies_are_told_from_controllers() {
        let all = hierarchies("9:name=systemd:/a\n1:cpu,cpuacct:/a\n0::/a\n");
        let controllers: Vec<&str> = all.iter().map(|it| it.controllers.as_str()).collect();
        assert_eq!(controllers, ["name=systemd", "cpu,cpuacct", ""]);
    }
}
