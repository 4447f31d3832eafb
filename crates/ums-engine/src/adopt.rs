//! Starts the keeper of a container that an engine has made, for the time of its move.

use std::path::{Path, PathBuf};

use ums_checkpoint::keeper::client::{Error, Keeper};
use ums_checkpoint::keeper::protocol::{Adopted, CopiedFile, ExternalMount, KeeperConfig};
use ums_core::specification::FILES;
use ums_standalone::bundle;

use crate::record::Record;

/// The program that is running, also after its file was replaced by a newer one.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Where one container's keeper has its socket and copies, gone after a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places(pub PathBuf);

impl Places {
    /// The keeper's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("keeper.sock")
    }

    /// Copies of files that are mounted by themselves.
    pub fn files(&self) -> PathBuf {
        self.0.join(FILES)
    }
}

/// What a container sees at `/dev/shm`, as its keeper reaches it.
pub fn shm(record: &Record) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/dev/shm", record.init.0))
}

/// Starts it. Changes nothing of the container.
pub fn start_keeper(record: &Record, places: &Places, bundle_bin: &Path) -> Result<Keeper, Error> {
    let made = std::fs::create_dir_all(places.files());
    made.map_err(|error| Error::Start(error.to_string()))?;
    let program = THIS_PROGRAM.to_owned();
    let mounts = bundle::external(&record.specification);
    let mounts = mounts.into_iter().map(|(mountpoint, key)| ExternalMount {
        mountpoint,
        key,
        source: PathBuf::new(),
    });
    let files = record.files.iter().map(|(name, source)| CopiedFile {
        source: source.clone(),
        copy: places.files().join(name),
    });
    let (init, began) = record.init;
    let config = KeeperConfig {
        service: record.specification.name.to_string(),
        socket: places.socket(),
        bundle_bin: bundle_bin.to_owned(),
        guard: vec![program.clone(), "guard".to_owned()],
        log_pump: vec![program.clone(), "log".to_owned()],
        cgroup: record.cgroup.clone(),
        memory_limit_bytes: None,
        lower: PathBuf::new(),
        upper: record.upper.clone(),
        work: PathBuf::new(),
        merged: record.root.clone(),
        shm: shm(record),
        shm_bytes: 0,
        devices: Vec::new(),
        log: places.0.join("log"),
        mounts: mounts.collect(),
        placed: false,
        adopted: Some(Adopted {
            init,
            began,
            stdio: record.stdio.clone(),
            files: files.collect(),
        }),
    };
    Keeper::start(&[program, "keeper".to_owned()], &config)
}
