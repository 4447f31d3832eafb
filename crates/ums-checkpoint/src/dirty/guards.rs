//! Where a process has anything at all, and where it has guards.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::Ranges;
use super::mappings::{self, Line, Mapping};
use super::scan;

/// Addresses above those of processes, which are the kernel's (`vsyscall`).
const KERNELS_FROM: u64 = 1 << 63;

/// Addresses of the mappings of a process.
///
/// # Errors
/// When they can't be read; a process that has ended has none.
pub(crate) fn mapped(pid: i32) -> io::Result<Ranges> {
    let text = mappings::text(pid, "maps")?;
    let ranges = text.lines().map(|line| {
        let line = Line::understood(line)?;
        Ok((line.mapping.start, line.mapping.end))
    });
    let all: io::Result<Ranges> = ranges.collect();
    all.map(|mut all| {
        all.remove(KERNELS_FROM, u64::MAX);
        all
    })
}

/// Guards (`MADV_GUARD_INSTALL`) among these addresses; none where the kernel does not tell them (before Linux 6.15).
pub(crate) fn guards(pagemap: BorrowedFd<'_>, among: &Ranges) -> io::Result<Ranges> {
    let mut all = Ranges::default();
    for (start, end) in among.iter() {
        match scan::guards(pagemap, Mapping { start, end }) {
            Ok(found) => all.extend(found.iter()),
            Err(Errno::EINVAL | Errno::ENOTTY) => return Ok(Ranges::default()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(all)
}
