//! Step 7: memory goes over in rounds while the service runs (pre-copy), and the freeze has only what was
//! written since.
//!
//! Nothing of it is needed: where it fails, all of the memory is sent in the freeze.

use std::time::Instant;

use ums_api::agent as api;
use ums_api::problem::Problem;
use ums_checkpoint::carry::{Process, processes};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::criu::page_server::{PE_LAZY, PE_PRESENT};
use ums_checkpoint::dirty::{self, RoundError, Rounds, Unchanged};
use ums_checkpoint::shared::{Known, SharedRounds};
use ums_checkpoint::store::READ_RUNNING;
use ums_core::converge::{self, Bounds, Next, Round};
use ums_sync::send::{PageWriter, SendError, Sender};

use crate::host::Service;
use crate::task::blocking;

/// What the destination has of the memory, and what changes since.
pub(crate) struct Copied {
    cgroup: Cgroup,
    rounds: Rounds,
    /// Of what processes share; `None` where the destination takes none of it, or has got all that it will.
    shared: Option<SharedRounds>,
    /// How many there were.
    pub(crate) count: u32,
}

/// Sends memory in rounds until it is of no more use; `None` where memory can't be tracked. `begun` is told of
/// each round, and `at_peer` says what a broken data path means.
///
/// *Cancel safety*: may be dropped; the round under way ends with the data path.
pub(crate) async fn copy(
    service: &Service,
    sender: &Sender,
    begun: impl Fn(api::Round) + Send + 'static,
    at_peer: fn(&(dyn std::error::Error + 'static)) -> Problem,
) -> Result<Option<Copied>, Problem> {
    if !sender.takes_rounds() {
        tracing::info!(
            "the destination takes no rounds of pages: all memory is sent in the freeze"
        );
        return Ok(None);
    }
    let (cgroup, mut pages) = (service.container.cgroup.clone(), sender.pages());
    let takes_shared = sender.takes_shared_rounds();
    blocking(move || {
        let copied = Copied::begin(&cgroup, takes_shared).and_then(|mut copied| {
            copied.run(&mut pages, begun)?;
            Ok(copied)
        });
        match copied {
            Ok(copied) => Ok(Some(copied)),
            Err(RoundError::Send(error)) => Err(at_peer(&error)),
            Err(RoundError::Read(error)) => {
                tracing::warn!(%error, "memory can't be tracked: all of it is sent in the freeze");
                Ok(None)
            }
        }
    })
    .await
}

impl Copied {
    /// Nothing is copied yet.
    fn begin(cgroup: &str, takes_shared: bool) -> Result<Self, RoundError<SendError>> {
        let begun = Cgroup::at(cgroup).and_then(|cgroup| {
            let backend = dirty::choose(dirty::features());
            let tracker =
                dirty::tracker(backend, &cgroup)?.ok_or(std::io::ErrorKind::Unsupported)?;
            tracing::debug!(?backend, "memory is tracked");
            Ok(Self {
                cgroup,
                rounds: Rounds::new(tracker),
                shared: takes_shared.then(SharedRounds::new).transpose()?,
                count: 0,
            })
        });
        begun.map_err(RoundError::Read)
    }

    fn run(
        &mut self,
        pages: &mut PageWriter,
        begun: impl Fn(api::Round),
    ) -> Result<(), RoundError<SendError>> {
        let mut done = Vec::new();
        loop {
            let left = self.look().map_err(RoundError::Read)?;
            let next = converge::next(&done, left, &Bounds::default());
            if next == Next::Freeze {
                tracing::info!(
                    rounds = self.count,
                    left,
                    "memory is copied but for what changes"
                );
                return Ok(());
            }
            begun(api::Round {
                number: self.count + 1,
                bytes: left,
            });
            let begin = Instant::now();
            self.send(pages)?;
            let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            done.push(Round { bytes: left, ms });
            self.count += 1;
            if next == Next::LastRound {
                tracing::info!(rounds = self.count, "memory is copied but for what changes");
                return Ok(());
            }
        }
    }

    /// How many bytes are to be sent.
    fn look(&mut self) -> std::io::Result<u64> {
        let processes = self.processes();
        let shared = self.shared.as_mut().map_or(0, |it| it.look(&processes));
        Ok(self.rounds.look(&processes)? + shared)
    }

    fn send(&mut self, pages: &mut PageWriter) -> Result<(), RoundError<SendError>> {
        if let Some(shared) = &mut self.shared {
            let flags = PE_PRESENT | READ_RUNNING;
            shared.send(|owner, offset, bytes| pages.write(owner.0, offset, flags, bytes))?;
        }
        let flags = PE_LAZY | READ_RUNNING;
        self.rounds
            .send(|owner, address, bytes| pages.write(owner.0, address, flags, bytes))
    }

    /// What the destination has got of what processes share, once there are no more rounds.
    pub(crate) fn take_shared(&mut self) -> Option<Known> {
        self.shared.take().map(SharedRounds::into_known)
    }

    fn processes(&self) -> Vec<Process> {
        processes(&self.cgroup)
    }

    /// What the destination's copies are right of, once every process is frozen.
    pub(crate) fn unchanged(&mut self) -> Unchanged {
        let processes = self.processes();
        self.rounds.unchanged(&processes).unwrap_or_else(|error| {
            tracing::warn!(%error, "what has changed is not known: all memory is sent in the freeze");
            Unchanged::default()
        })
    }
}

impl Drop for Copied {
    /// The processes run on, or are dumped, as if they had never been tracked; a child that was forked while its
    /// parent was stopped for us too.
    fn drop(&mut self) {
        let processes = self.processes();
        self.rounds.disarm(&processes);
    }
}
