//! What an end is started with. It comes as one JSON object on the process's standard input: keys
//! and permits are then neither among its arguments, which everybody can read, nor on a disk.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ums_core::id::SystemName;
use ums_tls::Identity;

use super::control::Limits;
use super::permit::{Permit, PermitHash};

/// Longest launch that is read: three PEM texts of at most 256 KiB and little else.
pub const LAUNCH_BYTES_MAX: u64 = 1 << 20;

/// Names of services and migrations are far shorter.
pub const NAME_BYTES_MAX: usize = 256;

/// The inner MTU of most networks, and the default of the devices.
pub const MTU: u16 = 1500;

/// What both ends are started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The service.
    pub service: String,
    /// The migration that wants it; the two ends compare it.
    pub migration: String,
    /// Control socket; its directory must exist.
    pub socket: PathBuf,
    /// State file; its directory must exist.
    pub state: PathBuf,
    /// The service's network namespace, such as `/proc/PID/fd/N`, `/proc/PID/ns/net` or
    /// `/run/netns/NAME`. The process holds it for as long as it lives.
    pub namespace: PathBuf,
    /// Name of the device to make there; at most 15 bytes.
    pub device: String,
    /// The device's MTU, bytes; [`MTU`] unless the service's own link has another.
    pub mtu: u16,
    /// This system's certificate and key, and the CA.
    #[serde(with = "identity")]
    pub identity: Identity,
    /// The system that must be at the other end.
    pub peer: SystemName,
    /// Bounds.
    pub limits: Limits,
}

/// What a near end is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearLaunch {
    /// What both ends need.
    pub end: End,
    /// Where the far end listens.
    pub address: SocketAddr,
    /// Lets it in the first time.
    pub permit: Permit,
}

/// What a far end is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FarLaunch {
    /// What both ends need.
    pub end: End,
    /// The system's own address that the near end will connect to, or an unspecified one for all.
    pub listen: IpAddr,
    /// The UDP ports of which the first free one is taken.
    pub ports: Ports,
    /// Of the permit that the near end will show first: [`Permit::hash`].
    pub permit: PermitHash,
}

/// A range of UDP ports, both ends included. 0 to 0 lets the kernel choose one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// The first that is tried.
    pub first: u16,
    /// The last that is tried.
    pub last: u16,
}

impl Ports {
    /// Any free port.
    pub const ANY: Self = Self { first: 0, last: 0 };

    /// This port only.
    pub fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }
}

impl End {
    /// Checks what can be checked before anything is done.
    pub fn check(&self) -> Result<(), String> {
        for (what, name) in [("service", &self.service), ("migration", &self.migration)] {
            if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
                return Err(format!("{what} must have 1 to {NAME_BYTES_MAX} bytes"));
            }
        }
        // IPv6 works on no link of less (RFC 8200, section 5).
        if self.mtu < 1280 {
            return Err(format!("mtu {} is too small: give 1280 to 65535", self.mtu));
        }
        self.limits.check()
    }
}

mod identity {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use ums_tls::Identity;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pem<'a> {
        ca: std::borrow::Cow<'a, str>,
        cert: std::borrow::Cow<'a, str>,
        key: std::borrow::Cow<'a, str>,
    }

    pub(super) fn serialize<S: Serializer>(of: &Identity, to: S) -> Result<S::Ok, S::Error> {
        let pem = Pem {
            ca: of.ca_pem.as_str().into(),
            cert: of.cert_pem.as_str().into(),
            key: of.key_pem.as_str().into(),
        };
        pem.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Identity, D::Error> {
        let pem = Pem::deserialize(from)?;
        Ok(Identity {
            ca_pem: pem.ca.into_owned(),
            cert_pem: pem.cert.into_owned(),
            key_pem: pem.key.into_owned(),
        })
    }
}
