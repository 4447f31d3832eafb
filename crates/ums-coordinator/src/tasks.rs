//! All tasks of a Coordinator, so that they end with it.

use std::sync::{Mutex, PoisonError};

use tokio::task::JoinSet;

/// A set of tasks that is ended as a whole.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    /// `None` once ended: nothing is begun after that.
    set: Mutex<Option<JoinSet<()>>>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self {
            set: Mutex::new(Some(JoinSet::new())),
        }
    }

    /// Begins a task, unless the set has been ended.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut guard = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(set) = guard.as_mut() else { return };
        while let Some(ended) = set.try_join_next() {
            report(ended);
        }
        set.spawn(task);
    }

    /// Runs work to its end even if whoever waits for it goes away; `None` when the set is ended.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.spawn(async move {
            // Nobody listens any more when the connection has gone: the work counts, not the answer.
            let _ = sender.send(work.await);
        });
        receiver.await.ok()
    }

    /// Ends all tasks where they stand, and waits until they have.
    pub(crate) async fn end(&self) {
        let set = self
            .set
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut set) = set {
            set.shutdown().await;
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task panicked; its migration goes on at the next start");
    }
}
