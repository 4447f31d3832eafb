//! What a node's part of a migration needs of whoever makes containers here: its *host*. The
//! standalone host is one; a container engine's would be another.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use ums_api::problem::Problem;
use ums_core::facts::{Loss, Obstacle};
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_core::specification::{ImageId, Specification};

use crate::container::ContainerPlan;
use crate::facts::Known;

/// What an operation of a trait object gives once it is over.
pub type Pending<'a, T, E = Problem> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// Why a place in the network can't be had; says the remedy.
pub type RouteError = Box<dyn Error + Send + Sync>;

/// From where a service arrives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arriving {
    /// By which migration.
    pub migration: MigrationId,
    /// From which system.
    pub source: SystemName,
}

/// A service of this node, as its host has it at the moment of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What it is.
    pub specification: Specification,
    /// The migration that has its gate shut: control messages are refused.
    pub gate: Option<MigrationId>,
    /// Set while the service is on its way here and has not executed.
    pub arriving: Option<Arriving>,
    /// From where its older connections come, once it has arrived from another system.
    pub inbound: Option<Arriving>,
    /// Where its endpoints lead in this system's network: not always the address that it knows itself.
    pub address: Ipv4Addr,
    /// Its container.
    pub container: ContainerPlan,
    /// What its container engine has of it; `None` where UMS has started it itself.
    pub engine: Option<Engine>,
}

/// What a container engine has of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// The engine's name on this node.
    pub name: String,
    /// Whether it holds the container still.
    pub paused: bool,
    /// What it has done with the container that stands in the way of a move.
    pub obstacles: Vec<Obstacle>,
    /// What of it a move changes.
    pub losses: Vec<Loss>,
}

impl Service {
    /// Its name.
    pub fn name(&self) -> &ServiceName {
        &self.specification.name
    }

    /// Whether it is on its way here by this migration.
    pub fn is_arriving(&self, id: MigrationId) -> bool {
        let arriving = self.arriving.as_ref();
        arriving.is_some_and(|arriving| arriving.migration == id)
    }
}

/// What of a service stays with its Frontman.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: it has none.
    Nothing,
    /// The endpoints.
    Endpoints,
    /// The endpoints and the network namespace, in its place as before.
    Network,
    /// The endpoints, and whatever has its place in the network: it is not the service's own yet.
    Place,
}

/// Whoever makes containers on this node. All operations may be repeated.
pub trait Host: Send + Sync {
    /// Every service.
    fn services(&self) -> Vec<Service>;

    /// A service by its name; unknown ones are refused with 404.
    fn service(&self, name: &ServiceName) -> Result<Service, Problem>;

    /// Looks at what can change without it, where there is such: from now on what it says of services
    /// is what they are, and of this one all that a migration asks.
    fn look<'a>(&'a self, name: Option<&'a ServiceName>) -> Pending<'a, ()> {
        let _ = name;
        Box::pin(async { Ok(()) })
    }

    /// Has all ready that a migration away from here asks of a service: its keeper.
    fn leave<'a>(&'a self, name: &'a ServiceName) -> Pending<'a, ()> {
        let _ = name;
        Box::pin(async { Ok(()) })
    }

    /// Whether nobody has told the service anything since its gate was shut: where others have control
    /// of it, they can't always be refused.
    fn is_undisturbed<'a>(&'a self, service: &'a Service) -> Pending<'a, ()> {
        let _ = service;
        Box::pin(async { Ok(()) })
    }

    /// The same right before the commit, with all that can be asked: what was told a moment ago may not have been heard.
    fn confirm<'a>(&'a self, service: &'a Service) -> Pending<'a, ()> {
        let _ = service;
        Box::pin(async { Ok(()) })
    }

    /// Shuts the gate of a service for a migration: from now on control messages are refused, also
    /// after a restart. Refused while another migration has it shut. Blocks.
    fn shut_gate(&self, name: &ServiceName, id: MigrationId) -> Result<(), Problem>;

    /// Opens the gate that this migration has shut; another one's stays. Blocks.
    fn open_gate(&self, name: &ServiceName, id: MigrationId) -> Result<(), Problem>;

