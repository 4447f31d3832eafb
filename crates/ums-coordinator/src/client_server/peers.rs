//! The peers, and whether each can be used.

use axum::extract::State;
use axum::response::Response;
use tokio::task::JoinSet;
use ums_api::client::{PeerStatus, PeerView};
use ums_core::id::SystemName;
use ums_core::preflight::RefusalKind;

use super::Own;
use crate::config::PeerConfig;
use crate::peer::{self, PeerClient};
use crate::problem::ok;

/// Asks all of them at once: each may take as long as a connection may.
pub(super) async fn list(State(shared): Own) -> Response {
    let mut asked = JoinSet::new();
    let ours = &shared.config.peer_versions;
    for (name, config) in shared.settings.now().peers.clone() {
        let client = shared.peers.client(&name, config.address);
        asked.spawn(view(ours.clone(), name, config, client));
    }
    let mut views = asked.join_all().await;
    views.sort_by(|a, b| a.name.cmp(&b.name));
    ok(&views)
}

async fn view(
    ours: Vec<u32>,
    name: SystemName,
    config: PeerConfig,
    client: PeerClient,
) -> PeerView {
    let (version, problem) = match client.hello(None).await {
        Ok(hello) => (
            Some(hello.program.clone()),
            peer::agree(&ours, &name, &hello).err(),
        ),
        Err(error) => (None, Some(peer::refusal(&name, &error))),
    };
    let status = match problem.as_ref().map(|refusal| refusal.kind) {
        None => PeerStatus::Ready,
        Some(RefusalKind::PeerUntrusted | RefusalKind::PeerDenied) => PeerStatus::Untrusted,
        Some(RefusalKind::PeerVersion) => PeerStatus::OtherVersion,
        Some(_) => PeerStatus::Unreachable,
    };
    PeerView {
        name,
        address: config.address,
        allow: config.allow.into_iter().collect(),
        status,
        version,
        detail: problem.map(|refusal| refusal.to_string()),
    }
}
