//! The destination's side of a migration: a pure state machine, one function.
//!
//! ```text
//!  reserve      Created       restore      Prepared      commit       Ran        close
//! ────────▶ Reserved ──▶ Created ──▶ Delivered ──▶ Prepared ──▶ Committed ──▶ Running ──▶ Closed
//!               │            │            │            │
//!               ├────────────┴────────────┴── abort ───┤
//!               ├────────────┴── lease ended ┘         │   (in doubt: only the source's word counts)
//!               ▼                                      ▼
//!            Aborted ◀─────────────────────────────────┘
//!
//!  Prepared  ── gone, or discarded by the operator ──▶ Lost        it never executed and never will
//!  Committed ── discarded by the operator ──────────▶ Discarded   it may have executed, and is no more
//! ```
//!
//! Until *Prepared* the destination may reclaim what it holds by itself. From then on it may not:
//! the source may have committed, and then this instance is the service. It waits for *commit* or
//! *abort*, and asks the source when neither comes. From *Committed* on an abort is rejected,
//! however late or often it is repeated.
//!
//! *Committed* is written before the agent is asked to run, and means that it may have been asked.
//! So a *Prepared* instance that is gone (its keeper was lost, its node rebooted) has certainly not
//! executed: *Lost* says so, durably, and is why the source may take its own copy
//! back although it has committed. An instance that is gone after *Committed* proves nothing, and a
//! person has to decide.
//!
//! Messages that repeat what has happened are accepted and change nothing, so that a lost answer
//! can be asked for again. An id that is not known is presumed aborted.

use serde::{Deserialize, Serialize};

/// How far an arriving service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// Name, address and ports are promised to it.
    Reserved,
    /// Its container stands, and data may arrive.
    Created,
    /// The source says that all has been delivered, and asks for the restore.
    Delivered {
        /// BLAKE3 over the stream, as the source knows it.
        digest: String,
    },
    /// Restored, and held before its first instruction. Durable before the source is told.
    Prepared {
        /// As above; the agent restored from a stream of the same digest.
        digest: String,
    },
    /// The source has committed, or the operator has decided in its place. Durable before the agent
    /// is first asked to run the service, so that from here on it may have executed.
    Committed,
    /// It executes here and nowhere else.
    Running,
    /// The source has deleted its own container: nothing more will be said.
    Closed,
    /// It was given up, or is presumed to have been. It never executed here.
    Aborted,
    /// What was prepared is gone, and the agent was never asked to run it: no instruction was
    /// executed here, and none will be. Durable before the source is told.
    Lost,
    /// The operator has ended what the agent had been asked to run: it may have executed here, and
    /// will no more.
    Discarded,
}

/// What reaches the receiver: requests of the source, and what it learns by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The source asks for the container.
    Create,
    /// Our agent has created it.
    Created,
    /// The source says that all is delivered, with this digest, and asks for the restore.
    Restore {
        /// The digest.
        digest: String,
    },
    /// Our agent has restored and holds it.
    Prepared,
    /// The source has committed.
    Commit,
    /// Our agent has run it.
    Ran,
    /// The source gives it up.
    Abort,
    /// The source has deleted its own container.
    Close,
    /// The source has not been heard of for the length of the lease.
    LeaseEnded,
    /// Our agent says that what it held is gone.
    Gone,
    /// The operator has it run although the source can't be asked.
    OperatorRun,
    /// The operator gives up what is here.
    OperatorDiscard,
}

/// A message that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Too late to abort.
    #[error("the migration is committed: the service is this system's now, and can't be given up")]
    Committed,
    /// Presumed or known to be aborted.
    #[error("the migration was aborted here, or its lease has ended; begin a new one")]
    Aborted,
    /// Never executed and never will.
    #[error(
        "what was prepared is gone before its first instruction, and will never execute here: the \
         source's own copy is the service"
    )]
    Lost,
    /// Ended by the operator after it may have executed.
    #[error(
        "the operator has discarded the service here after it may have executed; nothing executes \
         here any more"
    )]
    Discarded,
    /// A step before this one is missing.
    #[error("the migration is not that far: an earlier step is missing")]
    TooEarly,
    /// A step after this one has been taken.
    #[error("the migration is further than that")]
    TooLate,
    /// The digest is not the one that was given before.
    #[error("the digest is not the one given before: source and destination disagree on the data")]
    Digest,
}

