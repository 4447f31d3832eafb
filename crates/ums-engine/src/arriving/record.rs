//! What the agent remembers of a container that an engine makes for a service that arrives, across its own restarts.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ums_core::specification::Specification;
use ums_node::container::Given;
use ums_node::host::Arriving;

use crate::stored::Stored;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It has not executed an instruction here.
    Coming,
    /// It runs, and its keeper has not let go of it.
    Arrived,
    /// It is its engine's own.
    Settled,
}

/// A service that arrives in an engine's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coming {
    /// The layout, [`stored::VERSION`](crate::stored::VERSION).
    pub version: u32,
    /// The engine.
    pub engine: String,
    /// The service.
    pub specification: Specification,
    /// From where.
    pub from: Arriving,
    /// How far it is.
    pub stage: Stage,
    /// The engine's names of its volumes, by the service's.
    pub volumes: BTreeMap<String, Volume>,
    /// The container, once the engine has made it.
    #[serde(default)]
    pub made: Option<Made>,
    /// Its init, once it runs: another one knows nothing of where it came from.
    #[serde(default)]
    pub init: Option<(i32, u64)>,
}

/// A volume that an engine keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The engine's name of it.
    pub name: String,
    /// Where it is on the host.
    pub path: PathBuf,
}

/// A container that an engine has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The engine's id of it.
    pub id: String,
    /// The layer of its root filesystem that is its own.
    pub upper: PathBuf,
    /// Its address on the engine's network, once it has one.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
}

impl Coming {
    /// Its init, if that lives.
    pub fn given(&self) -> Option<Given> {
        let (init, began) = self.init?;
        let given = Given { init, began };
        (Given::of(init) == Some(given)).then_some(given)
    }
}

impl Stored for Coming {
    fn version(&self) -> u32 {
        self.version
    }
}
