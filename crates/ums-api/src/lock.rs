//! One program at a time in one directory: two agents that share one would undo each other's work.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A directory that is this process's own until this is dropped, or the process ends, of whatever
/// cause: the kernel keeps the lock (flock(2)). Programs that it starts don't inherit it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{} belongs to {} already: end that first, or use another directory",
        directory.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Held {
        /// The directory.
        directory: PathBuf,
        /// The process, if it has said.
        pid: Option<u32>,
    },
    /// The lock's file can't be made or locked.
    #[error("{} can't be locked", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Lock {
    /// Takes `directory` for this process by a file of this name in it, which stays. Does not wait.
    ///
    /// # Errors
    /// [`LockError::Held`] names the process that has it.
    pub fn take(directory: &Path, name: &str) -> Result<Self, LockError> {
        let path = directory.join(name);
        let failed = |source| LockError::File {
            path: path.clone(),
            source,
        };
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.mode(0o600).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut said = String::new();
                // Who has taken it a moment ago may not have written yet.
                let _ = file.take(32).read_to_string(&mut said);
                return Err(LockError::Held {
                    directory: directory.to_owned(),
                    pid: said.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_other_is_named() {
        let directory = std::env::temp_dir().join(format!("ums-lock-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let first = Lock::take(&directory, "test.lock").unwrap();
        let error = Lock::take(&directory, "test.lock").unwrap_err();
        assert!(
            matches!(error, LockError::Held { pid: Some(pid), .. } if pid == std::process::id())
        );
        assert!(error.to_string().contains(&std::process::id().to_string()));
        drop(first);
        Lock::take(&directory, "test.lock").unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
