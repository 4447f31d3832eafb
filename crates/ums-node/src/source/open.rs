//! Step 7: the data path is opened, and files are copied for the first time, while the service runs.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ums_api::agent::{OpenRequest, Phase};
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::MigrationId;
use ums_core::technique::Technique;
use ums_sync::files;
use ums_sync::send::{Sender, Settings};
use ums_tls::ALPN_DATA;

use super::{at_files, at_peer, not_connected, remember, trees};
use crate::host::Service;
use crate::migration::{DataPath, Outgoing};
use crate::node::Node;
use crate::task::blocking;
use crate::{permit, problem, rounds};

/// How long the connection to the destination's data path may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks whether the pages of a service are in.
const PAGES_LOOK: Duration = Duration::from_millis(10);

/// Step 7: opens the data path and copies files for the first time, while the service runs.
pub async fn open(node: &Arc<Node>, id: MigrationId, request: OpenRequest) -> Result<(), Problem> {
    let outgoing = remember(node, id, &request.service)?;
    let _operation = outgoing.operation.lock().await;
    // Whoever measures the service, and has not seen that it migrates, is done then.
    drop(node.measuring.lock().await);
    if outgoing.view().path.is_some() || outgoing.view().checkpointed.is_some() {
        return Ok(());
    }
    outgoing.enter_phase(Phase::Copying);
    outgoing.view().tunnel.clone_from(&request.tunnel);
    match outgoing
        .unless_abandoned(open_path(node, &outgoing, id, request))
        .await
    {
        Ok(path) => {
            outgoing.view().path = Some(path);
            Ok(())
        }
        Err(problem) => {
            outgoing.fail(&problem);
            // It had no effect, so nobody comes to undo it.
            node.migrations.forget(id);
            Err(problem)
        }
    }
}

async fn open_path(
    node: &Arc<Node>,
    outgoing: &Arc<Outgoing>,
    id: MigrationId,
    request: OpenRequest,
) -> Result<DataPath, Problem> {
    node.host.leave(&request.service).await?;
    let service = node.host.service(&request.service)?;
    all_pages_in(node, &service).await?;
    let permit = permit::from_text(&request.endpoint.permit)?;
    let config = ums_tls::client_config(&node.identity, &[ALPN_DATA]).map_err(|error| {
        problem::failed(ProblemKind::Tls, "this system's certificates can't be used")(&error)
    })?;
    let endpoint = &request.endpoint;
    let stream = ums_tls::connect(endpoint.address, &endpoint.system, config, CONNECT_PATIENCE)
        .await
        .map_err(|error| not_connected(&error))?;
    let settings = Settings {
        bandwidth: node.settings.bandwidth_bytes.and_then(NonZeroU64::new),
        idle: node.settings.idle,
        meter: outgoing.meter.clone(),
    };
    let sender = Sender::open(stream, id, permit, settings)
        .await
        .map_err(|e| at_peer(&e))?;
    let leave = matches!(request.technique, Technique::PostCopy | Technique::Hybrid);
    if leave && !sender.takes_away() {
        let detail = "the destination is of an earlier release, and takes no pages after the switch: migrate by \
                      pre-copy or stop-and-copy, or update it";
        let title = "technique not available";
        return Err(Problem::refused(400, ProblemKind::Technique, title, detail));
    }
    let copied_of = service.clone();
    let (this, of, mut writer) = (Arc::clone(node), service, sender.files());
    let send_image = request.send_image;
    let manifest = blocking(move || {
        let status = of.container.status();
        let status = status.map_err(|error| problem::keeper(&error))?;
        let tree = trees::all(&this, &of, &status, send_image);
        let mut mapped = || trees::mapped_files(&of, &status);
        files::first_pass(&tree, &mut writer, &mut mapped).map_err(|error| at_files(&error))
    })
    .await?;
    sender.settle().await.map_err(|error| at_peer(&error))?;
    let copied = match request.technique {
        Technique::PreCopy | Technique::Hybrid => {
            let begun = Arc::clone(outgoing);
            let begun = move |round| begun.view().round = Some(round);
            rounds::copy(&copied_of, &sender, begun, at_peer).await?
        }
        _ => None,
    };
    Ok(DataPath {
        sender,
        manifest,
        copied,
        destination: request.endpoint.system,
        leave,
    })
}

/// Waits until a service that has just arrived has all its pages: what is still to be installed would
/// be in no checkpoint. It runs meanwhile. While pages come in there is no end to that; when none does
/// for the length of the data path's patience, it is given up.
async fn all_pages_in(node: &Arc<Node>, service: &Service) -> Result<(), Problem> {
    let (mut fewest, mut since) = (u64::MAX, Instant::now());
    loop {
        let missing = service.container.status_async().await?.pages_missing;
        if missing == 0 {
            return Ok(());
        }
        if missing < fewest {
            (fewest, since) = (missing, Instant::now());
        }
        if since.elapsed() > node.settings.idle {
            let detail = format!(
                "{missing} pages of its last move are still to be installed, and none came in for \
                 {} s: the service or the system may have no memory left; try again",
                node.settings.idle.as_secs()
            );
            return Err(Problem {
                retry: true,
                ..problem::conflict(
                    ProblemKind::Installing,
                    "the service has only just arrived",
                    detail,
                )
            });
        }
        tokio::time::sleep(PAGES_LOOK).await;
    }
}
