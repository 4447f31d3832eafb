//! From a Specification to the OCI bundle that runc creates a container from.
//!
//! A container that is to be moved wants fewer mounts than usual: each one is dumped and made
//! again while the service is frozen, and the content of each tmpfs goes through `tar` and `gzip`
//! then (some 30 ms each). So there is no tmpfs at all: `/dev` is a directory of the root
//! filesystem, in which runc makes the usual nodes; `/dev/shm` and the volumes are bind mounts
//! that the checkpoint names as external and the Synchronization module carries.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ums_core::id::{ServiceName, SystemName};
use ums_core::specification::{FILES, MountContent, Specification};

mod check;
#[cfg(test)]
mod runc_test;
#[cfg(test)]
mod test;

pub use check::{InvalidSpecification, check};

/// What a service may do unless its Specification says otherwise: the set that container engines
/// grant by default.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Devices that a container may use, as lines of the devices cgroup: creating any node, and
/// using null, zero, full, random, urandom, tty, ptmx and pseudo-terminals.
///
/// The keeper applies them ([`ums_checkpoint::devices`]), to a container that runc has created as to
/// one that is restored. `config.json` only denies: runc adds a list of its own, which is not the
/// same in all its versions.
pub const ALLOWED_DEVICES: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// Key of the bind mount at `/dev/shm`. A volume can't have it: its name would be a word, not a
/// path, and the names of volumes are prefixed.
const SHM_KEY: &str = "shm";

/// Where the parts of one service are on its node.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The root filesystem: a mount point (CRIU asks for one) with private propagation.
    pub rootfs: &'a Path,
    /// File that stands for the network namespace.
    pub netns: &'a Path,
    /// Directory with one directory for each volume, by its name.
    pub volumes: &'a Path,
    /// What is seen at `/dev/shm`: a tmpfs, so that shared memory needs no disk.
    pub shm: &'a Path,
    /// Path below each cgroup hierarchy; see [`cgroup_path`].
    pub cgroup: &'a str,
}

/// The limit of open files: (soft, hard).
///
/// The hard limit of the caller is the highest that can be had without `CAP_SYS_RESOURCE`.
pub type FileLimit = (u64, u64);

/// A mount that a checkpoint doesn't contain: at the dump CRIU is told `mnt[MOUNTPOINT]:KEY`, at
/// the restore `mnt[KEY]:SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalMount {
    /// Path inside the container.
    pub mountpoint: String,
    /// Name of the mount inside the checkpoint; the same on both nodes.
    pub key: String,
    /// What is mounted, on this node.
    pub source: PathBuf,
}

/// The cgroup that all services lie under, below the root of each hierarchy.
pub const ALL_SERVICES: &str = "/ums";

/// The cgroup of a service, below the root of each hierarchy.
pub fn cgroup_path(system: &SystemName, service: &ServiceName) -> String {
    format!("{ALL_SERVICES}/{system}/{service}")
}

/// The bind mounts of a service, all of which CRIU has to be told of.
pub fn external_mounts(specification: &Specification, places: &Places<'_>) -> Vec<ExternalMount> {
    let volumes = specification.volumes.iter().map(|volume| ExternalMount {
        mountpoint: volume.path.clone(),
        key: format!("volume-{}", volume.name),
        source: places.volumes.join(volume.name.as_str()),
    });
    let shm = ExternalMount {
        mountpoint: "/dev/shm".to_owned(),
        key: SHM_KEY.to_owned(),
        source: places.shm.to_path_buf(),
    };
    let others = specification.mounts.iter().map(|mount| ExternalMount {
        mountpoint: mount.path.clone(),
        key: key(&mount.content),
        source: source(&mount.content, places),
    });
    std::iter::once(shm).chain(volumes).chain(others).collect()
}

/// The same, without what is mounted: paths inside the container, and their keys.
pub fn external(specification: &Specification) -> Vec<(String, String)> {
    let nowhere = Places {
        rootfs: Path::new(""),
        netns: Path::new(""),
        volumes: Path::new(""),
        shm: Path::new(""),
        cgroup: "",
    };
    let mounts = external_mounts(specification, &nowhere).into_iter();
    mounts.map(|mount| (mount.mountpoint, mount.key)).collect()
}

/// Key of a mount that an engine has made.
fn key(content: &MountContent) -> String {
    match content {
        MountContent::File(name) => format!("file-{name}"),
        MountContent::ControlGroup(hierarchy) => format!("cgroup-{hierarchy}"),
        MountContent::Empty => "empty".to_owned(),
    }
}

