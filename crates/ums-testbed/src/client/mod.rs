//! Clients that go on while a service moves, and notice everything that should not happen.
//!
//! Some find the service again when their connection is lost ([`counter`], [`http`]), as most
//! programs do. Others keep the one that they have opened: to them its loss is an error.

pub mod bank;
pub mod counter;
pub mod datagrams;
pub mod echo;
mod held;
pub mod http;
pub mod keys;
pub mod ledger;
mod load;
pub mod memcached;
pub mod pages;
pub mod pipeline;
pub mod postgresql;
pub mod resp;
pub mod subscriber;
pub mod transfer;
mod unacknowledged;
pub mod websocket;

pub use held::{account, finish};
pub(crate) use held::{connect, open};
pub use load::{Load, Loads, Summary};
