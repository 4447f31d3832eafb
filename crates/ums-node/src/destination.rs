//! The destination side of a migration: everything from the reservation to the running service.

mod arrival;
mod create;
mod restore;
mod run;

use std::sync::Arc;
use std::time::Duration;

use ums_api::agent::Phase;
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::MigrationId;

use crate::host::Service;
use crate::migration::Incoming;
use crate::node::Node;
use crate::task::blocking;
use crate::{frontman, look, problem};

#[doc(hidden)]
pub use arrival::keep_pages;
pub use arrival::listen;
pub use create::create;
pub use restore::restore;
use run::arrived;
pub use run::run;

/// How long what has arrived may take to be written, or thrown away, when the rest is given up.
const RECEIVING_PATIENCE: Duration = Duration::from_secs(30);

/// Before the commit: nothing is left of it.
pub async fn discard(node: &Arc<Node>, id: MigrationId) -> Result<(), Problem> {
    let Ok(incoming) = node.migrations.incoming(id) else {
        // A `create` that this has overtaken must find that it is over.
        if node.migrations.get(id).is_err() {
            node.migrations.forget(id);
        }
        return Ok(());
    };
    let _made = made(&incoming).await?;
    let service = node.host.service(&incoming.service).ok();
    if let Some(service) = service.filter(|service| service.is_arriving(id)) {
        let status = service.container.status_if_any_async().await?;
        if status.is_some_and(|status| status.resumed_at_ns.is_some()) {
            let detail = format!("migration {id} was committed: the service runs here");
            return Err(problem::conflict(
                ProblemKind::Committed,
                "too late to discard",
                detail,
            ));
        }
        stop_receiving(&incoming).await?;
        destroy_arriving(node, &service).await?;
    } else if node.host.service(&incoming.service).is_ok() {
        let detail = format!("migration {id} was committed: the service runs here");
        return Err(problem::conflict(
            ProblemKind::Committed,
            "too late to discard",
            detail,
        ));
    }
    node.migrations.forget(id);
    Ok(())
}

/// Destroys a service that never executed here.
async fn destroy_arriving(node: &Node, service: &Service) -> Result<(), Problem> {
    let keep = frontman::keeps_of_arriving(&node.frontmen, service.name()).await?;
    node.host.destroy(service, keep).await
}

/// Waits for a container that is still being made: what is half there can't be found, and would be
/// left behind. Nobody makes it while the answer is kept.
async fn made(incoming: &Incoming) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, Problem> {
    if incoming.view().created.is_some() {
        return Ok(None);
    }
    let made = tokio::time::timeout(RECEIVING_PATIENCE, incoming.operation.lock()).await;
    made.map(Some).map_err(|_| Problem {
        retry: true,
        ..Problem::failed(
            ProblemKind::Creating,
            "the container is still being made",
            "it is discarded once it is there: try again",
        )
    })
}

/// Ends the data path and waits until it writes nothing more.
async fn stop_receiving(incoming: &Incoming) -> Result<(), Problem> {
    incoming.discarded.send_replace(true);
    let ended = tokio::time::timeout(RECEIVING_PATIENCE, incoming.receiving.lock()).await;
    ended.map(drop).map_err(|_| Problem {
        retry: true,
        ..Problem::failed(
            ProblemKind::Receiving,
            "what arrives is still being written",
            "the disk does not take what it was given",
        )
    })
}

/// After the last page is in: the working state goes, the service stays.
pub async fn settle(node: &Arc<Node>, id: MigrationId) -> Result<(), Problem> {
    let Ok(incoming) = node.migrations.incoming(id) else {
        return Ok(());
    };
    let (this, of) = (Arc::clone(node), Arc::clone(&incoming));
    let state = blocking(move || Ok(look::incoming(&this, id, &of))).await?;
    if state.phase == Phase::Installing {
        let detail = format!("{} pages are still to be installed", state.pages_pending);
        return Err(Problem {
            retry: true,
            ..problem::conflict(ProblemKind::Installing, "not settled yet", detail)
        });
    }
    let service = node.host.service(&incoming.service);
    if service.is_ok_and(|service| service.is_arriving(id)) {
        arrived(node, &incoming.service).await?;
    }
    node.host.settled(&incoming.service).await?;
    node.migrations.forget(id);
    Ok(())
}