fn source(content: &MountContent, places: &Places<'_>) -> PathBuf {
    match content {
        MountContent::File(name) => places.volumes.join(FILES).join(name),
        MountContent::ControlGroup(hierarchy) => {
            let below = Path::new(CONTROL_GROUPS).join(hierarchy);
            below.join(places.cgroup.trim_start_matches('/'))
        }
        MountContent::Empty => empty(places.shm),
    }
}

/// An empty directory, beside what is seen at `/dev/shm`.
pub(crate) fn empty(shm: &Path) -> PathBuf {
    shm.with_file_name("empty")
}

/// Where the hierarchies of control groups are.
pub(crate) const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// What containers can't write below /proc.
const READONLY_PATHS: [&str; 8] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What containers can't see below /proc.
const MASKED_PATHS: [&str; 2] = ["/proc/keys", "/proc/timer_list"];

/// Paths below /proc on which containers have mounts, where the kernel has them.
pub fn covered_proc_paths() -> impl Iterator<Item = &'static str> {
    READONLY_PATHS.into_iter().chain(MASKED_PATHS)
}

/// The `config.json` of the bundle.
pub fn config(
    specification: &Specification,
    places: &Places<'_>,
    files: FileLimit,
) -> Result<Value, InvalidSpecification> {
    check(specification)?;
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(specification, files),
        "root": { "path": places.rootfs, "readonly": false },
        "hostname": specification.hostname,
        "mounts": mounts(specification, places),
        "linux": linux(specification, places),
    }))
}

fn process(specification: &Specification, (soft, hard): FileLimit) -> Value {
    let capabilities = &specification.capabilities;
    json!({
        "terminal": false,
        "user": {
            "uid": specification.uid, "gid": specification.gid,
            "additionalGids": additional_groups(specification),
        },
        "args": specification.command,
        "env": specification.env,
        "cwd": if specification.cwd.is_empty() { "/" } else { &specification.cwd },
        // Nothing inheritable and nothing ambient: a program run by another user than root gets
        // no capability that its file doesn't give it.
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "noNewPrivileges": true,
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": soft.min(hard), "hard": hard }],
        // No oomScoreAdj: the standing of the keeper is inherited, and lowering it needs
        // CAP_SYS_RESOURCE.
    })
}

fn additional_groups(specification: &Specification) -> Vec<u32> {
    let groups = specification.creation.iter().flat_map(|it| &it.groups);
    groups.filter_map(|group| group.parse().ok()).collect()
}

fn mounts(specification: &Specification, places: &Places<'_>) -> Vec<Value> {
    let plain = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": plain }),
        json!({
            "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": plain }),
        json!({
            "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        }),
    ];
    // By depth, so that a volume inside another one isn't hidden by it.
    let mut external = external_mounts(specification, places);
    external.sort_by_key(|mount| mount.mountpoint.matches('/').count());
    mounts.extend(external.iter().map(|mount| {
        let options: &[&str] = match mount.key.as_str() {
            SHM_KEY => &["bind", "rprivate", "rw", "nosuid", "nodev", "noexec"],
            _ => &["rbind", "rprivate", "rw", "nosuid", "nodev"],
        };
        json!({
            "destination": mount.mountpoint, "type": "bind", "source": mount.source,
            "options": options,
        })
    }));
    mounts
}

fn linux(specification: &Specification, places: &Places<'_>) -> Value {
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(limit) = specification.memory_limit_bytes {
        resources["memory"] = json!({ "limit": limit });
    }
    json!({
        "cgroupsPath": places.cgroup,
        "resources": resources,
        "rootfsPropagation": "private",
        // No cgroup namespace: CRIU would tie the checkpoint to the cgroups of this node. No time
        // namespace: runc 1.1 makes none; CRIU makes one when it restores.
        "namespaces": [
            { "type": "pid" },
            { "type": "ipc" },
            { "type": "uts" },
            { "type": "mount" },
            { "type": "network", "path": places.netns },
        ],
        // Read-only even where engines mask: a masked directory is an empty tmpfs, whose
        // (missing) content would be dumped in the freeze. runc passes over paths that this
        // kernel lacks; those it has, the destination's kernel must have too.
        "readonlyPaths": READONLY_PATHS,
        // What is left out needs a capability that no service has by default (kcore), or is
        // readable by root alone and only tells about the node; each would be one more mount in the
        // freeze and one more file that both kernels must have.
        "maskedPaths": MASKED_PATHS,
        // No seccomp profile: see ADR 13.
    })
}
