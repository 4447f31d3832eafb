//! Reading pages of a process, while it runs or is frozen.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::PAGE;

/// The memory that a process has when this is opened (`/proc/PID/mem`, proc_pid_mem(5)): after an
/// execve(2) it reads as nothing.
#[derive(Debug)]
pub struct Reader {
    memory: File,
}

impl Reader {
    /// Opens it. To be done after the look whose pages are read.
    ///
    /// # Errors
    /// When the process has ended, or may not be traced.
    pub fn open(pid: i32) -> io::Result<Self> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        Ok(Self { memory })
    }

    /// Reads whole pages from `address` on, at most as many as `buffer` has room for. Returns how many bytes
    /// were read: none when the first page has no content any more.
    ///
    /// # Errors
    /// When the call fails for another reason than that.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            let at = address + read as u64;
            match self.memory.read_at(&mut buffer[read..], at) {
                Ok(0) => break,
                Ok(len) => read += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_nothing(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(read - read % PAGE as usize)
    }
}

/// A page that isn't mapped, or is a guard (`EIO`, `EFAULT`).
fn is_nothing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(nix::errno::Errno::from_raw);
    matches!(
        errno,
        Some(nix::errno::Errno::EIO | nix::errno::Errno::EFAULT)
    )
}
