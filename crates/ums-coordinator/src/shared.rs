//! What all parts of a Coordinator use.

use std::sync::Arc;

use crate::agents::Agents;
use crate::config::Config;
use crate::destination::Arrivals;
use crate::journal::{Journal, JournalError};
use crate::peer::Peers;
use crate::settings::InForce;
use crate::status::Registry;
use crate::tasks::Tasks;

/// One Coordinator's parts.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) settings: InForce,
    pub(crate) journal: Arc<Journal>,
    pub(crate) desk: Desk,
    pub(crate) agents: Agents,
    pub(crate) peers: Peers,
    pub(crate) registry: Registry,
    pub(crate) arrivals: Arrivals,
    pub(crate) tasks: Arc<Tasks>,
}

/// Where the journal is used.
pub(crate) enum Desk {
    /// On threads that may wait for the disk.
    Blocking,
    /// At once, so that a run of the simulation can be repeated.
    #[cfg(test)]
    Simulated(crate::simulation::Desk),
}

impl Shared {
    /// Uses the journal, which waits for the disk, without holding up other tasks.
    pub(crate) async fn journal<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let journal = Arc::clone(&self.journal);
        match &self.desk {
            Desk::Blocking => blocking(move || work(&journal)).await,
            #[cfg(test)]
            Desk::Simulated(desk) => desk.journal(|| work(&journal)).await,
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime is ending, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
