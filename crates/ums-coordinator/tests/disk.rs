//! A disk that fails under the journal of the source.

mod support;

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend};
use support::agent::{What, When};
use support::world::Life;
use support::{SERVICE, Two};
use ums_coordinator::OpenStore;
use ums_core::report::Outcome;

const GOOD: u8 = 0;
/// Nothing can be written.
const FULL: u8 = 1;
/// What is written arrives, and is reported as lost.
const LYING: u8 = 2;

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
        if self.mode.load(Ordering::SeqCst) == FULL {
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
        let lying = self
            .mode
            .compare_exchange(LYING, GOOD, Ordering::SeqCst, Ordering::SeqCst);
        if lying.is_ok() {
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

fn on(mode: &Arc<AtomicU8>) -> OpenStore {
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

async fn systems(mode: &Arc<AtomicU8>) -> Two {
    let mut two = Two::new().await;
    two.a.kill().await;
    two.a.start_on(on(mode)).await;
    two
}

#[tokio::test]
async fn a_migration_is_refused_while_the_disk_is_full() {
    let mode = Arc::new(AtomicU8::new(GOOD));
    let two = systems(&mode).await;
    mode.store(FULL, Ordering::SeqCst);
    let error = two
        .a
        .migrate(SERVICE, "b")
        .await
        .expect_err("no room for the journal");
    let problem = error.problem().expect("a problem document");
    assert_eq!((problem.status, problem.kind.as_str()), (507, "journal"));
    assert!(
        problem.detail.contains("make room on its disk"),
        "{problem}"
    );
    mode.store(GOOD, Ordering::SeqCst);
    let id = two.migrate().await;
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
    two.settled(&view, "room again").await;
}

/// At the step before the commit, with the service frozen and the destination prepared.
async fn at_the_commit(mode: &Arc<AtomicU8>, failing: u8) -> (Two, ums_core::id::MigrationId) {
    let two = systems(mode).await;
    two.b.agent.fault("restore", When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.b.agent.reached.notified().await;
    mode.store(failing, Ordering::SeqCst);
    two.b.agent.release();
    (two, id)
}

#[tokio::test]
async fn a_commit_that_can_not_be_written_leaves_the_service_frozen_until_it_is_known() {
    let mode = Arc::new(AtomicU8::new(GOOD));
    let (two, id) = at_the_commit(&mode, FULL).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    {
        let mut world = two.world.look();
        assert_eq!(world.node("a").services[SERVICE].state, Life::Frozen);
        assert_eq!(world.node("b").services[SERVICE].state, Life::Held);
    }
    mode.store(GOOD, Ordering::SeqCst);
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned, "{view:#?}");
    let error = view.report.error.clone().expect("told");
    assert!(error.contains("the commit could not be written"), "{error}");
    two.settled(&view, "room again").await;
}

#[tokio::test]
async fn a_commit_that_was_written_in_spite_of_an_error_goes_forward() {
    let mode = Arc::new(AtomicU8::new(GOOD));
    let (two, id) = at_the_commit(&mode, LYING).await;
    let view = two.a.over(id).await;
    assert_eq!(
        mode.load(Ordering::SeqCst),
        GOOD,
        "the disk was never asked"
    );
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
    two.settled(&view, "written").await;
}

#[tokio::test]
async fn a_disk_that_fills_up_midway_ends_the_migration_at_the_source() {
    let mode = Arc::new(AtomicU8::new(GOOD));
    let two = systems(&mode).await;
    two.a.agent.fault("open", When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.a.agent.reached.notified().await;
    mode.store(FULL, Ordering::SeqCst);
    two.a.agent.release();
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned, "{view:#?}");
    assert!(
        view.report
            .error
            .as_deref()
            .is_some_and(|it| it.contains("make room")),
        "{view:#?}"
    );
    two.settled(&view, "disk full").await;
    // The report is written when there is room, and is there after a restart.
    mode.store(GOOD, Ordering::SeqCst);
    let mut two = two;
    let until = std::time::Instant::now() + support::PATIENCE;
    while !two.a.remembers(id).await {
        assert!(
            std::time::Instant::now() < until,
            "the report is not written"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    two.a.kill().await;
    two.a.start().await;
    assert_eq!(two.a.over(id).await.report.outcome, Outcome::Abandoned);
}
