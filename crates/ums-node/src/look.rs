//! What a node tells of itself, of its services, and of the migrations that it takes part in.
//! Everything here blocks.

use std::net::SocketAddr;

use ums_api::agent::{EngineView, IncomingPages, MigrationState, ServiceStatus, ServiceView};
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::client;
use ums_checkpoint::keeper::protocol::Phase;
use ums_core::facts::{Loss, NodeFacts, ServiceFacts};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::Specification;

use crate::host::{Engine, Service};
use crate::migration::{Incoming, Migration, Outgoing};
use crate::node::Node;
use crate::{inspect, problem};

/// Length of a page, as the keeper counts them.
const PAGE_BYTES: u64 = 4096;

/// Where clients reach a service on this system.
pub fn endpoints(node: &Node, specification: &Specification) -> Vec<SocketAddr> {
    let ports = specification.ports.iter();
    let at = |port: u16| SocketAddr::new(node.settings.address, port);
    ports.map(|port| at(port.system_port)).collect()
}

/// What this node is and has.
pub fn facts(node: &Node) -> Result<NodeFacts, Problem> {
    let facts = node.machine.facts(node.host.known()?);
    facts.map_err(|error| {
        problem::failed(ProblemKind::Facts, "this node can't be looked at")(&error)
    })
}

/// Every service.
pub fn services(node: &Node) -> Vec<ServiceView> {
    let services = node.host.services();
    services.iter().map(|service| view(node, service)).collect()
}

/// A service as it is listed.
pub fn view(node: &Node, service: &Service) -> ServiceView {
    let asked = service.container.status();
    let is_gone = asked.as_ref().is_err_and(client::Error::is_gone);
    let status = asked.ok();
    let phase = status.as_ref().map(|status| status.phase.clone());
    let arriving = service.arriving.as_ref();
    let resumed = status
        .as_ref()
        .is_some_and(|status| status.resumed_at_ns.is_some());
    // From the freeze on, and not only when its checkpoint is whole.
    let stands_still = status
        .as_ref()
        .is_some_and(|status| status.frozen_at_ns.is_some());
    let status_init = status.as_ref().and_then(|status| status.init_pid);
    ServiceView {
        status: match phase {
            _ if service.engine.as_ref().is_some_and(|engine| engine.paused) => {
                ServiceStatus::Paused
            }
            Some(Phase::Frozen) => ServiceStatus::Frozen,
            Some(Phase::Dumping) if stands_still => ServiceStatus::Frozen,
            Some(Phase::Running | Phase::Dumping) if arriving.is_none() || resumed => {
                ServiceStatus::Running
            }
            Some(Phase::Dead { .. }) => ServiceStatus::Exited,
            None if is_gone => ServiceStatus::Exited,
            // A keeper that is busy has a service that goes on, as far as anybody knows.
            None if arriving.is_none() => ServiceStatus::Running,
            _ => ServiceStatus::Arriving,
        },
        init_pid: status.as_ref().and_then(|status| status.init_pid),
        pages: status.as_ref().map(|status| IncomingPages {
            missing: status.pages_missing,
            at_risk_us: status.at_risk_us,
            lost: status.pages_lost.clone(),
        }),
        losses: status
            .into_iter()
            .flat_map(|status| status.lost)
            .map(Loss::from)
            .collect(),
        migration: service.gate.or(arriving.map(|arriving| arriving.migration)),
        endpoints: endpoints(node, &service.specification),
        specification: service.specification.clone(),
        memory_bytes: status_init.map(inspect::memory_bytes),
        engine: service.engine.as_ref().map(of_engine),
    }
}

fn of_engine(engine: &Engine) -> EngineView {
    EngineView {
        name: engine.name.clone(),
        obstacles: engine.obstacles.clone(),
    }
}

/// What a service is made of.
pub fn service(node: &Node, name: &ServiceName) -> Result<ServiceFacts, Problem> {
    let service = node.host.service(name)?;
    let gate = service.gate;
    let specification = service.specification;
    let status = service.container.status_if_any()?;
    // Asked before the memory is: what comes in meanwhile is counted twice, and nothing not at all.
    let missing = status.as_ref().map_or(0, |status| status.pages_missing);
    let init = status.and_then(|status| status.init_pid);
    let image_bytes = node.host.images().bytes(&specification.image)?;
    let Some(init) = init else {
        return Ok(ServiceFacts {
            specification,
            running: false,
            processes: 0,
            threads: 0,
            memory_bytes: 0,
            filesystem_bytes: 0,
            image_bytes,
            connections: 0,
            obstacles: Vec::new(),
            losses: Vec::new(),
            migrating: gate,
        });
    };
    let failed = problem::failed(ProblemKind::Inspect, "the service can't be inspected");
    let directories = service.container.directories();
    let mut seen = inspect::inspect(init, &directories).map_err(|error| failed(&error))?;
    if let Some(engine) = &service.engine {
        seen.obstacles.splice(0..0, engine.obstacles.clone());
        seen.losses.extend(engine.losses.clone());
    }
    if let Some(limit) = specification.memory_limit_bytes {
        let over = inspect::over_limit(init, limit).map_err(|error| failed(&error))?;
        seen.obstacles.extend(over);
    }
    seen.memory_bytes = with_missing(seen.memory_bytes, missing);
    Ok(ServiceFacts {
        image_bytes,
        ..seen.facts(specification, gate)
    })
}

/// What a checkpoint of a service has to carry that has so many bytes, and whose last move still has so many pages
/// to bring: they are in by then.
fn with_missing(bytes: u64, pages: u64) -> u64 {
    bytes.saturating_add(pages.saturating_mul(PAGE_BYTES))
}

/// All migrations.
pub fn migrations(node: &Node) -> Vec<MigrationState> {
    let all = node.migrations.all().into_iter();
    all.map(|(id, migration)| state(node, id, &migration))
        .collect()
}

/// One migration.
pub fn migration(node: &Node, id: MigrationId) -> Result<MigrationState, Problem> {
    Ok(state(node, id, &node.migrations.get(id)?))
}

fn state(node: &Node, id: MigrationId, migration: &Migration) -> MigrationState {
    match migration {
        Migration::Outgoing(outgoing) => self::outgoing(node, id, outgoing),
        Migration::Incoming(incoming) => self::incoming(node, id, incoming),
    }
}

fn outgoing(node: &Node, id: MigrationId, outgoing: &Outgoing) -> MigrationState {
    let service = node.host.service(&outgoing.service).ok();
    outgoing.state(
        id,
        service.and_then(|service| service.container.status().ok()),
    )
}

pub(crate) fn incoming(node: &Node, id: MigrationId, incoming: &Incoming) -> MigrationState {
    let service = node.host.service(&incoming.service).ok();
    incoming.state(id, service.map(|service| service.container.status()))
}

#[cfg(test)]
mod test {
    use super::with_missing;

    #[test]
    fn what_is_still_to_come_in_is_announced() {
        assert_eq!(with_missing(8192, 0), 8192);
        assert_eq!(with_missing(8192, 3), 8192 + 3 * 4096);
        assert_eq!(with_missing(1, u64::MAX), u64::MAX);
    }
}
