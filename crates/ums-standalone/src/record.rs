//! What the agent remembers of a service across its own restarts: one small file each.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use ums_core::id::MigrationId;
use ums_core::specification::Specification;
use ums_node::host::Arriving;

/// The record of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Layout of this file.
    pub version: u32,
    /// The service.
    pub specification: Specification,
    /// The migration that has its gate shut: control messages are refused.
    pub gate: Option<MigrationId>,
    /// Set while the service is on its way here and has not executed.
    pub arriving: Option<Arriving>,
    /// From where its older connections come, once it has arrived from another system.
    #[serde(default)]
    pub inbound: Option<Arriving>,
    /// Its address on the bridge of this system, where another service had its own.
    #[serde(default)]
    pub on_bridge: Option<Ipv4Addr>,
    /// Set until it has been started here for the first time: an agent that finds it at its own start
    /// knows that nobody was told of the service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub starting: bool,
}

impl Record {
    /// Its address on this system's bridge.
    pub fn on_bridge(&self) -> Ipv4Addr {
        self.on_bridge.unwrap_or(self.specification.address)
    }
}

/// The layout that is written.
pub const VERSION: u32 = 1;

/// Reads a record.
pub fn read(path: &Path) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    if record.version != VERSION {
        let text = format!(
            "record of version {}, this agent knows {VERSION}",
            record.version
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(record)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_foreign_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.json");
        fs::write(&path, r#"{"version":2}"#).unwrap();
        assert!(read(&path).is_err());
    }
}
