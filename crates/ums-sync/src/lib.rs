//! The Synchronization module: the one data path from a source agent to a destination agent.
//!
//! It carries, over one mutually authenticated TLS 1.3 connection and while the checkpoint is
//! being taken: metadata images, addressed pages of memory, and trees of files. It knows no
//! orchestrator and no CRIU: whoever reads the checkpoint hands over bytes, whoever restores it
//! gets them through a [`receive::Sink`].
//!
//! - [`frame`]: the protocol's frames;
//! - [`send`]: the source's end, [`receive`]: the destination's end;
//! - [`files`]: trees of files, copied while the service runs and corrected while it is frozen.
//!
//! # Invariants
//!
//! - The destination says *delivered* only after every byte has arrived, agrees with the source's
//!   counts and digest, and is in its place.
//! - What is in memory is bounded on both sides, whatever the service's size: see
//!   [`send::Sender`] and [`receive::Pending::welcome`].
//! - Every wait has a limit; a peer that has nothing to say sends `Alive`.

mod bucket;
pub mod files;
pub mod frame;
mod link;
mod meter;
mod pool;
pub mod receive;
pub mod send;

pub use link::LinkError;
pub use meter::Meter;
