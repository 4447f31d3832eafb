//! The host inside an outer container: the standalone one, and what must be known of the service before it
//! can be elsewhere.

use std::sync::Arc;

use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::Specification;
use ums_node::facts::Known;
use ums_node::host::{Arriving, Host, Images, Keep, Pending, Service};
use ums_node::problem;
use ums_standalone::host::StandaloneHost;
use ums_standalone::state::Standalone;

use super::slot::Slot;

/// The host of an outer container.
pub(super) struct OuterHost {
    standalone: StandaloneHost,
    service: ServiceName,
    slot: Slot,
}

impl OuterHost {
    /// `service` is the only one that it takes.
    pub(super) fn new(standalone: Arc<Standalone>, service: ServiceName, slot: Slot) -> Self {
        let standalone = StandaloneHost(standalone);
        Self {
            standalone,
            service,
            slot,
        }
    }
}

fn unwritten(error: &std::io::Error) -> Problem {
    problem::failed(
        ProblemKind::Directories,
        "it can't be written down where the service is",
    )(error)
}

impl Host for OuterHost {
    fn services(&self) -> Vec<Service> {
        self.standalone.services()
    }

    fn service(&self, name: &ServiceName) -> Result<Service, Problem> {
        self.standalone.service(name)
    }

    fn shut_gate(&self, name: &ServiceName, id: MigrationId) -> Result<(), Problem> {
        self.standalone.shut_gate(name, id)?;
        // Nobody goes on with the migration before this is written.
        self.slot.leave(id).map_err(|error| unwritten(&error))
    }

    fn open_gate(&self, name: &ServiceName, id: MigrationId) -> Result<(), Problem> {
        self.standalone.open_gate(name, id)?;
        match self.standalone.service(name)?.gate {
            None => self.slot.stay().map_err(|error| unwritten(&error)),
            Some(_) => Ok(()),
        }
    }

    fn arriving(&self, specification: Specification, from: Arriving) -> Pending<'_, Service> {
        if specification.name == self.service {
            return self.standalone.arriving(specification, from);
        }
        let detail = format!(
            "the outer container waits for `{}`, and not for `{}`",
            self.service, specification.name
        );
        let refused = problem::conflict(ProblemKind::NameTaken, "another service", detail);
        Box::pin(async move { Err(refused) })
    }

    fn arrived(&self, name: &ServiceName) -> Result<(), Problem> {
        self.standalone.arrived(name)?;
        self.slot.stay().map_err(|error| unwritten(&error))
    }

    fn destroy<'a>(&'a self, service: &'a Service, keep: Keep) -> Pending<'a, ()> {
        self.standalone.destroy(service, keep)
    }

    fn images(&self) -> &dyn Images {
        self.standalone.images()
    }

    fn known(&self) -> Result<Known, Problem> {
        let known = self.standalone.known()?;
        Ok(Known {
            outer: true,
            ..known
        })
    }
}
