//! A disk under a journal: keeps what was synced, and of the rest, when the Coordinator is killed,
//! what chance lets it keep. It can be full, and it can lie.

use std::io::{Error, ErrorKind, Result};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, Database, StorageBackend};

use crate::journal::OpenStore;

/// What becomes of the write that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is kept.
    Kept,
    /// It is not kept, and an error says so.
    Refused,
    /// It is kept, and an error says that it may not be.
    Doubtful,
    /// The writer dies before anything is kept.
    DiesBefore,
    /// The writer dies when it is kept, before it knows.
    DiesAfter,
    /// It is said to be kept, and neither it nor what follows is.
    Lied,
}

/// Says what becomes of a durable write.
pub(super) type Decide = Box<dyn FnOnce() -> Fate + Send>;

/// One system's disk. Outlives Coordinators.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// What is safe.
    safe: Vec<u8>,
    /// What a reader sees.
    seen: Vec<u8>,
    /// What is seen and not safe.
    unsafe_writes: Vec<Change>,
    /// Who may write: a dead Coordinator's writes don't arrive.
    writer: u64,
    full: bool,
    /// Says that it has kept what it has not.
    lying: bool,
    decide: Option<Decide>,
    /// Of the durable write in this call, once it has come to it.
    fate: Option<Fate>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} bytes safe", self.safe.len())
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
            Self::Len(len) => bytes.resize(*len, 0),
        }
    }
}

fn full() -> Error {
    Error::new(ErrorKind::StorageFull, "no space left on device")
}

impl Disk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets nothing be written until it is told otherwise.
    pub(super) fn set_full(&self, is_full: bool) {
        self.inner().full = is_full;
    }

    /// A call to the journal begins: when it comes to make something safe, this is asked what
    /// becomes of that.
    pub(super) fn begin(&self, decide: Decide) {
        self.inner().decide = Some(decide);
    }

    /// The call is over: what became of its durable write, if it made one.
    pub(super) fn end(&self) -> Option<Fate> {
        let mut inner = self.inner();
        inner.decide = None;
        inner.fate.take()
    }

    /// The writer is dead: its writes don't arrive any more, and `kept` says of each that was not
    /// safe whether it is nevertheless there.
    pub(super) fn lose(&self, mut kept: impl FnMut() -> bool) {
        let mut inner = self.inner();
        inner.writer += 1;
        inner.fate = None;
        let mut bytes = inner.safe.clone();
        if !inner.lying {
            for change in std::mem::take(&mut inner.unsafe_writes) {
                if kept() {
                    change.apply(&mut bytes);
                }
            }
        }
        inner.unsafe_writes.clear();
        inner.lying = false;
        inner.safe.clone_from(&bytes);
        inner.seen = bytes;
    }

    /// A store on it, for one Coordinator.
    pub(super) fn store(&self) -> OpenStore {
        let (disk, writer) = (self.clone(), self.inner().writer);
        Arc::new(move |_| {
            let disk = disk.clone();
            Database::builder().create_with_backend(Handle { disk, writer })
        })
    }
}

/// The disk in one Coordinator's hands.
#[derive(Debug)]
struct Handle {
    disk: Disk,
    writer: u64,
}

impl Handle {
    fn writable(&self) -> Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.inner();
        if inner.writer != self.writer || inner.full || inner.fate == Some(Fate::DiesBefore) {
            return Err(full());
        }
        Ok(inner)
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> Result<u64> {
        Ok(self.disk.inner().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let (inner, at) = (self.disk.inner(), usize::try_from(offset).unwrap_or(0));
        let bytes = inner.seen.get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change(Change::Len(usize::try_from(len).unwrap_or(usize::MAX)))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        self.change(Change::Write(at, data.to_vec()))
    }

    fn sync_data(&self) -> Result<()> {
        let mut inner = self.writable()?;
        if let Some(decide) = inner.decide.take() {
            inner.fate = Some(decide());
        }
        match inner.fate {
            Some(Fate::DiesBefore) => return Err(full()),
            Some(Fate::Refused) => {
                // What can't be written is thrown away, and what was not safe before with it.
                inner.unsafe_writes.clear();
                inner.seen = inner.safe.clone();
                return Err(full());
            }
            Some(Fate::Lied) => inner.lying = true,
            _ => {}
        }
        if !inner.lying {
            let changes = std::mem::take(&mut inner.unsafe_writes);
            for change in changes {
                change.apply(&mut inner.safe);
            }
        }
        match inner.fate {
            Some(Fate::Doubtful) => Err(Error::other("it is not known whether it was written")),
            _ => Ok(()),
        }
    }

    fn try_lock_range(
        &self,
        _: Bound<u64>,
        _: Bound<u64>,
    ) -> std::result::Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> std::result::Result<(), BackendError> {
        Ok(())
    }
}

impl Handle {
    fn change(&self, change: Change) -> Result<()> {
        let mut inner = self.writable()?;
        change.apply(&mut inner.seen);
        inner.unsafe_writes.push(change);
        Ok(())
    }
}
