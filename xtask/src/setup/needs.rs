//! What the demo, the tests and the benchmark need of a machine, each with its reason.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::run;

/// What the machine is set up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The tests.
    Test,
    /// What only `cargo xtask test --long` has beyond them.
    Long,
    /// The demo.
    Demo,
    /// The benchmark.
    Bench,
    /// Virtual machines.
    Machines,
    /// What is needed for the others but the long tests and machines: `cargo xtask setup` by itself.
    All,
}

/// A program and the Debian package that brings it.
pub(crate) struct Need {
    /// The program, by its name or its path, whose presence satisfies the need, whoever installed it.
    pub(crate) program: &'static str,
    /// The package to install if it is missing.
    pub(crate) package: &'static str,
    /// Why it is needed.
    pub(crate) why: &'static str,
    /// The purposes that need it.
    purposes: &'static [Purpose],
}

const ALWAYS: &[Purpose] = &[Purpose::Test, Purpose::Demo, Purpose::Bench];

/// Hundreds of MiB. In other tests what is there already is used.
const LONG: &[Purpose] = &[Purpose::Long];

/// Virtual machines are part of the long tests.
const MACHINES: &[Purpose] = &[Purpose::Machines, Purpose::Long];

/// All needs. The rest comes with the bundle or is part of every Debian.
const NEEDS: [Need; 22] = [
    Need {
        program: "tc",
        package: "iproute2",
        why: "builds the network namespaces and the shaped link between two systems",
        purposes: ALWAYS,
    },
    Need {
        program: "nft",
        package: "nftables",
        why: "holds and redirects the packets of a migrating service",
        purposes: ALWAYS,
    },
    Need {
        program: "redis-server",
        package: "redis-server",
        why: "is one of the services that migrate",
        purposes: &[Purpose::Test, Purpose::Demo],
    },
    Need {
        program: "redis-cli",
        package: "redis-tools",
        why: "lets a person look into the migrated Redis",
        purposes: &[Purpose::Demo],
    },
    Need {
        program: "busybox",
        package: "busybox-static",
        why: "is all that the smallest containers of the tests have",
        purposes: &[Purpose::Test],
    },
    Need {
        program: "python3",
        package: "python3",
        why: "runs two of the services that migrate",
        purposes: &[Purpose::Test],
    },
    Need {
        program: "curl",
        package: "curl",
        why: "is the client in the documentation's walk-through",
        purposes: &[Purpose::Test],
    },
    Need {
        program: "dockerd",
        package: "docker.io",
        why: "is an engine whose containers services arrive in",
        purposes: &[Purpose::Test],
    },
    Need {
        program: "podman",
        package: "podman",
        why: "is another one",
        purposes: &[Purpose::Test],
    },
    Need {
        program: "/usr/lib/cni/bridge",
        package: "containernetworking-plugins",
        why: "makes the networks of Podman's containers",
        purposes: &[Purpose::Test],
    },
    Need {
        program: "skopeo",
        package: "skopeo",
        why: "makes images that services are started from",
        purposes: &[Purpose::Test],
    },
    Need {
        program: "docker-registry",
        package: "docker-registry",
        why: "is the registry that images are read from and written to",
        purposes: &[Purpose::Test],
    },
    Need {
        program: "go",
        package: "golang-go",
        why: "compiles one of the services that migrate",
        purposes: LONG,
    },
    Need {
        program: "javac",
        package: "default-jdk-headless",
        why: "compiles and runs one of the services that migrate",
        purposes: LONG,
    },
    Need {
        program: "node",
        package: "nodejs",
        why: "runs one of the services that migrate",
        purposes: LONG,
    },
    Need {
        program: "mmdebstrap",
        package: "mmdebstrap",
        why: "makes the disks of virtual machines",
        purposes: MACHINES,
    },
    Need {
        program: "mke2fs",
        package: "e2fsprogs",
        why: "makes the disks of virtual machines",
        purposes: MACHINES,
    },
    Need {
        program: "ssh",
        package: "openssh-client",
        why: "reaches virtual machines",
        purposes: MACHINES,
    },
    Need {
        program: "setpriv",
        package: "util-linux",
        why: "ends virtual machines with the test that started them",
        purposes: MACHINES,
    },
    Need {
        program: "rsync",
        package: "rsync",
        why: "transfers the image in the paper's way of migrating, for comparison",
        purposes: &[Purpose::Bench],
    },
    Need {
        program: "ssh",
        package: "openssh-client",
        why: "carries that rsync",
        purposes: &[Purpose::Bench],
    },
    Need {
        program: "sshd",
        package: "openssh-server",
        why: "receives that rsync, inside a network namespace; it is not started as a service",
        purposes: &[Purpose::Bench],
    },
];

