//! How the standalone host is set up, and where its services are on the node.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ums_core::id::{ServiceName, SystemName};

/// A network as `address/prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// An address in it.
    pub address: Ipv4Addr,
    /// Length of the prefix, 8 to 30.
    pub prefix_len: u8,
}

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').ok_or("write it as ADDRESS/PREFIX")?;
        let address = address
            .parse()
            .map_err(|_| "its address is not an IPv4 address")?;
        match prefix.parse() {
            Ok(prefix_len @ 8..=30) => Ok(Self {
                address,
                prefix_len,
            }),
            _ => Err("its prefix is not a number from 8 to 30".to_owned()),
        }
    }
}

/// How the standalone host is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory for sockets, gone after a reboot.
    pub run_dir: PathBuf,
    /// Directory for services and images.
    pub state_dir: PathBuf,
    /// Name of this system.
    pub system: SystemName,
    /// Network of the services.
    pub network: Network,
    /// The C/R bundle's programs.
    pub bundle_bin: PathBuf,
    /// Arguments of this program that make it the pump of a service's log, whose path follows.
    pub log_pump: Vec<String>,
    /// After how long an image that no service uses is removed.
    pub keep_images: Duration,
}

impl Settings {
    /// All that belongs to one service.
    pub fn places(&self, service: &ServiceName) -> ServicePlaces {
        let state = self.services().join(service.as_str());
        let run = self.run_dir.join("services").join(service.as_str());
        ServicePlaces { state, run }
    }

    /// One directory for each service.
    pub fn services(&self) -> PathBuf {
        self.state_dir.join("services")
    }

    /// Image store.
    pub fn images(&self) -> PathBuf {
        self.state_dir.join("images")
    }
}

/// Where the parts of one service are.
#[derive(Debug, Clone)]
pub struct ServicePlaces {
    state: PathBuf,
    run: PathBuf,
}

impl ServicePlaces {
    /// What outlives a reboot.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What does not.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The record of the service ([`crate::record`]).
    pub fn record(&self) -> PathBuf {
        self.state.join("service.json")
    }

    /// What the service changed in its root filesystem.
    pub fn upper(&self) -> PathBuf {
        self.state.join("upper")
    }

    /// Overlayfs's own directory.
    pub fn work(&self) -> PathBuf {
        self.state.join("work")
    }

    /// One directory for each volume.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    /// Standard output and standard error of the service.
    pub fn log(&self) -> PathBuf {
        self.state.join("log")
    }

    /// Mount point of the root filesystem in the keeper's mount namespace.
    pub fn merged(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    /// Mount point of `/dev/shm` in the keeper's mount namespace.
    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }

    /// The OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.run.join("bundle")
    }

    /// The keeper's socket.
    pub fn keeper(&self) -> PathBuf {
        self.run.join("keeper.sock")
    }

    /// Makes every directory. The state directory must not exist yet.
    pub fn create(&self, volumes: impl IntoIterator<Item = String>) -> std::io::Result<()> {
        if let Some(parent) = self.state.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::create_dir(&self.state)?;
        for dir in [self.upper(), self.work(), self.volumes()] {
            std::fs::create_dir(dir)?;
        }
        for volume in volumes {
            std::fs::create_dir(self.volumes().join(volume))?;
        }
        let empty = crate::bundle::empty(&self.shm());
        for dir in [self.merged(), self.shm(), self.bundle(), empty] {
            std::fs::create_dir_all(dir)?;
        }
        Ok(())
    }

    /// Removes every directory; absence is success.
    pub fn remove(&self) -> std::io::Result<()> {
        for dir in [&self.run, &self.state] {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
