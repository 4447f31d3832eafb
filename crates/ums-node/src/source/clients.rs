//! Steps 8 and 14: what clients meet while the service moves, and once it has.

use std::sync::Arc;

use ums_api::agent::LeadRequest;
use ums_api::problem::Problem;
use ums_checkpoint::keeper::protocol::Connections;
use ums_core::frontman::FrontmanMode;
use ums_core::id::{MigrationId, ServiceName};

use super::gated;
use crate::node::Node;
use crate::{frontman, tunnel};

/// Step 8: the Frontman takes the endpoint and holds what arrives.
pub async fn hold(node: &Arc<Node>, id: MigrationId, name: ServiceName) -> Result<(), Problem> {
    let service = gated(node, id, &name)?;
    let outgoing = node.migrations.outgoing(id)?;
    match outgoing.tunnel() {
        Some(end) if node.frontmen.settings.mode == FrontmanMode::Packets => {
            tunnel::begin(&node.frontmen, id, &service, &end).await?;
            outgoing.decide_connections(Connections::Carry);
        }
        _ => {
            frontman::take_endpoints(&node.frontmen, id, &service).await?;
            outgoing.decide_connections(Connections::Close);
        }
    }
    Ok(())
}

/// Step 14: the Frontman leads clients to the new place. Content when none is the migration's.
pub async fn lead(node: &Node, id: MigrationId, request: LeadRequest) -> Result<(), Problem> {
    frontman::lead(&node.frontmen, id, request).await
}

/// Compensation of [`hold`]: the endpoint is the service's again, and what was held goes to it. The
/// service must run.
pub async fn yield_to_service(
    node: &Node,
    id: MigrationId,
    name: ServiceName,
) -> Result<(), Problem> {
    let service = node.host.service(&name).ok();
    frontman::yield_to_service(&node.frontmen, id, &name, service.as_ref()).await
}
