//! Takes away what outlives a migration on purpose, once its time is over: the endpoints of a
//! Frontman that has retired, the bridge when nothing is on it, and images that nobody has used for
//! long. And puts back what somebody else has taken away: the rules of the services' network.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use ums_core::id::ServiceName;
use ums_frontman::control::Status;
use ums_node::tunnel;

use crate::host::StandaloneHost;
use crate::network::{BRIDGE, NetworkError, Removals};
use crate::state::Standalone;

/// How often to look. What is looked for is in nobody's way, and Frontmen live for minutes.
const PERIOD: Duration = tunnel::ROUND;

/// How often to look for images, in such periods: they are kept for a minute at the least.
const IMAGES_EVERY: u64 = 15;

/// How often to look at the host's own rules, in such periods: there may be thousands.
const OBSTRUCTIONS_EVERY: u64 = 3;

/// Looks for ever.
pub async fn run(host: Arc<Standalone>) {
    for round in 0_u64.. {
        sleep(PERIOD).await;
        if let Err(error) = once(&host).await {
            tracing::debug!(%error, "reconciling");
        }
        tunnel::renew(&host.frontmen, &StandaloneHost(Arc::clone(&host)), round).await;
        if round.is_multiple_of(IMAGES_EVERY) {
            images(&host).await;
        }
        if round.is_multiple_of(OBSTRUCTIONS_EVERY) {
            obstructions(&host).await;
        }
    }
}

/// Puts the rules of the network back as soon as they are removed, for ever.
pub async fn keep_rules(host: Arc<Standalone>) {
    let mut removals = Removals::listen();
    if let Err(error) = &removals {
        let seconds = PERIOD.as_secs();
        tracing::warn!(%error, "removed rules are noticed after {seconds} s only");
    }
    loop {
        let told = match &mut removals {
            Ok(removals) => timeout(PERIOD, removals.next()).await.unwrap_or(Some(())),
            Err(_) => None,
        };
        if told.is_none() {
            sleep(PERIOD).await;
        }
        if !has_bridge() {
            continue;
        }
        if let Err(error) = host.network.put_back().await {
            tracing::warn!(%error, "the rules of the network can't be kept");
        }
    }
}

/// Looks for what others drop.
async fn obstructions(host: &Standalone) {
    let found = match has_bridge() {
        true => host.network.obstructions().await,
        false => Ok(Vec::new()),
    };
    match found {
        Ok(found) => host.warn(found),
        Err(error) => tracing::debug!(%error, "the host's own rules"),
    }
}

async fn images(host: &Arc<Standalone>) {
    let this = Arc::clone(host);
    let removed = tokio::task::spawn_blocking(move || this.remove_old_images()).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(%error, "images that nobody uses can't be removed");
    }
}

async fn once(host: &Standalone) -> Result<(), NetworkError> {
    let frontmen = host.settings.run_dir.join("frontman");
    let _ = ums_frontman::record::remove_stale::<Status>(&frontmen);
    let proxies = ums_frontman::record::list::<Status>(&frontmen).unwrap_or_default();
    let proxies = proxies.into_iter().map(|record| record.status.service);
    let alive: Vec<String> = proxies.chain(tunnel::led(&host.frontmen)).collect();
    let table = host.network.table().await?;
    let endpoints = table.endpoints.values();
    let of_services = endpoints
        .map(|endpoint| &endpoint.service)
        .chain(table.moved.values());
    let mut orphans: Vec<ServiceName> = of_services
        .filter(|name| !alive.contains(&name.to_string()) && host.service(name).is_err())
        .cloned()
        .collect();
    orphans.dedup();
    let any = !orphans.is_empty();
    for name in orphans {
        host.network.unpublish(&name).await?;
    }
    // The bridge outlives its last service while an old connection still has its address.
    if any || host.all().is_empty() && has_bridge() {
        host.network.release().await?;
    }
    Ok(())
}

fn has_bridge() -> bool {
    let devices = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let name = format!("{}:", BRIDGE);
    devices
        .lines()
        .any(|line| line.trim_start().starts_with(&name))
}
