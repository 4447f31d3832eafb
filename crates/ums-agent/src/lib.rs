//! The Migration Interface (UMS §III-A): what a Coordinator asks of its own system, done on the node.

pub mod bundle;
pub mod config;
pub mod container;
pub mod facts;
pub mod images;
pub mod inspect;
pub mod network;

/// Serves the agent until it is told to end.
pub fn serve(_config: config::AgentConfig) -> anyhow::Result<()> {
    anyhow::bail!("the agent's server is not part of this build")
}
