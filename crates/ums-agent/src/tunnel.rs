//! The ends of tunnels (DESIGN section 6, packet mode): processes of their own at both systems,
//! which outlive the agent. The *near* end, at the system that a service leaves, holds and then
//! leads its packets; the *far* end, at the system that it comes to, hands them to it.
//!
//! Each is found by its control socket: `RUN_DIR/tunnel/near/SERVICE.sock` and
//! `RUN_DIR/tunnel/far/MIGRATION.sock`. There can be several far ends of one service: it keeps the
//! namespace that it had at an earlier visit until it is back.

use std::path::PathBuf;
use std::sync::Arc;

use ums_api::agent::{DataEndpoint, TunnelEnd};
use ums_api::problem::Problem;
use ums_core::frontman::FrontmanMode;
use ums_core::id::{MigrationId, ServiceName};

use crate::agent::{Agent, Service};
use crate::container::netns_path;
use crate::network::{IN_DEVICE, MTU, OUT_DEVICE};
use crate::services::blocking;
use crate::{frontman, problem};
pub async fn offer(
    _: &Arc<Agent>,
    _: MigrationId,
    _: &Service,
) -> Result<Option<TunnelEnd>, Problem> {
    Ok(None)
}
pub async fn end_inbound(_: &Arc<Agent>, _: &Service) -> Result<(), Problem> {
    Ok(())
}
pub async fn begin(
    _: &Arc<Agent>,
    _: MigrationId,
    _: &Service,
    _: &DataEndpoint,
) -> Result<(), Problem> {
    Ok(())
}
pub async fn lead(_: &Arc<Agent>, _: &ServiceName) -> Result<(), Problem> {
    Ok(())
}
pub async fn give_back(_: &Arc<Agent>, _: &ServiceName) -> Result<(), Problem> {
    Ok(())
}
pub async fn retire(_: &Arc<Agent>, _: &ServiceName) -> Result<bool, Problem> {
    Ok(false)
}
pub async fn is_there(_: &Arc<Agent>, _: &ServiceName) -> Result<bool, Problem> {
    Ok(false)
}
