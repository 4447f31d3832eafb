//! Dirty tracking: which pages of a running service have changed since they were last read.
//!
//! A [`Tracker`] looks again and again at every process of a service, while it runs and at last while it
//! is frozen. Each look tells of each process which pages it holds, and which of them are *written*: may
//! have changed since the last look. One rule makes it right: a page counts as written unless the kernel
//! has said that it is not, of a mapping that was tracked without interruption since the page was read.
//! What is new (a process, a mapping, a moved mapping, the memory after an exec(2)), what can't be
//! tracked, and what a failed call leaves in doubt is written. So a tracker may say too much, which costs
//! time, and never too little, which would cost the service its memory.
//!
//! Only private anonymous memory is looked at: other mappings are not named, and are for the freeze.
//!
//! Backends, the best that the kernel has ([`choose`]):
//!
//! - [`Backend::WriteProtect`]: userfaultfd in asynchronous write-protect mode with PAGEMAP_SCAN (Linux
//!   6.7, `admin-guide/mm/pagemap.rst`). The service does not wait for us at any write; it is frozen for a moment
//!   where it has new mappings.
//! - [`Backend::SoftDirty`]: bit 55 of a pagemap's entries, reset by `clear_refs` (`CONFIG_MEM_SOFT_DIRTY`,
//!   `admin-guide/mm/soft-dirty.rst`). The service is frozen for a moment at each look, because the kernel
//!   can't read and reset in one.
//! - [`Backend::None`].
//!
//! After a look, and only then, pages may be [read](reader::Reader): what is written while we read is
//! found by the next look. Two ways to write are seen by no backend, because they don't go by the page
//! tables of the process: a device that writes into pages which the kernel has pinned for it, so that a
//! process that reads files directly (`O_DIRECT`) or asynchronously (`io_setup(2)`) is not tracked; and
//! another process in the middle of process_vm_writev(2) between its pinning and its copying, for which a
//! look waits ([`SETTLE`]) before anything is read.
//!
//! One call of a tracked process ends otherwise than it would: since Linux 6.17 mremap(2) moves several
//! mappings at once, and answers `EFAULT` where one of them has a userfaultfd (`mm/mremap.c`), as every
//! earlier kernel does for any.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use crate::carry::Process;
use crate::cgroup::Cgroup;
use crate::freezer::Freezer;

mod direct;
pub(crate) mod entries;
mod guards;
mod inject;
pub(crate) mod mappings;
mod ranges;
pub mod reader;
mod rounds;
pub(crate) mod scan;
mod soft_dirty;
mod sys;
mod tracee;
mod write_protect;

pub(crate) use guards::{guards, mapped};
pub use ranges::Ranges;
pub use rounds::{RoundError, Rounds, Unchanged};
pub use soft_dirty::SoftDirty;
pub use write_protect::WriteProtect;

use scan::Found;
pub(crate) use sys::dispatches;

use crate::criu::page_server::PAGE_LEN;

const PAGE: u64 = PAGE_LEN as u64;

/// How long a look waits before it returns, for who has pinned a page before it and copies into it:
/// process_vm_writev(2) copies at most 4 MiB after one pinning (`mm/process_vm_access.c`), which takes
/// less than a millisecond.
pub const SETTLE: Duration = Duration::from_millis(5);

/// How pages that were written are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// userfaultfd in asynchronous write-protect mode, and PAGEMAP_SCAN.
    WriteProtect,
    /// Soft-dirty bits.
    SoftDirty,
    /// Not at all: all pages are for the freeze.
    None,
}

/// What the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// `UFFD_FEATURE_WP_ASYNC` and the PAGEMAP_SCAN ioctl.
    pub write_protect: bool,
    /// A page that was written has bit 55 in the pagemap.
    pub soft_dirty: bool,
}

/// The best backend of a kernel.
pub fn choose(features: Features) -> Backend {
    match features {
        Features {
            write_protect: true,
            ..
        } => Backend::WriteProtect,
        Features {
            soft_dirty: true, ..
        } => Backend::SoftDirty,
        _ => Backend::None,
    }
}

