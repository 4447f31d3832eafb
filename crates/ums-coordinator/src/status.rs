//! What is going on now: which service is whose to change, and how far each migration is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use ums_api::client::{MigrationView, Progress};
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::report::Outcome;

/// Generation of a view that will not change any more. It is greater than any that a migration
/// under way reaches, and every JSON reader can represent it.
const GENERATION_FINAL: u64 = 1 << 52;

/// Migrations under way, and the services that are taken.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    claims: BTreeMap<ServiceName, Claim>,
    live: BTreeMap<MigrationId, Arc<Live>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Migration(MigrationId),
    Control,
}

/// A migration is not admitted, or a control message not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    /// The service has a migration already.
    #[error(
        "`{service}` is being migrated by {id}; wait until it is over, or abort it with `ums abort {id}`"
    )]
    Migrating {
        /// The service.
        service: ServiceName,
        /// Its migration.
        id: MigrationId,
    },
    /// A control message is being carried out.
    #[error("`{0}` is being created or deleted; ask again when that is over")]
    Busy(ServiceName),
    /// Too many at once.
    #[error(
        "{0} migrations are under way, the most this system allows; ask again when one is over"
    )]
    TooMany(usize),
}

impl From<NotAdmitted> for Problem {
    fn from(error: NotAdmitted) -> Self {
        let (status, kind, title) = match &error {
            NotAdmitted::Migrating { .. } => {
                (409, ProblemKind::Migrating, "the service is being migrated")
            }
            NotAdmitted::Busy(_) => (409, ProblemKind::Busy, "the service is being changed"),
            NotAdmitted::TooMany(_) => (
                429,
                ProblemKind::TooManyMigrations,
                "too many migrations at once",
            ),
        };
        Problem {
            retry: true,
            ..Problem::refused(status, kind, title, error.to_string())
        }
    }
}

/// A claim on a service for a control message; given back when dropped.
pub(crate) struct Control<'a> {
    registry: &'a Registry,
    service: ServiceName,
}

impl Drop for Control<'_> {
    fn drop(&mut self) {
        self.registry.inner().claims.remove(&self.service);
    }
}

impl Registry {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a service for a migration that somebody asks for.
    pub(crate) fn admit(&self, view: MigrationView, max: usize) -> Result<Arc<Live>, NotAdmitted> {
        let mut inner = self.inner();
        inner.free(&view.report.service)?;
        let migrations = inner
            .claims
            .values()
            .filter(|claim| matches!(claim, Claim::Migration(_)))
            .count();
        if migrations >= max {
            return Err(NotAdmitted::TooMany(migrations));
        }
        Ok(inner.enter(view))
    }

    /// Takes a service for a migration that the journal knows to be unfinished.
    pub(crate) fn readmit(&self, view: MigrationView) -> Arc<Live> {
        self.inner().enter(view)
    }

    /// Takes a service for a control message.
    pub(crate) fn control(&self, service: &ServiceName) -> Result<Control<'_>, NotAdmitted> {
        let mut inner = self.inner();
        inner.free(service)?;
        inner.claims.insert(service.clone(), Claim::Control);
        Ok(Control {
            registry: self,
            service: service.clone(),
        })
    }

    /// Gives the service back. The view can still be watched.
    pub(crate) fn release(&self, id: MigrationId) {
        self.inner()
            .claims
            .retain(|_, claim| *claim != Claim::Migration(id));
    }

    /// Forgets a migration that the journal tells about from now on.
    pub(crate) fn forget(&self, id: MigrationId) {
        self.release(id);
        self.inner().live.remove(&id);
    }

    /// A migration that is under way.
    pub(crate) fn get(&self, id: MigrationId) -> Option<Arc<Live>> {
        self.inner().live.get(&id).cloned()
    }
}

impl Inner {
    fn free(&self, service: &ServiceName) -> Result<(), NotAdmitted> {
        let service = service.clone();
        match self.claims.get(&service) {
            None => Ok(()),
            Some(Claim::Control) => Err(NotAdmitted::Busy(service)),
            Some(Claim::Migration(id)) => Err(NotAdmitted::Migrating { service, id: *id }),
        }
    }

    fn enter(&mut self, view: MigrationView) -> Arc<Live> {
        let id = view.report.migration_id;
        // One that is taken up late does not take the service from one that was admitted since.
        self.claims
            .entry(view.report.service.clone())
            .or_insert(Claim::Migration(id));
        let live = Arc::new(Live {
            view: watch::Sender::new(view),
            abort: watch::Sender::new(None),
            resolving: watch::Sender::new(Resolving::NotNeeded),
            door: Mutex::new(Door::Open),
        });
        self.live.insert(id, Arc::clone(&live));
        live
    }
}

