//! The state file: what a Frontman leaves for the agent to find after the agent's own death, so
//! that all that outlives a migration can be listed with its owner and its end.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::control::Status;
use crate::packet;

/// Larger files are not ours.
const RECORD_BYTES_MAX: u64 = 256 * 1024;

/// Most state files read from one directory.
const RECORDS_MAX: usize = 4096;

/// One state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<S = Status> {
    /// Where the Frontman is reached.
    pub socket: PathBuf,
    /// How it stood when its mode last changed; for counts that are true now, ask it.
    pub status: S,
}

/// What a state file can hold: how a process in one of the two modes stands.
pub trait Described: DeserializeOwned + PartialEq {
    /// The service that it stands for, and its process id.
    fn whose(&self) -> (&str, u32);
}

impl Described for Status {
    fn whose(&self) -> (&str, u32) {
        (&self.service, self.pid)
    }
}

impl Described for packet::Status {
    fn whose(&self) -> (&str, u32) {
        (&self.service, self.pid)
    }
}

/// Writes the file so that a reader sees the old or the new one, whole.
pub(crate) fn write(path: &Path, record: &Record<impl Serialize>) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// All state files in a directory; those that can't be read as one are left out. A Frontman that
/// was killed leaves its file behind: [`remove_stale`] takes such a file away.
///
/// `S` tells which mode's files are meant: those of the other don't read as one.
pub fn list<S: Described>(directory: &Path) -> io::Result<Vec<Record<S>>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths = entries
        .flatten()
        .map(|entry| entry.path())
        .take(RECORDS_MAX);
    let mut records: Vec<Record<S>> = paths
        .filter(|path| is_record(path))
        .filter_map(|path| read(&path))
        .collect();
    records.sort_by(|a, b| a.status.whose().cmp(&b.status.whose()));
    Ok(records)
}

/// Removes state files and sockets whose process is gone, and tells whose they were.
///
/// `S` tells which mode's files are meant, as for [`list`].
pub fn remove_stale<S: Described>(directory: &Path) -> io::Result<Vec<Record<S>>> {
    let stale =
        |record: &Record<S>| std::os::unix::net::UnixStream::connect(&record.socket).is_err();
    let records: Vec<Record<S>> = list(directory)?.into_iter().filter(stale).collect();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_record(&path) && read(&path).is_some_and(|record| records.contains(&record)) {
            remove(&path)?;
        }
    }
    for record in &records {
        remove(&record.socket)?;
    }
    Ok(records)
}

/// Removes a file unless it is gone already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_record(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "json")
}

fn read<S: Described>(path: &Path) -> Option<Record<S>> {
    if std::fs::metadata(path).ok()?.len() > RECORD_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
