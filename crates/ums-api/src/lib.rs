//! Wire types of UMS: between the `ums` command and the Coordinator ([`client`]), between two
//! Coordinators ([`peer`]), and between a Coordinator and its Migration Interface ([`agent`]);
//! [`problem`] is what an error looks like on all three (RFC 9457), [`http`] the small typed client.

pub mod agent;
pub mod client;
pub mod http;
pub mod peer;
pub mod problem;
