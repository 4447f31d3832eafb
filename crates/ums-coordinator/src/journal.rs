//! The journal: what this Coordinator must know after a crash, in one crash-safe file.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | name | format and system, so that a foreign file is told from ours |
//! | `events` | migration, number of the event | an [`Event`] as JSON; only appended to |
//! | `outgoing` | migration | when it was asked for; `open` until nothing is left to do |
//! | `incoming` | migration | an [`Incoming`] as JSON, replaced as a whole |
//!
//! Writes are durable when the call returns, but for [`Write::Lazy`] ones, which become so with the
//! next durable one: they record what a crash would have undone in the same way had it not been
//! recorded, and waiting for the disk would only lengthen a freeze.

mod incoming;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ums_core::id::{MigrationId, SystemName};
use ums_core::saga::{self, Event, Saga};

pub(crate) use incoming::Incoming;

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
const EVENTS: TableDefinition<'_, (u128, u32), &[u8]> = TableDefinition::new("events");
const OUTGOING: TableDefinition<'_, u128, (u64, bool)> = TableDefinition::new("outgoing");
const INCOMING: TableDefinition<'_, u128, (u64, bool, &[u8])> = TableDefinition::new("incoming");

/// Version of the tables' layout.
const FORMAT: &str = "ums-journal/1";

/// File name of the journal in the state directory.
pub const FILE_NAME: &str = "journal.redb";

/// File name of a journal that is being begun.
const BEGUN_NAME: &str = "journal.redb.new";
/// Memory that the store may keep of the file: some hundred migrations, which is what is asked for.
/// Its default, a gigabyte, would let a Coordinator grow with its history.
const CACHE_BYTES: usize = 8 << 20;

/// The journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error("the journal {0} is in use: another Coordinator runs with this state directory")]
    InUse(PathBuf),
    /// It can't be opened, or is not a journal, or is damaged.
    #[error(
        "the journal {path} can't be used ({reason}); it may be damaged or no journal: restore it \
         from a backup, or move it aside to begin an empty one, after making sure with \
         `ums list` on both systems that no migration was under way"
    )]
    Unusable {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is another system's, or of another version.
    #[error(
        "the journal {path} is not this system's, or of another version: it says `{found}` where \
         `{wanted}` is needed; give each system a state directory of its own, run the release that \
         wrote it, and move it aside only if it is a copy"
    )]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        wanted: String,
    },
    /// It can't be read or written any more.
    #[error(
        "the journal {path} can't be written or read ({reason}); make room on its disk or mend the \
         disk"
    )]
    Io {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A line of it makes no sense.
    #[error(
        "the journal {path} holds a line that can't be understood ({reason}); restore it from a \
         backup, or move it aside as `ums doctor` says"
    )]
    Line {
        /// Where.
        path: PathBuf,
        /// Which, and what is wrong.
        reason: String,
    },
}

/// How soon a write has to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// When the call returns.
    Durable,
    /// With the next durable one.
    Lazy,
}

/// Opens the store that a journal lies in. Tests give one whose disk fails.
pub type OpenStore =
    Arc<dyn Fn(&Path) -> std::result::Result<Database, redb::DatabaseError> + Send + Sync>;

/// Opens the store in a file.
pub(crate) fn in_file() -> OpenStore {
    Arc::new(|path| Database::builder().set_cache_size(CACHE_BYTES).create(path))
}

/// An open journal.
pub(crate) struct Journal {
    path: PathBuf,
    store: OpenStore,
    /// How it is opened, at first and after an error.
    open: fn(&OpenStore, &Path) -> Result<Database>,
    /// `None` after a failure, until it has been opened again: what a failed write left behind is
    /// known only then.
    database: Mutex<Option<Database>>,
    history_max: usize,
}

type Result<T> = std::result::Result<T, JournalError>;

