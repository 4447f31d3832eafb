//! The Frontman (UMS §III-B): it stands at a service's endpoint while the service moves, so that
//! clients meet something that answers.
//!
//! It is a small process of its own, one for each service under way, because it must outlive the
//! agent, the Coordinator and even the source container: clients keep the old address until the
//! route or the name has moved. It knows connections, not protocols, so any protocol over TCP
//! passes, TLS included.
//!
//! ```text
//!             lead                 retire, or the end of its time
//!  Holding ─────────▶ Leading ─────────────────────────────────▶ Retiring ──▶ (gone)
//!     ▲                  │                                           ▲
//!     └────── hold ──────┘          Holding ── retire ───────────────┘
//! ```
//!
//! - *Holding*: connections are accepted and kept, within [`Limits`](control::Limits); beyond them
//!   they are refused with a reset, which a client sees at once and can answer by a retry.
//! - *Leading*: each held and each new connection gets a connection to the place where the service
//!   is now, and bytes are copied both ways.
//! - *Retiring*: nothing new is accepted; what is there is drained within a limit, then it exits.
//!
//! How packets come to the Frontman instead of the service is not its business: the agent's
//! network module leads new connections to its listeners.

pub mod client;
pub mod control;
pub mod engine;
pub mod packet;
pub mod record;

mod connection;
mod counters;
mod server;
mod tuning;
