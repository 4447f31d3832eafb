//! A migration that we receive.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Mutex as AsyncMutex, watch};
use ums_api::agent::{Created, MigrationState, Phase, Restored, Role};
use ums_checkpoint::keeper::client;
use ums_checkpoint::keeper::protocol as keeper;
use ums_checkpoint::memory_dir::MemoryDir;
use ums_checkpoint::store::Stored;
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_sync::Meter;

/// What we hold of a migration that we receive.
pub struct Incoming {
    pub(crate) service: ServiceName,
    pub(crate) source: SystemName,
    pub(crate) operation: AsyncMutex<()>,
    /// Held by the data path as long as it writes.
    pub(crate) receiving: Arc<AsyncMutex<()>>,
    /// Set when it is given up: the data path ends.
    pub(crate) discarded: watch::Sender<bool>,
    view: Mutex<View>,
    pub(crate) delivered: tokio::sync::Notify,
    pub(crate) meter: Meter,
}

#[derive(Default)]
pub(crate) struct View {
    pub(crate) phase: Option<Phase>,
    pub(crate) error: Option<String>,
    /// BLAKE3 of the permit; taken by its first use.
    pub(crate) permit: Option<blake3::Hash>,
    pub(crate) created: Option<Created>,
    pub(crate) memory_bytes_max: u64,
    pub(crate) image_needed: bool,
    pub(crate) delivery: Option<Delivery>,
    pub(crate) restored: Option<Restored>,
    /// Whether the service has its place in the network already.
    pub(crate) has_place: bool,
    /// The same, once its network stands by for its checkpoint.
    pub(crate) stood_by: Option<bool>,
    /// Whether it has been run, and found by its clients.
    pub(crate) has_run: bool,
}

/// Everything of a checkpoint, whole and verified.
pub(crate) struct Delivery {
    pub(crate) images: MemoryDir,
    pub(crate) stored: Stored,
    /// Whether pages are left to userfaultfd.
    pub(crate) lazy: bool,
    pub(crate) digest: String,
}

impl Incoming {
    /// Nothing done yet; or, after a restart, what is known of it: the rest is with the keeper.
    pub fn new(service: ServiceName, source: SystemName) -> Self {
        Self {
            service,
            source,
            operation: AsyncMutex::new(()),
            receiving: Arc::default(),
            discarded: watch::Sender::new(false),
            view: Mutex::new(View::default()),
            delivered: tokio::sync::Notify::new(),
            meter: Meter::default(),
        }
    }

    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is known of it; `status` is what its keeper answers, if its container is there.
    pub(crate) fn state(
        &self,
        id: MigrationId,
        status: Option<Result<keeper::Status, client::Error>>,
    ) -> MigrationState {
        let view = self.view();
        let known = status.as_ref().and_then(|status| status.as_ref().ok());
        let pages_lost = known.and_then(|status| status.pages_lost.clone());
        let (phase, pending, lost) = match &status {
            Some(Ok(status)) => {
                let (phase, lost) = phase_of(status, view.phase);
                (phase, status.pages_missing, lost)
            }
            Some(Err(error)) if error.is_gone() => {
                (Phase::Failed, 0, Some("the container's keeper is lost"))
            }
            None => (Phase::Failed, 0, Some("its container is gone")),
            // It may be busy: what it holds is not known now.
            Some(Err(_)) => (
                view.phase.unwrap_or(Phase::Prepared).min(Phase::Delivered),
                0,
                None,
            ),
        };
        MigrationState {
            id,
            service: self.service.clone(),
            role: Role::Destination,
            phase,
            frozen_at_ns: None,
            bytes: self.meter.bytes(),
            round: None,
            pages_pending: pending,
            error: (view.error.clone())
                .or(pages_lost)
                .or(lost.map(str::to_owned)),
        }
    }
}

/// How far an arriving service is, by what its keeper says and what this agent has seen, and why it
/// can't come any further.
fn phase_of(status: &keeper::Status, seen: Option<Phase>) -> (Phase, Option<&'static str>) {
    if status.resumed_at_ns.is_some() {
        // What can't be had any more is not waited for: the service was killed for it.
        let installing = status.pages_missing > 0 && status.pages_lost.is_none();
        return match installing {
            true => (Phase::Installing, None),
            false => (Phase::Settled, None),
        };
    }
    match (&status.phase, seen) {
        (keeper::Phase::Held, _) => (Phase::Held, None),
        (keeper::Phase::Restoring, seen) => (seen.unwrap_or(Phase::Delivered), None),
        (keeper::Phase::Dead { .. }, _) | (_, Some(Phase::Held)) => (
            Phase::Failed,
            Some("what was held has died before its first instruction"),
        ),
        (_, None) => (
            Phase::Failed,
            Some("the agent was restarted while it was received"),
        ),
        (_, Some(seen)) => (seen, None),
    }
}