    /// Whether the image of a service that is to arrive is here.
    fn has_image<'a>(&'a self, of: &'a Specification) -> Pending<'a, bool> {
        Box::pin(async { Ok(self.images().is_present(&of.image)) })
    }

    /// Makes everything of a service that arrives but its processes: name, address, ports, files,
    /// control groups and network are taken. What could not be made whole leaves nothing.
    fn arriving(&self, specification: Specification, from: Arriving) -> Pending<'_, Service>;

    /// All that comes of a service before its freeze is here, its image too: makes what could not be made without. From
    /// now on what the service changes in its root filesystem belongs where this says, if it says so.
    fn image_is_here<'a>(&'a self, name: &'a ServiceName) -> Pending<'a, Option<PathBuf>> {
        let _ = name;
        Box::pin(async { Ok(None) })
    }

    /// Whether whoever makes the container of a service that arrives still does, now that its processes are there and held.
    fn is_made(&self, service: &Service) -> Result<(), Problem> {
        let _ = service;
        Ok(())
    }

    /// Lets go of a service that has arrived, and all of whose pages are in.
    fn settled<'a>(&'a self, name: &'a ServiceName) -> Pending<'a, ()> {
        let _ = name;
        Box::pin(async { Ok(()) })
    }

    /// Writes down that a service is not on its way here any more. Blocks.
    fn arrived(&self, name: &ServiceName) -> Result<(), Problem>;

    /// Kills what there is of a service and removes all that belongs to it, but what a Frontman keeps.
    fn destroy<'a>(&'a self, service: &'a Service, keep: Keep) -> Pending<'a, ()>;

    /// Root filesystems.
    fn images(&self) -> &dyn Images;

    /// What it has here, for the facts of the node. Blocks.
    fn known(&self) -> Result<Known, Problem>;
}

/// The host's store of root filesystems. Everything here blocks.
pub trait Images {
    /// Whether the image is there.
    fn is_present(&self, id: &ImageId) -> bool;

    /// The image's files; only valid while it is present.
    fn rootfs(&self, id: &ImageId) -> PathBuf;

    /// Bytes in its files; 0 if it is not there.
    fn bytes(&self, id: &ImageId) -> Result<u64, Problem>;

    /// A place to receive it in.
    fn receive(&self, id: &ImageId) -> Result<Box<dyn Receiving>, Problem>;
}

/// An image that arrives. Dropped before it is committed, nothing is left of it.
pub trait Receiving: Send {
    /// Where its files are to be put.
    fn rootfs(&self) -> PathBuf;

    /// Takes it into the store once it is whole, if it is what its id promises. Blocks.
    fn commit(self: Box<Self>) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// Who has a service's place in this system's network, and where its endpoints lead.
pub trait Route: Send + Sync {
    /// Where a Frontman that works on connections listens.
    fn listen_address(&self) -> Ipv4Addr;

    /// Gives a service, whose network is `netns`, its place, from whoever had it.
    fn join<'a>(&'a self, service: &'a Service, netns: &'a Path) -> Pending<'a, (), RouteError>;

    /// Leads the service's endpoints to it, from whoever had them.
    fn publish<'a>(&'a self, service: &'a Service) -> Pending<'a, (), RouteError>;

    /// Leads new connections to a Frontman: for each port of the system, where it listens.
    fn take<'a>(
        &'a self,
        name: &'a ServiceName,
        listeners: &'a BTreeMap<u16, SocketAddrV4>,
    ) -> Pending<'a, (), RouteError>;

    /// Leads new connections to the service again, as before [`take`](Self::take).
    fn give_back<'a>(&'a self, name: &'a ServiceName) -> Pending<'a, (), RouteError>;

    /// Tells everybody with an open connection to the service that it is over, once the service is
    /// committed to another place. `netns` is its network, where that is still there.
    fn reset_clients<'a>(
        &'a self,
        service: &'a Service,
        netns: Option<&'a Path>,
    ) -> Pending<'a, (), RouteError>;
}
