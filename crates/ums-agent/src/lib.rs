//! The Migration Interface (UMS §III-A): what a Coordinator asks of its own system, done on the node.

pub mod bundle;
pub mod facts;
pub mod images;
pub mod inspect;
pub mod network;