impl std::fmt::Debug for Journal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Journal")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal in `directory`, or begins one.
    pub(crate) fn open(
        directory: &Path,
        system: &SystemName,
        history_max: usize,
        store: OpenStore,
    ) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        std::fs::create_dir_all(directory).map_err(|error| JournalError::Unusable {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if !path.exists() {
            Self::begin(directory, system, &store)?;
        }
        let database = Mutex::new(Some(open_database(&store, &path)?));
        let journal = Self {
            path,
            store,
            open: open_database,
            database,
            history_max,
        };
        journal.must_be_of(system)?;
        Ok(journal)
    }

    /// Opens the journal that a store has without any file, or begins it there: for the simulation
    /// and the fuzzer.
    pub(crate) fn open_without_file(
        system: &SystemName,
        history_max: usize,
        store: OpenStore,
    ) -> Result<Self> {
        let path = PathBuf::from(FILE_NAME);
        let database = Mutex::new(Some(open_store(&store, &path)?));
        let journal = Self {
            path,
            store,
            open: open_store,
            database,
            history_max,
        };
        if journal.says("format")?.is_none() {
            journal.write_empty(system)?;
        }
        journal.must_be_of(system)?;
        Ok(journal)
    }

    fn must_be_of(&self, system: &SystemName) -> Result<()> {
        self.must_say("format", FORMAT)?;
        self.must_say("system", system.as_str())
    }

    /// Makes an empty journal, under another name until it is whole: so a file that is there and
    /// isn't a whole journal is never one that we had just begun.
    fn begin(directory: &Path, system: &SystemName, store: &OpenStore) -> Result<()> {
        let path = directory.join(BEGUN_NAME);
        let unusable = |error: std::io::Error| JournalError::Unusable {
            path: path.clone(),
            reason: error.to_string(),
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(unusable(error));
            }
            _ => {}
        }
        let begun = Self {
            path: path.clone(),
            store: Arc::clone(store),
            open: open_store,
            database: Mutex::new(Some(open_store(store, &path)?)),
            history_max: 0,
        };
        begun.write_empty(system)?;
        drop(begun);
        std::fs::rename(&path, directory.join(FILE_NAME))
            .and_then(|()| std::fs::File::open(directory)?.sync_all())
            .map_err(unusable)
    }

    fn write_empty(&self, system: &SystemName) -> Result<()> {
        self.write(Write::Durable, |transaction| {
            transaction.open_table(EVENTS)?;
            transaction.open_table(OUTGOING)?;
            transaction.open_table(INCOMING)?;
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("system", system.as_str())?;
            Ok(())
        })
    }

    /// Only reads: a file that is not ours stays as it is.
    fn says(&self, key: &str) -> Result<Option<String>> {
        self.read(|transaction| match transaction.open_table(META) {
            Ok(meta) => Ok(meta.get(key)?.map(|found| found.value().to_owned())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    fn must_say(&self, key: &str, wanted: &str) -> Result<()> {
        let found = self.says(key)?;
        if found.as_deref() == Some(wanted) {
            return Ok(());
        }
        Err(JournalError::Foreign {
            path: self.path.clone(),
            found: found.unwrap_or_else(|| format!("no {key}")),
            wanted: wanted.to_owned(),
        })
    }

    /// Appends events of an outgoing migration, all or none. `first` is the number of the first:
    /// as many as were written before.
    pub(crate) fn append(
        &self,
        id: MigrationId,
        first: u32,
        events: &[Event],
        open: bool,
        write: Write,
    ) -> Result<()> {
        let lines = events
            .iter()
            .map(|event| self.encode(event))
            .collect::<Result<Vec<_>>>()?;
        self.write(write, |transaction| {
            let key = id.0.as_u128();
            let mut table = transaction.open_table(EVENTS)?;
            // What a write that was reported as failed may have left: it was never applied.
            table.retain_in((key, first)..=(key, u32::MAX), |_, _| false)?;
            for (number, line) in (first..).zip(&lines) {
                table.insert((key, number), line.as_slice())?;
            }
            let mut outgoing = transaction.open_table(OUTGOING)?;
            let known = outgoing.get(id.0.as_u128())?.map(|entry| entry.value());
            let asked_at_ms = match (known, events.first()) {
                (Some((asked_at_ms, _)), _) => asked_at_ms,
                (None, Some(Event::Requested(request))) => request.asked_at_ms,
                (None, _) => 0,
            };
            if known != Some((asked_at_ms, open)) {
                outgoing.insert(id.0.as_u128(), (asked_at_ms, open))?;
            }
            Ok(())
        })?;
        if open { Ok(()) } else { self.forget_old() }
    }

    /// The saga of an outgoing migration, and how many events it has.
    pub(crate) fn saga(&self, id: MigrationId) -> Result<Option<(Saga, u32)>> {
        let key = id.0.as_u128();
        let lines = self.read(|transaction| {
            let table = transaction.open_table(EVENTS)?;
            let mut lines = Vec::new();
            for line in table.range((key, 0)..=(key, u32::MAX))? {
                lines.push(line?.1.value().to_vec());
            }
            Ok(lines)
        })?;
        let events = lines
            .iter()
            .map(|line| self.decode(line))
            .collect::<Result<Vec<Event>>>()?;
        let saga = saga::fold(&events).map_err(|error| JournalError::Line {
            path: self.path.clone(),
            reason: format!("migration {id}: {error}"),
        })?;
        let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
        Ok(saga.map(|saga| (saga, count)))
    }

    /// Puts lines in place of a migration's events, unseen.
    pub(crate) fn put_lines(&self, id: MigrationId, lines: &[&[u8]]) -> Result<()> {
        let key = id.0.as_u128();
        self.write(Write::Lazy, |transaction| {
            let mut table = transaction.open_table(EVENTS)?;
            table.retain_in((key, 0)..=(key, u32::MAX), |_, _| false)?;
            for (number, line) in (0..).zip(lines) {
                table.insert((key, number), line)?;
            }
            Ok(())
        })
    }

    /// Puts a line in place of an arriving migration's, unseen.
    pub(crate) fn put_line(&self, id: MigrationId, line: &[u8]) -> Result<()> {
        self.write(Write::Lazy, |transaction| {
            let mut table = transaction.open_table(INCOMING)?;
            table.insert(id.0.as_u128(), (0, true, line))?;
            Ok(())
        })
    }

    /// Outgoing migrations with when they were asked for and whether something is left to do,
    /// oldest first.
    pub(crate) fn outgoing(&self) -> Result<Vec<(MigrationId, u64, bool)>> {
        let mut found = self.read(|transaction| {
            let table = transaction.open_table(OUTGOING)?;
            let mut found = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                let (asked_at_ms, open) = value.value();
                found.push((id_of(key.value()), asked_at_ms, open));
            }
            Ok(found)
        })?;
        found.sort_by_key(|(id, asked_at_ms, _)| (*asked_at_ms, *id));
        Ok(found)
    }

    /// Writes how far an incoming migration is.
    pub(crate) fn put_incoming(&self, id: MigrationId, incoming: &Incoming) -> Result<()> {
        let line = self.encode(incoming)?;
        let open = !incoming.is_over();
        self.write(Write::Durable, |transaction| {
            let mut table = transaction.open_table(INCOMING)?;
            table.insert(
                id.0.as_u128(),
                (incoming.asked_at_ms, open, line.as_slice()),
            )?;
            Ok(())
        })?;
        if open { Ok(()) } else { self.forget_old() }
    }

    /// How far an incoming migration is.
    pub(crate) fn incoming(&self, id: MigrationId) -> Result<Option<Incoming>> {
        let line = self.read(|transaction| {
            let table = transaction.open_table(INCOMING)?;
            Ok(table
                .get(id.0.as_u128())?
                .map(|entry| entry.value().2.to_vec()))
        })?;
        line.map(|line| self.decode(&line)).transpose()
    }

    /// Incoming migrations, all or only those with something left to do, oldest first.
    pub(crate) fn all_incoming(&self, only_open: bool) -> Result<Vec<(MigrationId, Incoming)>> {
        let lines = self.read(|transaction| {
            let table = transaction.open_table(INCOMING)?;
            let mut lines = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                let (asked_at_ms, open, line) = value.value();
                if open || !only_open {
                    lines.push((asked_at_ms, id_of(key.value()), line.to_vec()));
                }
            }
            Ok(lines)
        })?;
        let mut lines = lines;
        lines.sort();
        lines
            .into_iter()
            .map(|(_, id, line)| Ok((id, self.decode(&line)?)))
            .collect()
    }

    /// Lets the oldest finished migrations make room.
    fn forget_old(&self) -> Result<()> {
        let finished = self
            .outgoing()?
            .into_iter()
            .filter(|(_, _, open)| !open)
            .collect::<Vec<_>>();
        let surplus = finished.len().saturating_sub(self.history_max);
        let old_outgoing: Vec<u128> = finished[..surplus]
            .iter()
            .map(|(id, ..)| id.0.as_u128())
            .collect();
        let arrived = self.all_incoming(false)?;
        let over: Vec<_> = arrived
            .iter()
            .filter(|(_, incoming)| incoming.is_over())
            .collect();
        let surplus = over.len().saturating_sub(self.history_max);
        let old_incoming: Vec<u128> = over[..surplus]
            .iter()
            .map(|(id, _)| id.0.as_u128())
            .collect();
        if old_outgoing.is_empty() && old_incoming.is_empty() {
            return Ok(());
        }
        self.write(Write::Lazy, |transaction| {
            let mut events = transaction.open_table(EVENTS)?;
            let mut outgoing = transaction.open_table(OUTGOING)?;
            for key in &old_outgoing {
                events.retain_in((*key, 0)..=(*key, u32::MAX), |_, _| false)?;
                outgoing.remove(key)?;
            }
            let mut incoming = transaction.open_table(INCOMING)?;
            for key in &old_incoming {
                incoming.remove(key)?;
            }
            Ok(())
        })
    }

    fn write<T>(
        &self,
        write: Write,
        work: impl FnOnce(&redb::WriteTransaction) -> std::result::Result<T, redb::Error>,
    ) -> Result<T> {
        let durability = match write {
            Write::Durable => Durability::Immediate,
            Write::Lazy => Durability::None,
        };
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability)?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> std::result::Result<T, redb::Error>,
    ) -> Result<T> {
        self.with(|database| work(&database.begin_read()?))
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> std::result::Result<T, redb::Error>,
    ) -> Result<T> {
        let mut slot: MutexGuard<'_, _> =
            self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => database,
            None => (self.open)(&self.store, &self.path)?,
        };
        match work(&database) {
            Ok(done) => {
                *slot = Some(database);
                Ok(done)
            }
            Err(error) => Err(JournalError::Io {
                path: self.path.clone(),
                reason: error.to_string(),
            }),
        }
    }

    fn encode(&self, value: &impl Serialize) -> Result<Vec<u8>> {
        serde_json::to_vec(value).map_err(|error| JournalError::Line {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    fn decode<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T> {
        serde_json::from_slice(line).map_err(|error| JournalError::Line {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }
}

/// Opens a journal that is there. An empty file, or none, is one whose content was lost: to begin
/// anew there would be to forget what was committed.
fn open_database(store: &OpenStore, path: &Path) -> Result<Database> {
    let reason = match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > 0 => return open_store(store, path),
        Ok(_) => "it is empty".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(JournalError::Unusable {
        path: path.to_owned(),
        reason,
    })
}

fn open_store(store: &OpenStore, path: &Path) -> Result<Database> {
    let unusable = |reason: String| JournalError::Unusable {
        path: path.to_owned(),
        reason,
    };
    // The file may hold anything: what the store makes of damage must not end the process.
    let open = std::panic::AssertUnwindSafe(|| store(path));
    let opened = std::panic::catch_unwind(open)
        .map_err(|_| unusable("its structure is damaged".to_owned()))?;
    opened.map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => JournalError::InUse(path.to_owned()),
        other => unusable(other.to_string()),
    })
}

fn id_of(key: u128) -> MigrationId {
    MigrationId(uuid::Uuid::from_u128(key))
}

#[cfg(test)]
mod test;
