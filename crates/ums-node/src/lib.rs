//! What a migration does on a node, whoever made the container.
//!
//! - [`facts`] and [`inspect`] look at the node and at services, without judging;
//! - [`packets`] does what concerns packets inside a service's network namespace, [`connections`]
//!   says which connections move;
//! - [`attendants`] lists what outlives a migration.

pub mod attendants;
pub mod connections;
pub mod facts;
pub mod inspect;
pub mod packets;
pub mod problem;
