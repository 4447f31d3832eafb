//! What people tell an engine of a container while it is moved: its events, from the moment on at which the gate is shut.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::EventMessage;
use futures_util::StreamExt;
use tokio::task::AbortHandle;

use crate::client::Client;

/// Events by which a container is another than the one that was looked at, or is to be: as Docker and Podman name them.
const TELLING: [&str; 12] = [
    "kill",
    "stop",
    "die",
    "died",
    "restart",
    "pause",
    "unpause",
    "update",
    "oom",
    "destroy",
    "remove",
    "checkpoint",
];

/// What was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing.
    Nothing,
    /// This.
    This(String),
    /// The engine does not say any more: it was restarted, or has ended.
    Unknown,
}

/// Listens to what an engine says of one container, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    told: Arc<Mutex<Told>>,
    listening: AbortHandle,
}

impl Watch {
    /// Listens, from `since` on: what was said between then and now counts.
    pub(crate) fn begin(client: &Client, id: &str, since: SystemTime) -> Self {
        let told = Arc::new(Mutex::new(Told::Nothing));
        let (heard, client, id) = (Arc::clone(&told), client.clone(), id.to_owned());
        let listening = tokio::spawn(async move {
            let filters = HashMap::from([
                ("type".to_owned(), vec!["container".to_owned()]),
                ("container".to_owned(), vec![id.clone()]),
            ]);
            let mut events = Box::pin(client.events(since_text(since), filters));
            while let Some(Ok(event)) = events.next().await {
                if let Some(action) = telling(&event, &id) {
                    *lock(&heard) = Told::This(action);
                    return;
                }
            }
            *lock(&heard) = Told::Unknown;
        });
        Self {
            told,
            listening: listening.abort_handle(),
        }
    }

    /// What was told until now.
    pub(crate) fn told(&self) -> Told {
        lock(&self.told).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since the epoch, as engines read it.
fn since_text(since: SystemTime) -> String {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("{}.{:09}", since.as_secs(), since.subsec_nanos())
}

/// What of it is to be known.
fn telling(event: &EventMessage, id: &str) -> Option<String> {
    let of = event.actor.as_ref()?.id.as_deref()?;
    let action = event.action.as_deref()?;
    (of == id && TELLING.contains(&action)).then(|| action.to_owned())
}

#[cfg(test)]
mod test {
    use super::*;

    fn event(id: &str, action: &str) -> EventMessage {
        let text = format!(r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"{id}"}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_changes_a_container_is_heard_and_what_looks_at_it_is_not() {
        assert_eq!(telling(&event("x", "kill"), "x").as_deref(), Some("kill"));
        assert_eq!(telling(&event("y", "kill"), "x"), None);
        for harmless in [
            "exec_create: redis-cli ping",
            "health_status: healthy",
            "top",
            "attach",
        ] {
            assert_eq!(telling(&event("x", harmless), "x"), None);
        }
    }

    #[test]
    fn a_time_is_told_to_the_nanosecond() {
        let at = UNIX_EPOCH + Duration::new(7, 5);
        assert_eq!(since_text(at), "7.000000005");
    }
}
