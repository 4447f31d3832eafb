//! The keeper: one small process for each container, apart from the agent, which it outlives.
//!
//! It is the parent of the container's init and holds all that the container needs to exist: the
//! overlay mount (in a mount namespace of the keeper's own), the network namespace, the standard
//! output (which a [pump](log) reads), and at a destination the arrived pages with the userfaultfd descriptors. All of that is
//! tied to processes, not to names, so that nothing is left when they are gone.
//!
//! ```text
//!            Start                 Dump              Thaw
//!  Created ---------> Running <---------> Frozen ---------> Running
//!     |                  ^                   |
//!     | Restore          | Resume            | Kill
//!     v                  |                   v
//!   Held ----------------+                 Dead
//! ```
//!
//! The agent speaks to it over a unix socket ([`protocol`], [`client`]); every request may be
//! repeated. It runs CRIU itself, so that a service on the way is not lost with the agent.
//!
//! If the keeper is lost while pages are missing, the guard ([`guard`]), which holds copies of the
//! userfaultfd descriptors, kills the container before a missing page can read as zeros.

pub mod adopted;
pub mod client;
mod container;
mod dump;
pub mod guard;
pub mod handshake;
mod hidden;
pub mod log;
mod moment;
mod nonlocal;
mod pages;
mod place;
pub mod placing;
pub mod protocol;
mod ready;
mod restore;
mod server;
mod supplied;
mod vacate;

pub use dump::GHOST_LIMIT;
pub use server::{processes_max, run};
