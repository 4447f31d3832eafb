//! Wire types of UMS: between the `ums` command and the Coordinator ([`client`]), between two
//! Coordinators ([`peer`]), and between a Coordinator and its Migration Interface ([`agent`]);
//! [`problem`] is what an error looks like on all three (RFC 9457), [`http`] the small typed client,
//! [`lock`] how the programs of one system keep out of each other's directories.

pub mod agent;
pub mod client;
pub mod http;
pub mod lock;
pub mod peer;
pub mod problem;
