//! Stock Debian systems as virtual machines.
//!
//! ```text
//!      host ── ssh ──▶ debian12 192.0.2.12 ──── 192.0.2.13 debian13 ◀── ssh ── host
//! ```
//!
//! `cargo xtask vm` makes what they start from (see [`Place`]); here they are started, used and ended.
//! They run under software emulation, 13 to 20 times slower than the host: every wait goes through
//! [`patience`], and nothing may be concluded from how long something takes there.

pub mod machine;
mod monitor;
pub mod pair;
mod qemu;
mod ssh;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// How many times slower a machine is than the host, with room for a host that has other things to do.
const SLOWNESS: u32 = 20;

/// The one setting for all waits: by what they are multiplied. For a host that is faster or slower.
const SLOWNESS_VARIABLE: &str = "UMS_VM_SLOWNESS";

/// The longest wait for something that takes at most so many seconds on the host itself.
pub fn patience(seconds: u64) -> Duration {
    let set = std::env::var(SLOWNESS_VARIABLE).ok();
    let slowness = set.and_then(|text| text.parse().ok()).unwrap_or(SLOWNESS);
    Duration::from_secs(seconds) * slowness
}

/// A release of Debian, and the one machine that there may be of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// Debian 12: Linux 6.1.
    Bookworm,
    /// Debian 13: Linux 6.12.
    Trixie,
}

impl Release {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// The name of its suite, and of its directory among the images.
    pub fn suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The name of its machine, which is also that of the system there.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "debian12",
            Self::Trixie => "debian13",
        }
    }

    /// The release whose machine has that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|release| release.name() == name)
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Bookworm => Self::Trixie,
            Self::Trixie => Self::Bookworm,
        }
    }

    /// Address on the link between the machines.
    pub fn address(self) -> &'static str {
        match self {
            Self::Bookworm => "192.0.2.12",
            Self::Trixie => "192.0.2.13",
        }
    }

    /// Hardware address of the card on that link.
    fn hardware_address(self) -> &'static str {
        match self {
            Self::Bookworm => "52:54:00:bb:00:12",
            Self::Trixie => "52:54:00:bb:00:13",
        }
    }
}

/// Where machines are made from, and where their state is: a directory with
///
/// - `qemu/root`: qemu with its libraries and loader,
/// - `key/id`: the key that ssh lets in with,
/// - `SUITE/disk`, `SUITE/vmlinuz`, `SUITE/initrd`: a release,
/// - `machines/NAME`: a machine's own disk, sockets, console and saved states.
#[derive(Debug, Clone)]
pub struct Place {
    directory: PathBuf,
}

impl Place {
    /// The variable that names the directory.
    pub const VARIABLE: &'static str = "UMS_VM";

    /// From the environment; `None` where nobody has made machines.
    pub fn find() -> Option<Self> {
        let directory = std::env::var_os(Self::VARIABLE)?;
        Some(Self {
            directory: directory.into(),
        })
    }

    /// The same, for those who can't do without.
    ///
    /// # Errors
    /// Where the variable is not set, or names no such directory.
    pub fn required() -> Result<Self> {
        let place = Self::find()
            .with_context(|| format!("{} is not set: use `cargo xtask vm`", Self::VARIABLE))?;
        ensure!(
            place.directory.join("key/id").is_file(),
            "{} is not what `cargo xtask vm` makes",
            place.directory.display()
        );
        Ok(place)
    }

    fn qemu(&self) -> PathBuf {
        self.directory.join("qemu/root")
    }

    fn key(&self) -> PathBuf {
        self.directory.join("key/id")
    }

    fn image(&self, release: Release, part: &str) -> PathBuf {
        self.directory.join(release.suite()).join(part)
    }

    /// The directory of all machines; sockets are named relative to it, because the path of a socket
    /// has at most 107 bytes.
    fn machines(&self) -> PathBuf {
        self.directory.join("machines")
    }

    /// A file of a machine.
    fn of(&self, release: Release, name: &str) -> PathBuf {
        self.machines().join(release.name()).join(name)
    }
}

/// The last part of what a machine wrote to its console.
fn console_tail(console: &Path) -> String {
    let text = std::fs::read(console).unwrap_or_default();
    crate::tools::tail(&String::from_utf8_lossy(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_apart() {
        for release in Release::ALL {
            assert_eq!(Release::of(release.name()), Some(release));
            assert_ne!(release.address(), release.other().address());
            assert_ne!(
                release.hardware_address(),
                release.other().hardware_address()
            );
            assert_eq!(release.other().other(), release);
        }
        assert_eq!(Release::of("debian11"), None);
    }
}
