//! The simulated ring.
mod agent;
mod disk;
mod fault;
pub(crate) mod host;
mod run;
mod system;
mod table;
mod test;
mod truth;
mod wire;
mod world;

pub(crate) use system::Desk;
