//! A migration that we send.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Mutex as AsyncMutex, watch};
use ums_api::agent::{Checkpointed, DataEndpoint, MigrationState, Phase, Role, Round};
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::{Connections, Status};
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_sync::Meter;
use ums_sync::files::Manifest;
use ums_sync::send::Sender;

use crate::problem;
use crate::rounds::Copied;

/// What we hold of a migration that we send.
pub struct Outgoing {
    pub(crate) service: ServiceName,
    /// One operation at a time; a repetition finds what the first one left.
    pub(crate) operation: AsyncMutex<()>,
    /// Set once it is abandoned: what is under way ends, and nothing new begins.
    pub(crate) abandoned: watch::Sender<bool>,
    view: Mutex<View>,
    pub(crate) meter: Meter,
}

#[derive(Default)]
pub(crate) struct View {
    pub(crate) phase: Option<Phase>,
    error: Option<String>,
    pub(crate) path: Option<DataPath>,
    /// Where a tunnel for established connections would end.
    pub(crate) tunnel: Option<DataEndpoint>,
    /// What becomes of established connections.
    pub(crate) connections: Option<Connections>,
    pub(crate) checkpointed: Option<Checkpointed>,
    /// The last round that was begun.
    pub(crate) round: Option<Round>,
}

/// An open data path, after the first pass of files.
pub(crate) struct DataPath {
    pub(crate) sender: Sender,
    pub(crate) manifest: Manifest,
    /// What the destination has of the memory already.
    pub(crate) copied: Option<Copied>,
    /// Where it leads.
    pub(crate) destination: SystemName,
    /// Whether memory may stay here until the service runs there.
    pub(crate) leave: bool,
}

impl Outgoing {
    /// Nothing done yet, or nothing left of it but the shut gate after a restart.
    pub fn new(service: ServiceName) -> Self {
        Self {
            service,
            operation: AsyncMutex::new(()),
            abandoned: watch::Sender::new(false),
            view: Mutex::new(View::default()),
            meter: Meter::default(),
        }
    }

    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Where a tunnel for established connections would end, once the data path is open.
    pub(crate) fn tunnel(&self) -> Option<DataEndpoint> {
        self.view().tunnel.clone()
    }

    /// What becomes of established connections is known once there is a Frontman.
    pub(crate) fn decide_connections(&self, connections: Connections) {
        self.view().connections = Some(connections);
    }

    pub(crate) fn enter_phase(&self, phase: Phase) {
        self.view().phase = Some(phase);
    }

    pub(crate) fn fail(&self, problem: &Problem) {
        let mut view = self.view();
        view.phase = Some(Phase::Failed);
        view.error = Some(problem.to_string());
        view.path = None;
    }

    /// Does `work` unless the migration is abandoned, before or meanwhile.
    pub(crate) async fn unless_abandoned<T>(
        &self,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let mut abandoned = self.abandoned.subscribe();
        tokio::select! {
            biased;
            _ = abandoned.wait_for(|abandoned| *abandoned) => {
                let detail = "the migration was abandoned meanwhile";
                Err(problem::conflict(ProblemKind::Abandoned, "abandoned", detail))
            }
            result = work => result,
        }
    }

    /// What is known of it; `status` is what the service's keeper says, where it does.
    pub(crate) fn state(&self, id: MigrationId, status: Option<Status>) -> MigrationState {
        let view = self.view();
        MigrationState {
            id,
            service: self.service.clone(),
            role: Role::Source,
            phase: view.phase.unwrap_or(Phase::Prepared),
            frozen_at_ns: status.and_then(|status| status.frozen_at_ns),
            bytes: self.meter.bytes(),
            round: view.round,
            pages_pending: 0,
            error: view.error.clone(),
        }
    }
}
