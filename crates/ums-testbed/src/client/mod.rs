//! Clients that go on while a service moves, and notice everything that should not happen.

pub mod counter;
pub mod http;
pub mod keys;
pub mod ledger;
mod load;
pub mod resp;

pub use load::{Load, Summary};