/// The needs of a purpose that this machine does not meet.
pub(crate) fn missing(purpose: Purpose) -> Vec<&'static Need> {
    NEEDS
        .iter()
        .filter(|need| match purpose {
            Purpose::All => need.purposes != LONG && need.purposes != MACHINES,
            Purpose::Long => need
                .purposes
                .iter()
                .any(|of| [Purpose::Test, purpose].contains(of)),
            _ => need.purposes.contains(&purpose),
        })
        .filter(|need| !is_installed(need.program))
        .collect()
}

/// Looks where root would find a program; a plain user's PATH often lacks the sbin folders.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(system)
        .any(|dir| dir.join(program).is_file())
}

/// A kernel setting and the value it needs at least.
pub(crate) struct Setting {
    /// Its name, as `sysctl` writes it.
    pub(crate) name: &'static str,
    /// The value to set.
    pub(crate) value: u64,
    /// Why.
    pub(crate) why: &'static str,
    is_enough: fn(u64) -> bool,
}

/// CRIU's pipes hold a whole run of pages.
const PIPE_BYTES: u64 = 64 << 20;

const SETTINGS: [Setting; 2] = [
    Setting {
        name: "fs.pipe-max-size",
        value: PIPE_BYTES,
        why: "CRIU enlarges pipes for pages, which root without CAP_SYS_RESOURCE may not do",
        is_enough: |value| value >= PIPE_BYTES,
    },
    Setting {
        name: "fs.pipe-user-pages-soft",
        value: 0,
        why: "CRIU opens many such pipes; 0 lifts the limit on their sum",
        is_enough: |value| value == 0,
    },
];

impl Setting {
    /// The file of the setting.
    pub(crate) fn file(name: &str) -> String {
        format!("/proc/sys/{}", name.replace('.', "/"))
    }

    /// The value in force.
    pub(crate) fn current(&self) -> Result<u64> {
        let file = Self::file(self.name);
        let text =
            fs::read_to_string(Path::new(&file)).with_context(|| format!("cannot read {file}"))?;
        text.trim()
            .parse()
            .with_context(|| format!("{file} holds {text:?}"))
    }
}

/// The settings that must be raised, with their value now. None where root may exceed them.
pub(crate) fn low_settings() -> Result<Vec<(&'static Setting, u64)>> {
    let status = run::text(run::root("cat").arg("/proc/self/status"))?;
    if may_exceed_limits(&status) {
        return Ok(Vec::new());
    }
    let mut low = Vec::new();
    for setting in &SETTINGS {
        let current = setting.current()?;
        if !(setting.is_enough)(current) {
            low.push((setting, current));
        }
    }
    Ok(low)
}

/// Whether `/proc/PID/status` shows CAP_SYS_RESOURCE.
fn may_exceed_limits(status: &str) -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAP_SYS_RESOURCE != 0)
}

#[cfg(test)]
mod tests {
    use super::may_exceed_limits;

    #[test]
    fn reads_the_capability() {
        assert!(may_exceed_limits("Name:\tcat\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_exceed_limits(
            "Name:\tcat\nCapEff:\t000001fffeffffff\n"
        ));
        assert!(!may_exceed_limits(""));
    }
}
