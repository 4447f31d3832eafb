//! The Coordinator (UMS §III-A): one per system. It serves the client API and the peer API, runs
//! the saga of the 15 steps for services that leave, a receiver for services that arrive, and keeps
//! the journal from which both go on after a crash.
//!
//! Architecture invariant: it never touches a container, a route or a page itself; it asks the
//! Migration Interface of its own system, and the Coordinator of the other.

mod config;

pub use config::{AgentCommand, Config, Limits, PeerConfig};
