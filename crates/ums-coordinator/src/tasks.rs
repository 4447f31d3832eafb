//! All tasks of a Coordinator, so that they end with it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

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

/// Pause before work that panicked is begun again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// The result of `work`, or what its panic said.
///
/// Whoever calls this must not go on with anything that `work` was changing: what counts is read from
/// the journal anew.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        polled.map_or_else(
            |panic| Poll::Ready(Err(in_words(&*panic))),
            |poll| poll.map(Ok),
        )
    })
    .await
}

/// Does work that should never end, and begins it anew when it panics.
pub(crate) async fn for_ever<F: Future<Output = ()>>(what: &str, work: impl Fn() -> F) {
    while let Err(panic) = caught(work()).await {
        tracing::error!(panic, "{what} panicked, and is begun again");
        tokio::time::sleep(AFTER_PANIC).await;
    }
}

fn in_words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task panicked");
    }
}
