//! How fast a service writes to its memory: two looks at what it has written, some tenths of a second apart.
//!
//! A look stops the service for some milliseconds, as in a round of pre-copy; nothing of it stays. It is
//! taken on request alone, and never beside a migration: both would freeze and thaw the service.

use std::io;
use std::time::{Duration, Instant};

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::carry::{Process, processes};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::dirty::reader::Reader;
use ums_checkpoint::dirty::{self, Backend, Moment, Seen, Tracker};
use ums_core::id::ServiceName;
use ums_core::preflight::Writing;

use crate::host::Service;
use crate::migration::Migration;
use crate::node::Node;
use crate::problem;

/// Between the two looks.
const LOOK: Duration = Duration::from_millis(200);
/// How much memory is read to see how fast that goes, bytes, and the least that tells.
const READ_MAX: u64 = 32 << 20;
const READ_MIN: u64 = 1 << 20;
/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// Measures it. Blocks for some tenths of a second.
///
/// # Errors
/// When the service is being migrated, has only just arrived, or can't be tracked here.
pub fn measure(node: &Node, name: &ServiceName) -> Result<Writing, Problem> {
    let _alone = node.measuring.blocking_lock();
    let service = node.host.service(name)?;
    may_be_measured(node, &service)?;
    let failed = problem::failed(
        ProblemKind::Inspect,
        "the service's writing can't be measured",
    );
    let measured = Cgroup::at(&service.container.cgroup).and_then(|cgroup| {
        // Soft-dirty bits are the whole machine's: to reset them may take them from somebody else.
        let backend = match dirty::choose(dirty::features()) {
            Backend::WriteProtect => Backend::WriteProtect,
            _ => Backend::None,
        };
        let tracker = dirty::tracker(backend, &cgroup)?.ok_or_else(not_here)?;
        let mut looks = Looks { cgroup, tracker };
        looks.measure()
    });
    measured.map_err(|error| failed(&error))
}

fn may_be_measured(node: &Node, service: &Service) -> Result<(), Problem> {
    let of_it = |migration: &Migration| match migration {
        Migration::Outgoing(outgoing) => outgoing.service == service.specification.name,
        Migration::Incoming(incoming) => incoming.service == service.specification.name,
    };
    let migrates = node.migrations.all().iter().any(|(_, it)| of_it(it));
    let missing = service.container.status_if_any()?;
    let missing = missing.map_or(0, |status| status.pages_missing);
    if migrates || service.gate.is_some() || missing > 0 {
        let detail = "it is being migrated, or has only just arrived: ask again when that is over";
        let title = "the service's writing can't be measured now";
        return Err(problem::conflict(ProblemKind::Busy, title, detail));
    }
    Ok(())
}

fn not_here() -> io::Error {
    let reason = "this kernel does not tell what one service writes (userfaultfd in asynchronous \
                  write-protect mode and PAGEMAP_SCAN, Linux 6.7)";
    io::Error::new(io::ErrorKind::Unsupported, reason)
}

struct Looks {
    cgroup: Cgroup,
    tracker: Box<dyn Tracker + Send>,
}

impl Looks {
    fn measure(&mut self) -> io::Result<Writing> {
        self.look()?;
        let begin = Instant::now();
        std::thread::sleep(LOOK);
        let seen = self.look()?;
        let took = begin.elapsed();
        Ok(Writing {
            bytes_per_second: per_second(written(&seen), took).unwrap_or(0),
            untracked_bytes: untracked(&seen),
            read_bytes_per_second: read_rate(&seen),
        })
    }

    fn look(&mut self) -> io::Result<Vec<Seen>> {
        let processes = self.processes();
        self.tracker.look(&processes, Moment::Running)
    }

    fn processes(&self) -> Vec<Process> {
        processes(&self.cgroup)
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        let processes = self.processes();
        self.tracker.disarm(&processes);
    }
}

fn written(seen: &[Seen]) -> u64 {
    let tracked = seen.iter().filter(|one| one.untracked.is_none());
    tracked.map(|one| one.written.bytes()).sum()
}

fn untracked(seen: &[Seen]) -> u64 {
    let untracked = seen.iter().filter(|one| one.untracked.is_some());
    untracked.map(|one| one.held.bytes()).sum()
}

/// How fast the pages are read; `None` when there are too few, or they go.
fn read_rate(seen: &[Seen]) -> Option<u64> {
    let mut buffer = vec![0; CHUNK];
    let (begin, mut read) = (Instant::now(), 0);
    for one in seen {
        let reader = Reader::open(one.process.pid).ok()?;
        for (start, end) in one.held.iter() {
            for at in (start..end).step_by(CHUNK) {
                if read >= READ_MAX {
                    return per_second(read, begin.elapsed());
                }
                let len = (end - at).min(CHUNK as u64) as usize;
                read += reader.read(at, &mut buffer[..len]).ok()? as u64;
            }
        }
    }
    per_second(read, begin.elapsed()).filter(|_| read >= READ_MIN)
}

fn per_second(bytes: u64, took: Duration) -> Option<u64> {
    let rate = u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1);
    u64::try_from(rate).ok()
}

#[cfg(test)]
mod test {
    use ums_checkpoint::dirty::{Ranges, Untracked};

    use super::*;

    #[test]
    fn what_is_tracked_and_what_is_not() {
        let seen = |written: u64, untracked| Seen {
            process: Process { pid: 1, inner: 1 },
            held: Ranges::from_iter([(0, 0x9000)]),
            written: Ranges::from_iter([(0, written)]),
            untracked,
        };
        let all = [seen(0x3000, None), seen(0x9000, Some(Untracked::Traced))];
        assert_eq!((written(&all), untracked(&all)), (0x3000, 0x9000));
        let half = Duration::from_millis(500);
        assert_eq!(per_second(100, half), Some(200));
        assert_eq!(per_second(1, Duration::ZERO), Some(1_000_000_000));
    }
}
