//! Services that are removed, and what of one stays for its clients.

use std::sync::Arc;
use std::time::Duration;

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::Request;
use ums_core::id::ServiceName;
use ums_node::host::{Keep, Service};
use ums_node::task::blocking;
use ums_node::{frontman, problem, tunnel};

use crate::state::Standalone;

/// Removes a service that is not migrating, or the Frontman of one that has moved away.
pub async fn remove(host: &Arc<Standalone>, name: &ServiceName) -> Result<(), Problem> {
    let service = match host.service(name) {
        Ok(service) => service,
        Err(unknown) => return remove_frontman(host, name, unknown).await,
    };
    let arriving = service.arriving.as_ref().map(|arriving| arriving.migration);
    if let Some(id) = service.gate.or(arriving) {
        let detail = format!("`{name}` is being moved by migration {id}: abort that first");
        return Err(problem::conflict(
            ProblemKind::Migrating,
            "the service is migrating",
            detail,
        ));
    }
    destroy(host, &service, Keep::Nothing).await
}

/// The service runs elsewhere, and what is left here leads its clients there: it retires now.
async fn remove_frontman(
    host: &Arc<Standalone>,
    name: &ServiceName,
    unknown: Problem,
) -> Result<(), Problem> {
    if !frontman::retire(&host.frontmen, name, None, Duration::ZERO).await? {
        return Err(unknown);
    }
    let failed = problem::failed(ProblemKind::Network, "the endpoint can't be removed");
    host.network
        .unpublish(name)
        .await
        .map_err(|error| failed(&error))?;
    host.network
        .release()
        .await
        .map(drop)
        .map_err(|error| failed(&error))
}

/// [`destroy`]s a service that never executed here. Where it had been before, the Frontman of that
/// time keeps its place.
pub async fn destroy_arriving(host: &Arc<Standalone>, service: &Service) -> Result<(), Problem> {
    let keep = frontman::keeps_of_arriving(&host.frontmen, service.name()).await?;
    destroy(host, service, keep).await
}

/// Kills what there is of a service and removes all that belongs to it, but what a Frontman keeps.
/// Repeating it is harmless.
pub async fn destroy(host: &Arc<Standalone>, service: &Service, keep: Keep) -> Result<(), Problem> {
    let name = &service.specification.name;
    let failed = problem::failed(
        ProblemKind::Network,
        "the service's network can't be removed",
    );
    if keep == Keep::Nothing {
        let unpublished = host.network.unpublish(name).await;
        unpublished.map_err(|error| failed(&error))?;
    }
    let container = service.container.clone();
    blocking(move || match container.ask(&Request::Quit) {
        Ok(_) => Ok(()),
        // Its keeper is lost: what the control group still holds has nobody else.
        Err(error) if error.is_gone() => container.kill(),
        Err(error) => Err(problem::keeper(&error)),
    })
    .await?;
    if keep == Keep::Nothing || keep == Keep::Endpoints {
        let removed = host.network.detach(name).await;
        removed.map_err(|error| failed(&error))?;
    }
    let unwired = host.network.unwire(name).await;
    unwired.map_err(|error| failed(&error))?;
    if keep != Keep::Network {
        tunnel::end_inbound(&host.frontmen, service).await?;
    }
    let (this, of) = (Arc::clone(host), service.clone());
    blocking(move || {
        this.settings.places(of.name()).remove().map_err(|error| {
            Problem::failed(
                ProblemKind::Directories,
                "the service's files can't be removed",
                error.to_string(),
            )
        })?;
        this.forget(of.name());
        Ok(())
    })
    .await?;
    if let Err(error) = host.network.release().await {
        tracing::debug!(%error, "the service network stays");
    }
    Ok(())
}
