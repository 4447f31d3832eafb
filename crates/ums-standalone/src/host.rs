//! The standalone host, as a migration sees it.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::{ImageId, Specification};
use ums_node::facts::{Known, Port};
use ums_node::host::{Arriving, Host, Images, Keep, Pending, Receiving, Service};
use ums_node::problem;
use ums_node::task::blocking;

use crate::images::{ImageError, ImageStore, Staging};
use crate::state::Standalone;
use crate::{addresses, bundle, network, removal, services};

/// The standalone host, for a [`Node`](ums_node::node::Node).
#[derive(Clone)]
pub struct StandaloneHost(pub Arc<Standalone>);

impl Host for StandaloneHost {
    fn services(&self) -> Vec<Service> {
        self.0.services()
    }

    fn service(&self, name: &ServiceName) -> Result<Service, Problem> {
        self.0.service(name)
    }

    fn shut_gate(&self, name: &ServiceName, id: MigrationId) -> Result<(), Problem> {
        self.0.update(name, |record| match record.gate {
            Some(other) if other != id => {
                let detail =
                    format!("migration {other} is moving it: wait for its end or abort it");
                Err(problem::conflict(
                    ProblemKind::Migrating,
                    "the service is migrating",
                    detail,
                ))
            }
            _ => {
                record.gate = Some(id);
                Ok(())
            }
        })
    }

    fn open_gate(&self, name: &ServiceName, id: MigrationId) -> Result<(), Problem> {
        self.0.update(name, |record| {
            record.gate = record.gate.filter(|gate| *gate != id);
            Ok(())
        })
    }

    fn arriving(&self, specification: Specification, from: Arriving) -> Pending<'_, Service> {
        Box::pin(arriving(&self.0, specification, from))
    }

    fn arrived(&self, name: &ServiceName) -> Result<(), Problem> {
        self.0.update(name, |record| {
            record.arriving = None;
            Ok(())
        })
    }

    fn destroy<'a>(&'a self, service: &'a Service, keep: Keep) -> Pending<'a, ()> {
        Box::pin(removal::destroy(&self.0, service, keep))
    }

    fn images(&self) -> &dyn Images {
        &self.0.images
    }

    fn known(&self) -> Result<Known, Problem> {
        let records = self.0.all();
        let specifications = || records.iter().map(|record| &record.specification);
        let network = self.0.settings.network;
        let images = self.0.images.list();
        Ok(Known {
            services: specifications().map(|of| of.name.clone()).collect(),
            addresses: records.iter().map(|record| record.on_bridge()).collect(),
            ports: specifications()
                .flat_map(|of| &of.ports)
                .map(Port::of)
                .collect(),
            service_network: (network::base(network), network.prefix_len),
            images: images.map_err(|error| unreadable(&error))?,
            covered: bundle::covered_proc_paths().collect(),
            warnings: self.0.warnings(),
            engines: Vec::new(),
            outer: false,
        })
    }
}

/// Steps 4 to 6: everything but the processes; name, address and ports are taken.
async fn arriving(
    host: &Arc<Standalone>,
    specification: Specification,
    from: Arriving,
) -> Result<Service, Problem> {
    bundle::check(&specification).map_err(|error| {
        let detail = problem::chain(&error);
        Problem::refused(
            400,
            ProblemKind::Specification,
            "the Specification is not acceptable",
            detail,
        )
    })?;
    host.can_confine(&specification)?;
    let kept = addresses::kept(host).await?;
    let (this, id) = (Arc::clone(host), from.migration);
    let service = blocking(move || {
        let _admission = this.admission();
        addresses::free_ports(&this, &specification)?;
        let on_bridge = addresses::for_arrival(&this, &specification, &kept)?;
        services::prepare(&this, specification, Some(from), on_bridge)
    })
    .await?;
    let (own, address) = (service.specification.address, service.address);
    if own != address {
        tracing::info!(migration = %id, %own, %address, "its address is taken here: it has another on the bridge");
    }
    if let Err(problem) = services::connect(host, &service).await {
        if let Err(error) = removal::destroy_arriving(host, &service).await {
            tracing::warn!(migration = %id, %error, "a container that was not made left something");
        }
        return Err(problem);
    }
    Ok(service)
}

fn unreadable(error: &ImageError) -> Problem {
    problem::failed(ProblemKind::Images, "the image store can't be read")(error)
}

impl Images for ImageStore {
    fn is_present(&self, id: &ImageId) -> bool {
        self.present(id)
    }

    fn rootfs(&self, id: &ImageId) -> PathBuf {
        Self::rootfs(self, id)
    }

    fn bytes(&self, id: &ImageId) -> Result<u64, Problem> {
        Self::bytes(self, id).map_err(|error| unreadable(&error))
    }

    fn receive(&self, id: &ImageId) -> Result<Box<dyn Receiving>, Problem> {
        match self.staging(id) {
            Ok(staging) => Ok(Box::new(staging)),
            Err(error) => {
                let failed =
                    problem::failed(ProblemKind::Images, "the image store can't be written");
                Err(failed(&error))
            }
        }
    }
}

impl Receiving for Staging {
    fn rootfs(&self) -> PathBuf {
        Self::rootfs(self)
    }

    fn commit(self: Box<Self>) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(Self::commit(*self)?)
    }
}