/// The one transition function. `None` is an id that is not known: only a reservation, which is
/// not a message but a beginning, makes it known.
pub fn receive(state: Option<&State>, message: &Message) -> Result<State, Rejected> {
    use Message as M;
    use State as S;

    let Some(state) = state else {
        // Presumed abort: remembered, so that a request that was overtaken finds it.
        return match message {
            M::Abort | M::LeaseEnded => Ok(S::Aborted),
            _ => Err(Rejected::Aborted),
        };
    };
    let same = || Ok(state.clone());
    match (state, message) {
        (S::Reserved, M::Create) => same(),
        (S::Reserved, M::Created) => Ok(S::Created),
        (S::Created, M::Restore { digest }) => Ok(S::Delivered {
            digest: digest.clone(),
        }),
        (S::Delivered { digest }, M::Prepared) => Ok(S::Prepared {
            digest: digest.clone(),
        }),
        (S::Prepared { .. }, M::Commit) => Ok(S::Committed),
        (S::Committed, M::Ran) => Ok(S::Running),
        (S::Running, M::Close) => Ok(S::Closed),
        (S::Prepared { .. }, M::OperatorRun) => Ok(S::Committed),
        (S::Prepared { .. }, M::Gone | M::OperatorDiscard) => Ok(S::Lost),
        (S::Committed, M::OperatorDiscard) => Ok(S::Discarded),

        (S::Reserved | S::Created | S::Delivered { .. }, M::LeaseEnded) => Ok(S::Aborted),
        (S::Reserved | S::Created | S::Delivered { .. } | S::Prepared { .. }, M::Abort) => {
            Ok(S::Aborted)
        }

        // Repeats of what has happened.
        (S::Created | S::Delivered { .. } | S::Prepared { .. }, M::Create | M::Created) => same(),
        (S::Delivered { digest: known } | S::Prepared { digest: known }, M::Restore { digest }) => {
            if known == digest {
                same()
            } else {
                Err(Rejected::Digest)
            }
        }
        (S::Prepared { .. }, M::Prepared) => same(),
        (S::Committed | S::Running | S::Closed, M::Commit) => same(),
        (S::Running | S::Closed, M::Ran) => same(),
        (S::Closed, M::Close) => same(),
        (S::Aborted, M::Abort | M::LeaseEnded) => same(),
        (S::Lost, M::Gone | M::OperatorDiscard | M::Abort) => same(),
        (S::Discarded, M::OperatorDiscard | M::Abort) => same(),
        (S::Committed | S::Running | S::Closed, M::OperatorRun) => same(),

        // Silence ends nothing from Prepared on; a lease that ends then is no news.
        (
            S::Prepared { .. } | S::Committed | S::Running | S::Closed | S::Lost | S::Discarded,
            M::LeaseEnded,
        ) => same(),

        // What is gone after the agent may have been asked to run it proves nothing.
        (S::Committed | S::Running | S::Closed, M::Gone) => Err(Rejected::Committed),
        (S::Running | S::Closed, M::OperatorDiscard) => Err(Rejected::Committed),

        (S::Aborted, _) => Err(Rejected::Aborted),
        (S::Lost, _) => Err(Rejected::Lost),
        (S::Discarded, _) => Err(Rejected::Discarded),
        (S::Committed | S::Running | S::Closed, M::Abort) => Err(Rejected::Committed),
        (
            S::Committed | S::Running | S::Closed,
            M::Create | M::Created | M::Restore { .. } | M::Prepared,
        ) => Err(Rejected::TooLate),
        (
            S::Reserved | S::Created | S::Delivered { .. },
            M::Gone | M::OperatorRun | M::OperatorDiscard,
        )
        | (S::Reserved, M::Restore { .. } | M::Prepared | M::Commit | M::Ran | M::Close)
        | (S::Created, M::Prepared | M::Commit | M::Ran | M::Close)
        | (S::Delivered { .. }, M::Commit | M::Ran | M::Close)
        | (S::Prepared { .. }, M::Ran | M::Close)
        | (S::Committed, M::Close) => Err(Rejected::TooEarly),
    }
}

impl State {
    /// The state's name, as on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            State::Reserved => "reserved",
            State::Created => "created",
            State::Delivered { .. } => "delivered",
            State::Prepared { .. } => "prepared",
            State::Committed => "committed",
            State::Running => "running",
            State::Closed => "closed",
            State::Aborted => "aborted",
            State::Lost => "lost",
            State::Discarded => "discarded",
        }
    }

    /// Whether the source has committed, or the operator in its place, and the service is this
    /// system's.
    pub fn is_committed(&self) -> bool {
        matches!(self, State::Committed | State::Running | State::Closed)
    }

    /// Whether the service's name, address and ports are held for it, and it does not run yet.
    pub fn is_arriving(&self) -> bool {
        !matches!(self, State::Running | State::Closed) && !self.is_given_up()
    }

    /// Whether nothing of it shall be left here.
    pub fn is_given_up(&self) -> bool {
        matches!(self, State::Aborted | State::Lost | State::Discarded)
    }
}

#[cfg(test)]
mod test;
