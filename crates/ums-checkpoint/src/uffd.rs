//! Our userfaultfd server: installs arrived pages in a restored service, while it already runs.
//!
//! CRIU's restore registers every range that may be late and sends us, over a unix socket, each
//! process's id and its userfaultfd (CRIU `criu/uffd.c`). From then on a touched page that is
//! missing stops its thread until we have installed it (kernel `admin-guide/mm/userfaultfd.rst`).
//! Pages are installed in the background too, those near the last fault first.
//!
//! A page that is lost here reads as zeros: silent corruption. Three rules prevent it:
//!
//! - Descriptors are closed only when a process has all its pages, and a guard ([`crate::keeper`])
//!   holds copies of them and kills the container if the keeper is lost.
//! - What CRIU has left where a late page belongs is not that page ([`leftover`]).
//! - A page stays missing until it is in, or until the kernel has told that its mapping or its
//!   content is gone. That a call failed says nothing of the kind.
//! - A page whose content is still at the source ([`Server::leave_away`]) is missing as well: who touches it
//!   waits until it has come.
//!
//! What the kernel does not tell us of: `MADV_GUARD_INSTALL` (Linux 6.13) on a page that is still
//! missing, which we then install over the guard; and a child's `MADV_WIPEONFORK` ranges, whose
//! pages are therefore never left to be installed late ([`crate::store`]).

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::criu::page_server::PAGE_LEN;

mod away;
pub mod leftover;
mod missing;
mod server;
mod sys;
#[cfg(test)]
mod test;

pub use away::Wanted;
pub use server::{Progress, Server};

const PAGE: u64 = PAGE_LEN as u64;

/// Why a process can't be served any further; its container must be killed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("userfaultfd {operation} at {address:#x} failed")]
    Kernel {
        /// Which operation.
        operation: &'static str,
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: Errno,
    },
    /// No memory was to be had for a long time.
    #[error(
        "there is no memory to install the service's pages in: its own limit, or the system's \
         memory, is used up"
    )]
    NoMemory,
    /// A descriptor of a forked process could not be kept.
    #[error("no descriptor for a forked process: the keeper's limit of open files is reached")]
    Descriptor(#[source] io::Error),
    /// Content came that nobody has asked for.
    #[error("content came for the pages at {0:#x} of the store, which was not asked for")]
    Unasked(u64),
    /// Content that has come can't be kept.
    #[error("there is no memory for pages that come from the source")]
    Keep(#[source] io::Error),
    /// The index points outside the stored pages.
    #[error("page {0:#x} is outside the stored pages")]
    Index(u64),
}

/// Why userfaultfd can't be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The kernel has none.
    #[error("this kernel has no userfaultfd (CONFIG_USERFAULTFD)")]
    Absent,
    /// It is there, and we may not have it.
    #[error(
        "userfaultfd is not permitted here: the agent needs CAP_SYS_PTRACE, and no seccomp profile \
         that forbids it"
    )]
    Forbidden,
    /// It can't tell of forks and mappings that change.
    #[error("this kernel's userfaultfd lacks what is needed ({0}): Linux 4.14 has it")]
    Features(Errno),
    /// Something else.
    #[error("userfaultfd can't be opened here ({0})")]
    Failed(Errno),
}

/// Tries whether this process can have a userfaultfd such as CRIU makes in the processes that it
/// restores. Its children have what it has.
pub fn probe() -> Result<(), Unusable> {
    let uffd = sys::open().map_err(|errno| match errno {
        Errno::ENOSYS => Unusable::Absent,
        Errno::EPERM | Errno::EACCES => Unusable::Forbidden,
        other => Unusable::Failed(other),
    })?;
    sys::agree(uffd.as_fd()).map_err(|errno| match errno {
        // To hear of forks needs CAP_SYS_PTRACE.
        Errno::EPERM => Unusable::Forbidden,
        other => Unusable::Features(other),
    })
}
