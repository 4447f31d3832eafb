//! What a Specification must satisfy before a container is made from it.

use std::collections::BTreeSet;

use ums_core::specification::{Mount, MountContent, PublishedPort, Specification, Volume};

/// Longest path inside a container, bytes (`PATH_MAX`).
const PATH_LEN_MAX: usize = 4096;
/// Longest single argument or variable, bytes (`MAX_ARG_STRLEN` with 4 KiB pages).
const ARGUMENT_LEN_MAX: usize = 128 * 1024;
/// Most arguments, variables and volumes each.
const COUNT_MAX: usize = 4096;

/// What can't be made into a container, and what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpecification {
    /// No program.
    #[error("the command is empty: name a program to run")]
    NoCommand,
    /// A mount with a path or name that none can have.
    #[error("the mount at `{path}` can't be made: its path or name is none")]
    Mount {
        /// Its path.
        path: String,
    },
    /// More of something than can be given.
    #[error("{count} {what} are more than {COUNT_MAX}: give fewer")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// An argument or variable that can't be given to a program.
    #[error("{what} number {index} holds a NUL byte or is longer than {ARGUMENT_LEN_MAX} bytes")]
    Text {
        /// What it is.
        what: &'static str,
        /// Which, from 0.
        index: usize,
    },
    /// A variable without a name.
    #[error("environment entry number {index} is not NAME=value")]
    Environment {
        /// Which, from 0.
        index: usize,
    },
    /// The working directory is not usable.
    #[error("working directory `{0}` is not an absolute path without `..`")]
    WorkingDirectory(String),
    /// A capability that the kernel doesn't know.
    #[error("`{0}` is not a capability name such as CAP_NET_BIND_SERVICE")]
    Capability(String),
    /// A volume that can't be mounted.
    #[error("volume `{name}` can't be mounted at `{path}`: {reason}")]
    Volume {
        /// Its name.
        name: String,
        /// Where it should be.
        path: String,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// The host name is too long.
    #[error("host name `{0}` is not 1 to 64 printable characters")]
    Hostname(String),
    /// An address that no service can have.
    #[error("prefix length {0} is not between 8 and 30")]
    PrefixLength(u8),
    /// One port of the system can't lead to two places.
    #[error("port {port}/{transport} of the system is published twice: publish each once")]
    PortTwice {
        /// Its number.
        port: u16,
        /// Its transport protocol.
        transport: &'static str,
    },
    /// A memory limit that no program can start in.
    #[error("a memory limit of {0} bytes is below 1 MiB: nothing could start in it")]
    MemoryLimit(u64),
}

/// Checks what can be checked without looking at the node.
pub fn check(specification: &Specification) -> Result<(), InvalidSpecification> {
    if specification
        .command
        .first()
        .is_none_or(|program| program.is_empty())
    {
        return Err(InvalidSpecification::NoCommand);
    }
    texts("argument", &specification.command)?;
    texts("variable", &specification.env)?;
    let unnamed = |text: &String| text.find('=').is_none_or(|at| at == 0);
    if let Some(index) = specification.env.iter().position(unnamed) {
        return Err(InvalidSpecification::Environment { index });
    }
    let cwd = &specification.cwd;
    if !cwd.is_empty() && !is_plain_absolute(cwd) {
        return Err(InvalidSpecification::WorkingDirectory(shown(cwd)));
    }
    if let Some(name) = specification
        .capabilities
        .iter()
        .find(|name| !is_capability(name))
    {
        return Err(InvalidSpecification::Capability(shown(name)));
    }
    let hostname = &specification.hostname;
    if !(1..=64).contains(&hostname.len()) || !hostname.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(InvalidSpecification::Hostname(shown(hostname)));
    }
    if !(8..=30).contains(&specification.prefix_len) {
        return Err(InvalidSpecification::PrefixLength(specification.prefix_len));
    }
    if let Some(limit) = specification
        .memory_limit_bytes
        .filter(|limit| *limit < 1 << 20)
    {
        return Err(InvalidSpecification::MemoryLimit(limit));
    }
    ports(&specification.ports)?;
    mounts(&specification.mounts)?;
    volumes(&specification.volumes)
}

