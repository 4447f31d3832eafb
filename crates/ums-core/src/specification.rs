//! The portable Specification of a service (UMS §III-B, Step 1): all that a system needs to
//! create a container identical to the one at the source.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::id::ServiceName;

mod creation;

pub use creation::{Creation, Health, Restart};

/// What a service is, without the state it has gathered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Specification {
    /// Name of the service; the same at the source and the destination.
    pub name: ServiceName,
    /// The root filesystem it was started from.
    pub image: ImageId,
    /// Program and arguments, as given to the OCI runtime.
    pub command: Vec<String>,
    /// Environment, `NAME=value` each.
    pub env: Vec<String>,
    /// Working directory inside the container.
    pub cwd: String,
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside the container.
    pub gid: u32,
    /// Memory limit in bytes; `None` is no limit of its own.
    pub memory_limit_bytes: Option<u64>,
    /// Directories that are kept apart from the root filesystem, and move with the service.
    pub volumes: Vec<Volume>,
    /// Its address inside its network namespace. It moves with the service (DESIGN section 6).
    pub address: Ipv4Addr,
    /// Prefix length of the service network that `address` lies in.
    pub prefix_len: u8,
    /// Ports of the system that lead to ports of the service.
    pub ports: Vec<PublishedPort>,
    /// Linux capabilities the service keeps, `CAP_…` each.
    pub capabilities: Vec<String>,
    /// Host name inside the container.
    pub hostname: String,
    /// Mounts that the container has besides those of every container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// How a container engine was told to make it, where one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation: Option<Box<Creation>>,
    /// The container engine that makes its container, by its name on the node; absent where UMS makes it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// An image by its content: the BLAKE3 of its manifest, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl ImageId {
    /// The digest as text; safe as a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An image id that is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an image id is 64 lower-case hexadecimal digits")]
pub struct InvalidImageId;

impl TryFrom<String> for ImageId {
    type Error = InvalidImageId;
    fn try_from(text: String) -> Result<Self, InvalidImageId> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(hex) {
            Ok(Self(text))
        } else {
            Err(InvalidImageId)
        }
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> String {
        id.0
    }
}

/// A directory of the service's own, mounted at `path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Name, unique within the service.
    pub name: ServiceName,
    /// Absolute path inside the container.
    pub path: String,
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Transmission Control Protocol (RFC 9293).
    Tcp,
    /// User Datagram Protocol (RFC 768).
    Udp,
}

impl Transport {
    /// Its name, as everybody writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The protocol of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp]
            .into_iter()
            .find(|transport| transport.name() == name)
    }
}

/// A port of the system that leads to a port of the service: the endpoint its clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// Transport protocol.
    pub transport: Transport,
    /// Port on the system's own address.
    pub system_port: u16,
    /// Port inside the service's network namespace.
    pub service_port: u16,
}

/// A mount of a container that not every container has: an engine has made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where it is inside the container.
    pub path: String,
    /// What is there.
    pub content: MountContent,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountContent {
    /// A small file of the service's own, which moves with it: `/etc/hosts`. Its name is one
    /// component of a path.
    File(String),
    /// The control group of the service, in the hierarchy of this name below `/sys/fs/cgroup`.
    ControlGroup(String),
    /// An empty directory, which hides what is below it.
    Empty,
}

/// Directory of the files that [`MountContent::File`] names, among a service's volumes.
pub const FILES: &str = "ums-files";