/// A migration that is under way, as those who watch or abort it see it.
#[derive(Debug)]
pub(crate) struct Live {
    view: watch::Sender<MigrationView>,
    abort: watch::Sender<Option<String>>,
    resolving: watch::Sender<Resolving>,
    door: Mutex<Door>,
}

/// Whether it may still be aborted. Aborting and committing go through the same door, so that an
/// abort that was accepted is never overtaken by the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    Aborting,
    Closed,
}

/// Whether an operator may take a committed migration back.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Resolving {
    NotNeeded,
    /// The destination has not answered, or not well, since then.
    Offered {
        since: std::time::Instant,
        why: String,
    },
    Decided,
}

impl Live {
    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the view, and wakes those who watch.
    pub(crate) fn update(&self, change: impl FnOnce(&mut MigrationView)) {
        self.view.send_modify(|view| {
            change(view);
            view.progress.generation += 1;
        });
    }

    /// Its task has panicked: a fault of this program, because of which nothing goes on by itself.
    pub(crate) fn panicked(&self, panic: &str) {
        self.update(|view| {
            view.report.outcome = Outcome::Stuck;
            view.report.error = Some(format!(
                "the Coordinator failed in this migration ({panic}), which is a fault of UMS: it is \
                 taken up again; if that goes on, start the Coordinator again and report its log"
            ));
            view.progress.phase = "stuck".to_owned();
        });
    }

    /// The view now.
    pub(crate) fn view(&self) -> MigrationView {
        self.view.borrow().clone()
    }

    /// To wait for changes with.
    pub(crate) fn watch(&self) -> watch::Receiver<MigrationView> {
        self.view.subscribe()
    }

    /// Asks for an abort; `false` when it is too late.
    pub(crate) fn abort(&self, reason: String) -> bool {
        let mut door = self.door();
        if *door == Door::Closed {
            return false;
        }
        *door = Door::Aborting;
        drop(door);
        self.abort.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(reason);
            first
        });
        self.update(|view| view.progress.aborting = true);
        true
    }

    /// Waits until an abort is asked for, and says why.
    pub(crate) async fn aborted(&self) -> String {
        let mut changes = self.abort.subscribe();
        let reason = changes
            .wait_for(Option::is_some)
            .await
            .map(|reason| reason.clone());
        match reason {
            Ok(reason) => reason.unwrap_or_default(),
            // The sender is ours, so this can't be; to wait on is the same as no abort.
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets an operator decide, because of this, from now on.
    pub(crate) fn offer(&self, why: &str) {
        self.resolving.send_modify(|state| match state {
            Resolving::Decided => {}
            Resolving::Offered { why: known, .. } => why.clone_into(known),
            Resolving::NotNeeded => {
                let (since, why) = (std::time::Instant::now(), why.to_owned());
                *state = Resolving::Offered { since, why };
            }
        });
        self.update(|view| view.resolvable = true);
    }

    /// The operator has nothing to decide any more.
    pub(crate) fn withdraw(&self) {
        self.resolving.send_replace(Resolving::NotNeeded);
        self.update(|view| view.resolvable = false);
    }

    /// For how long, and why, an operator may decide; `None` when that is not needed.
    pub(crate) fn offered(&self) -> Option<(std::time::Duration, String)> {
        match &*self.resolving.borrow() {
            Resolving::Offered { since, why } => Some((since.elapsed(), why.clone())),
            Resolving::NotNeeded | Resolving::Decided => None,
        }
    }

    /// The operator takes it back; `false` when there was nothing to decide.
    pub(crate) fn decide(&self) -> bool {
        self.resolving.send_if_modified(|state| {
            let offered = matches!(state, Resolving::Offered { .. });
            if offered {
                *state = Resolving::Decided;
            }
            offered
        })
    }

    /// Waits until the operator takes it back.
    pub(crate) async fn decided(&self) {
        let mut changes = self.resolving.subscribe();
        let decided = changes.wait_for(|state| *state == Resolving::Decided);
        if decided.await.is_err() {
            // The sender is ours, so this can't be; to wait on is the same as no decision.
            std::future::pending::<()>().await;
        }
    }

    /// Shuts the door behind which no abort is accepted; the reason if one was before.
    pub(crate) fn close(&self) -> Result<(), String> {
        let mut door = self.door();
        if *door == Door::Aborting {
            return Err(self.abort.borrow().clone().unwrap_or_default());
        }
        *door = Door::Closed;
        Ok(())
    }
}

/// The progress of a migration that is over.
pub(crate) fn final_progress(step: Option<u8>, phase: &str, total_ms: u64, bytes: u64) -> Progress {
    Progress {
        generation: GENERATION_FINAL,
        phase: phase.to_owned(),
        step,
        aborting: false,
        bytes,
        bytes_total: None,
        bytes_per_second: 0,
        elapsed_ms: total_ms,
    }
}
