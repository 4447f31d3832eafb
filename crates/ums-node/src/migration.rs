//! The migrations that this node takes part in, and what it remembers of each until it is over.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::MigrationId;

use crate::problem;

mod incoming;
mod outgoing;

pub(crate) use incoming::Delivery;
pub use incoming::Incoming;
pub(crate) use outgoing::DataPath;
pub use outgoing::Outgoing;

/// The most migrations remembered at one time.
const MIGRATIONS_MAX: usize = 1024;

/// One side of one migration.
#[derive(Clone)]
pub enum Migration {
    /// We send.
    Outgoing(Arc<Outgoing>),
    /// We receive.
    Incoming(Arc<Incoming>),
}

/// The migrations of a node.
#[derive(Default)]
pub struct Migrations {
    known: Mutex<BTreeMap<MigrationId, Migration>>,
    /// Those that are over here: a request of theirs that comes late changes nothing.
    ended: Mutex<VecDeque<MigrationId>>,
}

impl Migrations {
    fn known(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Migration>> {
        self.known
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn ended(&self) -> MutexGuard<'_, VecDeque<MigrationId>> {
        self.ended
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Remembers a migration.
    pub fn remember(&self, id: MigrationId, migration: Migration) {
        self.known().insert(id, migration);
    }

    /// Adds a migration unless it is known; the known one wins. One that is over is refused.
    pub fn enter<T>(
        &self,
        id: MigrationId,
        known: impl FnOnce(&Migration) -> Option<Arc<T>>,
        make: impl FnOnce() -> (Arc<T>, Migration),
    ) -> Result<Arc<T>, Problem> {
        let mut migrations = self.known();
        if self.ended().contains(&id) {
            return Err(problem::unknown_migration(id));
        }
        if let Some(migration) = migrations.get(&id) {
            return known(migration).ok_or_else(|| {
                let detail = format!("migration {id} is known here from its other side");
                problem::conflict(
                    ProblemKind::WrongRole,
                    "wrong side of the migration",
                    detail,
                )
            });
        }
        if migrations.len() >= MIGRATIONS_MAX {
            let detail = format!(
                "{MIGRATIONS_MAX} migrations are remembered, which is the limit: try again when some are over"
            );
            return Err(problem::conflict(
                ProblemKind::TooManyMigrations,
                "too many migrations",
                detail,
            ));
        }
        let (value, migration) = make();
        migrations.insert(id, migration);
        Ok(value)
    }

    /// A migration by its id.
    pub fn get(&self, id: MigrationId) -> Result<Migration, Problem> {
        self.known()
            .get(&id)
            .cloned()
            .ok_or_else(|| problem::unknown_migration(id))
    }

    /// The source side of a migration.
    pub(crate) fn outgoing(&self, id: MigrationId) -> Result<Arc<Outgoing>, Problem> {
        match self.get(id)? {
            Migration::Outgoing(outgoing) => Ok(outgoing),
            Migration::Incoming(_) => Err(problem::unknown_migration(id)),
        }
    }

    /// The destination side of a migration.
    pub(crate) fn incoming(&self, id: MigrationId) -> Result<Arc<Incoming>, Problem> {
        match self.get(id)? {
            Migration::Incoming(incoming) => Ok(incoming),
            Migration::Outgoing(_) => Err(problem::unknown_migration(id)),
        }
    }

    /// Forgets a migration that is over, but not that it is.
    pub fn forget(&self, id: MigrationId) {
        let mut migrations = self.known();
        let mut ended = self.ended();
        if !ended.contains(&id) {
            ended.truncate(MIGRATIONS_MAX - 1);
            ended.push_front(id);
        }
        migrations.remove(&id);
    }

    /// All of them.
    pub fn all(&self) -> Vec<(MigrationId, Migration)> {
        let known = self.known();
        let all = known.iter().map(|(id, migration)| (*id, migration.clone()));
        all.collect()
    }
}
