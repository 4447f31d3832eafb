//! Steps 4 to 6: the reservation becomes a container without processes.

use std::sync::Arc;

use ums_api::agent::{CreateRequest, Created, Phase};
use ums_api::problem::Problem;
use ums_core::id::MigrationId;

use super::Incoming;
use crate::agent::{Agent, Migration};
use crate::record::Arriving;
use crate::services::{self, blocking};
use crate::tunnel;
use ums_node::problem;

/// Steps 4 to 6: everything but the processes; name, address and ports are taken.
pub async fn create(
    agent: &Arc<Agent>,
    id: MigrationId,
    request: CreateRequest,
) -> Result<Created, Problem> {
    let name = request.specification.name.clone();
    let known = |migration: &Migration| match migration {
        Migration::Incoming(incoming) => Some(Arc::clone(incoming)),
        Migration::Outgoing(_) => None,
    };
    let incoming = agent.enter(id, known, || {
        let incoming = Arc::new(Incoming::new(name.clone(), request.source.clone()));
        (Arc::clone(&incoming), Migration::Incoming(incoming))
    })?;
    let _operation = incoming.operation.lock().await;
    if let Some(created) = incoming.view().created.clone() {
        return Ok(created);
    }
    let created = create_once(agent, id, &incoming, request).await;
    match &created {
        // Discarded while it was being made: nobody will ask for it any more.
        Ok(_) if agent.migration(id).is_err() => {
            if let Ok(service) = agent.service(&incoming.service) {
                services::destroy_arriving(agent, &service).await?;
            }
            return Err(problem::unknown_migration(id));
        }
        Ok(created) => incoming.view().created = Some(created.clone()),
        Err(_) => agent.forget_migration(id),
    }
    created
}

async fn create_once(
    agent: &Arc<Agent>,
    id: MigrationId,
    incoming: &Incoming,
    request: CreateRequest,
) -> Result<Created, Problem> {
    let specification = request.specification;
    crate::bundle::check(&specification).map_err(|error| {
        let detail = problem::chain(&error);
        Problem::refused(
            400,
            "specification",
            "the Specification is not acceptable",
            detail,
        )
    })?;
    agent.can_confine(&specification)?;
    let image_needed = !agent.images.present(&specification.image);
    let endpoints = agent.endpoints(&specification);
    let arriving = Arriving {
        migration: id,
        source: request.source,
    };
    let kept = services::kept_addresses(agent).await?;
    let this = Arc::clone(agent);
    let service = blocking(move || {
        let _admission = this.admission();
        services::free_ports(&this, &specification)?;
        let on_bridge = services::address_for_arrival(&this, &specification, &kept)?;
        services::prepare(&this, specification, Some(arriving), on_bridge)
    })
    .await?;
    if let Some(address) = service.record.on_bridge {
        let own = service.record.specification.address;
        tracing::info!(migration = %id, %own, %address, "its address is taken here: it has another on the bridge");
    }
    if let Err(problem) = services::connect(agent, &service).await {
        if let Err(error) = services::destroy_arriving(agent, &service).await {
            tracing::warn!(migration = %id, %error, "a container that was not made left something");
        }
        return Err(problem);
    }
    let tunnel = match tunnel::offer(agent, id, &service).await {
        Ok(tunnel) => tunnel,
        Err(problem) => {
            if let Err(error) = services::destroy_arriving(agent, &service).await {
                tracing::warn!(migration = %id, %error, "a container that was not made left something");
            }
            return Err(problem);
        }
    };
    let permit = random_permit()?;
    let mut view = incoming.view();
    view.permit = Some(blake3::hash(&permit));
    view.memory_bytes_max = request.memory_bytes_max;
    view.image_needed = image_needed;
    view.phase = Some(Phase::Prepared);
    Ok(Created {
        data_port: agent.data_port,
        permit: blake3::Hash::from_bytes(permit).to_hex().to_string(),
        image_needed,
        endpoints,
        tunnel,
    })
}

pub(super) fn random_permit() -> Result<[u8; 32], Problem> {
    use std::io::Read;
    let mut permit = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut permit))
        .map_err(|error| problem::failed("random", "no random numbers")(&error))?;
    Ok(permit)
}