/// What an engine's container has at the source comes from a peer: names are one component of a path.
fn mounts(mounts: &[Mount]) -> Result<(), InvalidSpecification> {
    if mounts.len() > COUNT_MAX {
        return Err(InvalidSpecification::TooMany {
            what: "mounts",
            count: mounts.len(),
        });
    }
    let plain = |name: &str| {
        let bad = |letter: char| matches!(letter, '/' | '[' | ']' | ':' | '\0');
        !name.is_empty() && name.len() <= 255 && !matches!(name, "." | "..") && !name.contains(bad)
    };
    let absolute = |path: &str| path.starts_with('/') && !path.contains(['[', ']', ':', '\0']);
    for mount in mounts {
        let named = match &mount.content {
            MountContent::File(name) | MountContent::ControlGroup(name) => plain(name),
            MountContent::Empty => true,
        };
        if !named || !absolute(&mount.path) {
            return Err(InvalidSpecification::Mount {
                path: shown(&mount.path),
            });
        }
    }
    Ok(())
}

fn ports(published: &[PublishedPort]) -> Result<(), InvalidSpecification> {
    let mut seen = BTreeSet::new();
    let key = |port: &PublishedPort| (port.transport, port.system_port);
    match published.iter().find(|port| !seen.insert(key(port))) {
        Some(port) => Err(InvalidSpecification::PortTwice {
            port: port.system_port,
            transport: port.transport.name(),
        }),
        None => Ok(()),
    }
}

fn texts(what: &'static str, texts: &[String]) -> Result<(), InvalidSpecification> {
    if texts.len() > COUNT_MAX {
        return Err(InvalidSpecification::TooMany {
            what: plural(what),
            count: texts.len(),
        });
    }
    let bad = |text: &String| text.contains('\0') || text.len() > ARGUMENT_LEN_MAX;
    match texts.iter().position(bad) {
        Some(index) => Err(InvalidSpecification::Text { what, index }),
        None => Ok(()),
    }
}

fn plural(what: &str) -> &'static str {
    if what == "argument" {
        "arguments"
    } else {
        "variables"
    }
}

fn volumes(volumes: &[Volume]) -> Result<(), InvalidSpecification> {
    if volumes.len() > COUNT_MAX {
        return Err(InvalidSpecification::TooMany {
            what: "volumes",
            count: volumes.len(),
        });
    }
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for volume in volumes {
        let refuse = |reason| InvalidSpecification::Volume {
            name: volume.name.to_string(),
            path: shown(&volume.path),
            reason,
        };
        path_of_volume(&volume.path).map_err(refuse)?;
        if !names.insert(&volume.name) {
            return Err(refuse("another volume has its name; rename one"));
        }
        if !paths.insert(&volume.path) {
            return Err(refuse(
                "another volume is there; choose another path for one",
            ));
        }
    }
    Ok(())
}

fn path_of_volume(path: &str) -> Result<(), &'static str> {
    if !is_plain_absolute(path) || path == "/" || path.ends_with('/') {
        return Err("use an absolute path below `/` without `..`, `.` or doubled slashes");
    }
    // CRIU is told of the mount as `mnt[PATH]:KEY`, mountinfo shows it with blanks escaped.
    if path.contains(['[', ']', ':', '\\'])
        || path.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(
            "use a path without blanks, control characters, brackets, colons or backslashes",
        );
    }
    let top = path[1..].split('/').next().unwrap_or_default();
    if ["proc", "sys", "dev"].contains(&top) {
        return Err("/proc, /sys and /dev belong to the runtime; choose another place");
    }
    Ok(())
}

fn is_plain_absolute(path: &str) -> bool {
    let part_is_plain = |part: &str| !matches!(part, "" | "." | "..");
    path.len() <= PATH_LEN_MAX
        && !path.contains('\0')
        && (path == "/"
            || path.strip_prefix('/').is_some_and(|rest| {
                rest.strip_suffix('/')
                    .unwrap_or(rest)
                    .split('/')
                    .all(part_is_plain)
            }))
}

/// Capabilities as of Linux 6.x (`linux/capability.h`).
fn is_capability(name: &str) -> bool {
    const NAMES: [&str; 41] = [
        "AUDIT_CONTROL",
        "AUDIT_READ",
        "AUDIT_WRITE",
        "BLOCK_SUSPEND",
        "BPF",
        "CHECKPOINT_RESTORE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "MKNOD",
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_RAW",
        "PERFMON",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYSLOG",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "WAKE_ALARM",
    ];
    name.strip_prefix("CAP_")
        .is_some_and(|name| NAMES.contains(&name))
}

/// As much of a text as belongs into a message.
fn shown(text: &str) -> String {
    text.chars().take(128).collect()
}