/// What this kernel has, tried once on pages of our own: two who try at once would reset each other's bits.
pub fn features() -> Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    *FEATURES.get_or_init(|| Features {
        write_protect: write_protect::is_here(),
        soft_dirty: soft_dirty::is_here(),
    })
}

/// A tracker for the processes of one control group; `None` where the kernel has no backend.
///
/// # Errors
/// A group that has no freezer.
pub fn tracker(backend: Backend, cgroup: &Cgroup) -> io::Result<Option<Box<dyn Tracker + Send>>> {
    Ok(match backend {
        Backend::WriteProtect => Some(Box::new(WriteProtect::new(Freezer::of(cgroup)?))),
        Backend::SoftDirty => Some(Box::new(SoftDirty::new(Freezer::of(cgroup)?))),
        Backend::None => None,
    })
}

/// When a look is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The service runs, and there will be another look.
    Running,
    /// The service is frozen, and this is the last look: nothing new is begun to be tracked.
    Frozen,
}

/// What a look has found of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whose.
    pub process: Process,
    /// Addresses of pages with content. What is not among them reads as zeros, or is not private anonymous
    /// memory.
    pub held: Ranges,
    /// Those of them that may have changed since the last look.
    pub written: Ranges,
    /// Why everything of it is written at every look; `None` when it is tracked.
    pub untracked: Option<Untracked>,
}

impl Seen {
    fn nothing(process: Process) -> Self {
        Self {
            process,
            held: Ranges::default(),
            written: Ranges::default(),
            untracked: None,
        }
    }

    /// What was found of a mapping that was tracked since the last look.
    fn add(&mut self, found: &Found) {
        self.held.extend(found.held.iter());
        self.written.extend(found.written.iter());
    }

    /// What was found of one that was not.
    fn add_written(&mut self, found: &Found) {
        self.held.extend(found.held.iter());
        self.written.extend(found.held.iter());
    }

    /// All of it is written.
    fn distrust(&mut self, reason: Untracked) {
        self.untracked = Some(reason);
        self.written = self.held.clone();
    }
}

/// Why a process can't be tracked: what it holds is for the freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untracked {
    /// It has files open whose content devices write into its memory.
    #[error("it reads files directly or asynchronously (O_DIRECT, io_setup(2))")]
    DirectReads,
    /// Another process traces it.
    #[error("it is traced by another process")]
    Traced,
    /// Of another architecture.
    #[error("it is a 32-bit program")]
    Compat,
    /// Its system calls go to its own handler.
    #[error("it dispatches its system calls itself (PR_SET_SYSCALL_USER_DISPATCH)")]
    Dispatches,
    /// A seccomp filter that we may not suspend.
    #[error(
        "it has a seccomp filter, which takes CAP_SYS_ADMIN and a tracer without one to suspend"
    )]
    Filtered,
    /// It has its memory in common with another process, as after a vfork(2).
    #[error("it shares its memory with another process")]
    SharesMemory,
    /// It, or its memory, is new.
    #[error("it is new")]
    New,
    /// It did not stop in time, or did something else meanwhile.
    #[error("it could not be stopped for a moment")]
    NotStopped,
    /// The kernel would not.
    #[error("{operation} failed ({errno})")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// The answer.
        errno: nix::errno::Errno,
    },
}

/// Finds out which pages have changed. What it has set up in the processes is gone when it is dropped,
/// also by the death of its holder.
pub trait Tracker {
    /// Looks at these processes. A process that ends meanwhile, or begins another program, is left out:
    /// what was read of it before is of no use any more.
    ///
    /// # Errors
    /// When nothing is known of what was written: nothing that was read before is of use then.
    fn look(&mut self, processes: &[Process], moment: Moment) -> io::Result<Vec<Seen>>;

    /// Undoes what it has set up in the processes, which run on as if they had never been tracked.
    fn disarm(&mut self, processes: &[Process]);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_best_that_there_is() {
        let of = |write_protect, soft_dirty| {
            choose(Features {
                write_protect,
                soft_dirty,
            })
        };
        assert_eq!(of(true, true), Backend::WriteProtect);
        assert_eq!(of(true, false), Backend::WriteProtect);
        assert_eq!(of(false, true), Backend::SoftDirty);
        assert_eq!(of(false, false), Backend::None);
    }
}
