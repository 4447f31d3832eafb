//! A node without a single service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use ums_api::problem::{Problem, ProblemKind};
use ums_core::frontman::FrontmanMode;
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::{ImageId, Specification};

use super::*;
use crate::facts::Known;
use crate::host::{Arriving, Images, Keep, Pending, Receiving, RouteError, Service};
use crate::packets::Inside;
use crate::{launch, problem};

/// A host that makes nothing.
struct Empty;

fn nothing<T>() -> Result<T, Problem> {
    Err(Problem::failed(
        ProblemKind::Other("test".to_owned()),
        "this host makes nothing",
        "test",
    ))
}

impl Host for Empty {
    fn services(&self) -> Vec<Service> {
        Vec::new()
    }

    fn service(&self, name: &ServiceName) -> Result<Service, Problem> {
        Err(problem::unknown_service(name))
    }

    fn shut_gate(&self, name: &ServiceName, _: MigrationId) -> Result<(), Problem> {
        Err(problem::unknown_service(name))
    }

    fn open_gate(&self, name: &ServiceName, _: MigrationId) -> Result<(), Problem> {
        Err(problem::unknown_service(name))
    }

    fn arriving(&self, _: Specification, _: Arriving) -> Pending<'_, Service> {
        Box::pin(async { nothing() })
    }

    fn arrived(&self, name: &ServiceName) -> Result<(), Problem> {
        Err(problem::unknown_service(name))
    }

    fn destroy<'a>(&'a self, _: &'a Service, _: Keep) -> Pending<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn images(&self) -> &dyn Images {
        self
    }

    fn known(&self) -> Result<Known, Problem> {
        Ok(Known {
            services: BTreeSet::new(),
            addresses: BTreeSet::new(),
            ports: BTreeSet::new(),
            service_network: (Ipv4Addr::UNSPECIFIED, 0),
            images: BTreeSet::new(),
            covered: Vec::new(),
            warnings: Vec::new(),
            engines: Vec::new(),
            outer: false,
        })
    }
}

impl Images for Empty {
    fn is_present(&self, _: &ImageId) -> bool {
        false
    }

    fn rootfs(&self, _: &ImageId) -> PathBuf {
        PathBuf::new()
    }

    fn bytes(&self, _: &ImageId) -> Result<u64, Problem> {
        Ok(0)
    }

    fn receive(&self, _: &ImageId) -> Result<Box<dyn Receiving>, Problem> {
        nothing()
    }
}

impl Route for Empty {
    fn listen_address(&self) -> Ipv4Addr {
        Ipv4Addr::LOCALHOST
    }

    fn join<'a>(&'a self, _: &'a Service, _: &'a Path) -> Pending<'a, (), RouteError> {
        Box::pin(async { Ok(()) })
    }

    fn publish<'a>(&'a self, _: &'a Service) -> Pending<'a, (), RouteError> {
        Box::pin(async { Ok(()) })
    }

    fn take<'a>(
        &'a self,
        _: &'a ServiceName,
        _: &'a BTreeMap<u16, SocketAddrV4>,
    ) -> Pending<'a, (), RouteError> {
        Box::pin(async { Ok(()) })
    }

    fn give_back<'a>(&'a self, _: &'a ServiceName) -> Pending<'a, (), RouteError> {
        Box::pin(async { Ok(()) })
    }

    fn reset_clients<'a>(
        &'a self,
        _: &'a Service,
        _: Option<&'a Path>,
    ) -> Pending<'a, (), RouteError> {
        Box::pin(async { Ok(()) })
    }
}

/// The node of the system `b`, with these certificates.
pub(crate) fn node(identity: Identity) -> Node {
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let nowhere = Path::new("/nonexistent");
    let packets: Arc<dyn Packets> = Arc::new(Inside::new(None));
    let route: Arc<dyn Route> = Arc::new(Empty);
    let frontmen = Launcher {
        settings: launch::Settings {
            run_dir: nowhere.to_owned(),
            log: nowhere.join("frontman.log"),
            program: nowhere.join("ums-frontman"),
            mode: FrontmanMode::Packets,
            address,
            tunnel_ports: None,
            hold_connections: 1,
            hold_seconds: 1,
            retire_seconds: 1,
        },
        identity: identity.clone(),
        packets: Arc::clone(&packets),
        route: Arc::clone(&route),
    };
    Node {
        settings: Settings {
            system: "b".parse().expect("a name"),
            address,
            data_port: 0,
            bandwidth_bytes: None,
            idle: Duration::from_secs(30),
            freeze: Duration::from_secs(5),
            eager_restore: None,
        },
        identity,
        host: Arc::new(Empty),
        route,
        packets,
        frontmen: Arc::new(frontmen),
        migrations: Migrations::default(),
        machine: Machine::new(nowhere, nowhere, "/ums/none", None),
        measuring: Default::default(),
    }
}
