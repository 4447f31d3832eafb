//! A disk under the journal, which can be told to fail, and which a killed Coordinator can no longer
//! write to: what it had not made durable is lost, as it is when a process is killed.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend};
use ums_coordinator::OpenStore;

/// All is well.
pub const GOOD: u8 = 0;
/// Nothing can be written.
pub const FULL: u8 = 1;
/// What is written arrives, and is reported as lost.
pub const LYING: u8 = 2;

/// What is written arrives, and who wrote it panics.
pub const BREAKING: u8 = 4;

/// Nothing more is written, because the writer is dead.
pub const DEAD: u8 = 3;

/// A file on a disk that can be told to fail.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    mode: Arc<AtomicU8>,
}

fn full() -> Error {
    Error::new(ErrorKind::StorageFull, "no space left on device")
}

impl Disk {
    fn writable(&self) -> Result<()> {
        if matches!(self.mode.load(Ordering::SeqCst), FULL | DEAD) {
            Err(full())
        } else {
            Ok(())
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.writable()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> Result<()> {
        self.writable()?;
        self.file.sync_data()?;
        // Once: the next attempt finds a good disk.
        let ends = |mode| {
            let order = Ordering::SeqCst;
            self.mode.compare_exchange(mode, GOOD, order, order).is_ok()
        };
        assert!(!ends(BREAKING), "a fault that a test has put here");
        if ends(LYING) {
            Err(Error::other("it is not known whether it was written"))
        } else {
            Ok(())
        }
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.writable()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> Result<()> {
        self.file.close()
    }
    fn try_lock_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> std::result::Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
    fn unlock_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> std::result::Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

/// A store on such a disk.
pub fn on(mode: &Arc<AtomicU8>) -> OpenStore {
    let mode = Arc::clone(mode);
    Arc::new(move |path| {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let disk = Disk {
            file: FileBackend::new(file)?,
            mode: Arc::clone(&mode),
        };
        Database::builder().create_with_backend(disk)
    })
}
