//! Steps 4 to 6: the reservation becomes a container without processes.

use std::sync::Arc;

use ums_api::agent::{CreateRequest, Created, Phase};
use ums_api::problem::Problem;
use ums_core::id::MigrationId;

use super::destroy_arriving;
use super::restore::stand_by;
use crate::host::Arriving;
use crate::migration::{Incoming, Migration};
use crate::node::Node;
use crate::{look, permit, problem, tunnel};

/// Steps 4 to 6: everything but the processes; name, address and ports are taken.
pub async fn create(
    node: &Arc<Node>,
    id: MigrationId,
    request: CreateRequest,
) -> Result<Created, Problem> {
    let name = request.specification.name.clone();
    let known = |migration: &Migration| match migration {
        Migration::Incoming(incoming) => Some(Arc::clone(incoming)),
        Migration::Outgoing(_) => None,
    };
    let incoming = node.migrations.enter(id, known, || {
        let incoming = Arc::new(Incoming::new(name.clone(), request.source.clone()));
        (Arc::clone(&incoming), Migration::Incoming(incoming))
    })?;
    let _operation = incoming.operation.lock().await;
    if let Some(created) = incoming.view().created.clone() {
        return Ok(created);
    }
    let created = create_once(node, id, &incoming, request).await;
    match &created {
        // Discarded while it was being made: nobody will ask for it any more.
        Ok(_) if node.migrations.get(id).is_err() => {
            if let Ok(service) = node.host.service(&incoming.service) {
                destroy_arriving(node, &service).await?;
            }
            return Err(problem::unknown_migration(id));
        }
        Ok(created) => incoming.view().created = Some(created.clone()),
        Err(_) => node.migrations.forget(id),
    }
    created
}

async fn create_once(
    node: &Arc<Node>,
    id: MigrationId,
    incoming: &Incoming,
    request: CreateRequest,
) -> Result<Created, Problem> {
    let specification = request.specification;
    let image_needed = !node.host.has_image(&specification).await?;
    let endpoints = look::endpoints(node, &specification);
    let from = Arriving {
        migration: id,
        source: request.source,
    };
    let service = node.host.arriving(specification, from).await?;
    let made = async {
        let tunnel = tunnel::offer(&node.frontmen, id, &service).await?;
        Ok((tunnel, stand_by(node, &service).await?))
    };
    let (tunnel, stood_by) = match made.await {
        Ok(made) => made,
        Err(problem) => {
            if let Err(error) = destroy_arriving(node, &service).await {
                tracing::warn!(migration = %id, %error, "a container that was not made left something");
            }
            return Err(problem);
        }
    };
    let permit = permit::random()?;
    let mut view = incoming.view();
    view.permit = Some(blake3::hash(&permit));
    view.memory_bytes_max = request.memory_bytes_max;
    view.image_needed = image_needed;
    view.stood_by = Some(stood_by);
    view.phase = Some(Phase::Prepared);
    Ok(Created {
        data_port: node.settings.data_port,
        permit: blake3::Hash::from_bytes(permit).to_hex().to_string(),
        image_needed,
        endpoints,
        tunnel,
    })
}
