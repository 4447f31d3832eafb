//! The Synchronization module: the one data path from a source agent to a destination agent.

pub mod frame;
pub mod tls;
