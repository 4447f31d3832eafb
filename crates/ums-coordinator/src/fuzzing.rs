//! What the fuzzer calls: the journal as a Coordinator reads it at its start.

use std::path::Path;
use std::sync::Arc;

use ums_core::id::MigrationId;
use ums_core::receiver::{self, Message};

use crate::journal::Journal;

/// A journal in memory, into which lines can be put as a damaged or foreign program would have.
pub struct Lines(Journal);

impl Default for Lines {
    fn default() -> Self {
        let memory = redb::backends::InMemoryBackend::new;
        let store = Arc::new(move |_: &Path| redb::Builder::new().create_with_backend(memory()));
        let system = "a".parse().expect("a name");
        let journal = Journal::open_without_file(&system, 1, store);
        Self(journal.expect("a journal in memory"))
    }
}

impl Lines {
    /// Reads these lines as the events of a migration that leaves, and folds them; says whether
    /// that was possible.
    pub fn outgoing(&self, lines: &[&[u8]]) -> bool {
        let id = MigrationId(uuid::Uuid::nil());
        self.0.put_lines(id, lines).expect("memory takes it");
        match self.0.saga(id) {
            Ok(Some((saga, count))) => {
                assert_eq!(count as usize, lines.len());
                let _ = (saga.what_next(), saga.current_step());
                let _ = (saga.report(u64::MAX, None), saga.refusals());
                true
            }
            Ok(None) => lines.is_empty(),
            Err(_) => false,
        }
    }

    /// Reads this line as an arriving migration, and hands it every message; says whether it is one.
    pub fn incoming(&self, line: &[u8]) -> bool {
        let id = MigrationId(uuid::Uuid::nil());
        self.0.put_line(id, line).expect("memory takes it");
        let Ok(Some(incoming)) = self.0.incoming(id) else {
            return false;
        };
        let _ = (incoming.is_over(), incoming.endpoints());
        for message in [
            Message::Create,
            Message::Commit,
            Message::Abort,
            Message::Close,
        ] {
            let _ = receiver::receive(Some(&incoming.state), &message);
        }
        self.0.put_incoming(id, &incoming).expect("memory takes it");
        assert_eq!(
            self.0.incoming(id).expect("written just now"),
            Some(incoming)
        );
        true
    }
}
