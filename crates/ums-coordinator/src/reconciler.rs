//! What must be kept true for ever: compares what the journal says with what is, and mends it.
//!
//! At the start every outgoing migration that is not over is taken up again: abandoned when it was
//! not committed, carried forward when it was. So is, later, one whose first line was written though
//! an error said otherwise. And periodically arriving services are looked after: leases reclaimed, doubts resolved with the source, commits carried out, pages that are all
//! in settled, what was aborted discarded.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::task::JoinSet;
use ums_api::peer::Decision;
use ums_core::id::{MigrationId, SystemName};
use ums_core::saga::Action;

use crate::destination;
use crate::journal::JournalError;
use crate::policy;
use crate::shared::Shared;
use crate::source;

/// Takes up what no task runs, because a restart has interrupted it. To be called before anybody can
/// ask for anything, so that no new migration takes a service that an old one has.
pub(crate) async fn take_up(shared: &Arc<Shared>) -> Result<(), JournalError> {
    for (id, _, open) in shared.journal(|journal| journal.outgoing()).await? {
        if !open || shared.registry.get(id).is_some() {
            continue;
        }
        let Some((saga, written)) = shared.journal(move |journal| journal.saga(id)).await? else {
            continue;
        };
        if saga.what_next() != Action::Rest {
            tracing::info!(migration = %id, committed = saga.is_committed(), "taken up again");
            source::resume(shared, saga, written);
        }
    }
    Ok(())
}

/// Looks after arriving services, for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(shared.config.limits.reconcile_every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = take_up(&shared).await {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "the reconciler can't take up what nobody runs");
        }
        let open = match shared.journal(|journal| journal.all_incoming(true)).await {
            Ok(open) => open,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "the reconciler can't read the journal");
                continue;
            }
        };
        let ids: BTreeSet<MigrationId> = open.iter().map(|(id, _)| *id).collect();
        shared.arrivals.keep(&ids);
        // Each by itself: one whose source does not answer must not hold up the others. All end
        // before the next round, and with this task.
        let mut round = JoinSet::new();
        for (id, incoming) in open {
            let shared = Arc::clone(&shared);
            round.spawn(async move {
                look_after(&shared, id, (incoming.source, incoming.version)).await
            });
        }
        while round.join_next().await.is_some() {}
    }
}

/// `source`: who sends it, and the version that was agreed on.
async fn look_after(shared: &Shared, id: MigrationId, source: (SystemName, u32)) {
    match destination::reconcile(shared, id).await {
        Ok(false) => {}
        Ok(true) => ask_source(shared, id, source).await,
        Err(refused) => {
            tracing::warn!(migration = %id, problem = %refused.0, "an arriving service is tried again");
        }
    }
}

/// A prepared instance of which nothing more is heard: only the source knows whether it is the
/// service. Until it says so, the instance is held, however long that takes.
async fn ask_source(shared: &Shared, id: MigrationId, (source, version): (SystemName, u32)) {
    let client = match policy::peer(shared, &source) {
        Ok(peer) => shared.peers.client(&source, peer.address).speaking(version),
        Err(denied) => {
            tracing::warn!(migration = %id, %denied, "in doubt, and the source can't be asked");
            return;
        }
    };
    let acted = match client.decision(id).await {
        Ok(Decision::Committed) => destination::commit(shared, source, id).await.map(|_| ()),
        Ok(Decision::Abandoned) => destination::abort(shared, source, id).await,
        Ok(Decision::Undecided) => Ok(()),
        Err(error) => {
            tracing::warn!(migration = %id, error = error.chain(), "in doubt, and the source does not answer");
            Ok(())
        }
    };
    if let Err(refused) = acted {
        tracing::warn!(migration = %id, problem = %refused.0, "the source's decision is carried out later");
    }
}
