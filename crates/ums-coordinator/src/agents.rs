//! Which agent speaks for which service.
//!
//! A system has one agent of its node, and one in each outer container (container level), which listens at
//! `RUN_DIR/outer/SERVICE/agent.sock`: the directory is mounted into the container. So a service's agent follows
//! from its name: as long as the directory `RUN_DIR/outer/SERVICE` is there, everything about a service of that
//! name is said to the agent in it, whether the service runs there, is awaited there, or has left; everything
//! else to the node's. Nothing of this has to be remembered, and a restart changes none of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ums_api::agent::{Attendant, ServiceView};
use ums_api::http::{AgentClient, ClientError};
use ums_core::id::ServiceName;

/// Directory of the directories of outer containers, below the run directory.
const OUTER: &str = "outer";
/// The agent's socket in each.
const SOCKET: &str = "agent.sock";
/// Most outer containers that are asked when all services are listed.
const OUTER_MAX: usize = 1024;

/// How long a list waits for one of them: its engine may have paused it.
const LIST_PATIENCE: Duration = Duration::from_secs(3);

/// All agents of a system.
pub(crate) struct Agents {
    node: AgentClient,
    outer: Option<Outer>,
}

struct Outer {
    directory: PathBuf,
    timeouts: (Duration, Duration),
    /// One for each, kept open.
    clients: Mutex<BTreeMap<ServiceName, AgentClient>>,
}

impl Agents {
    /// The node's, and those of outer containers below the run directory. `timeouts` are for requests that are
    /// answered at once, and for those that copy.
    pub(crate) fn new(
        node: AgentClient,
        run_dir: &std::path::Path,
        timeouts: (Duration, Duration),
    ) -> Self {
        let outer = Outer {
            directory: run_dir.join(OUTER),
            timeouts,
            clients: Mutex::default(),
        };
        Self {
            node,
            outer: Some(outer),
        }
    }

    /// The node's alone.
    #[cfg(test)]
    pub(crate) fn only(node: AgentClient) -> Self {
        Self { node, outer: None }
    }

    /// The node's own.
    pub(crate) fn node(&self) -> &AgentClient {
        &self.node
    }

    /// Whether an outer container has, or awaits, the service of this name.
    pub(crate) fn is_outer(&self, service: &ServiceName) -> bool {
        let place = |outer: &Outer| outer.directory.join(service.as_str());
        self.outer.as_ref().map(place).is_some_and(|it| it.is_dir())
    }

    /// The one that speaks for this service.
    pub(crate) fn of(&self, service: &ServiceName) -> AgentClient {
        match &self.outer {
            Some(outer) if self.is_outer(service) => outer.client(service),
            _ => self.node.clone(),
        }
    }

    /// The same; the node's where no service is known.
    pub(crate) fn of_any(&self, service: Option<&ServiceName>) -> AgentClient {
        service.map_or_else(|| self.node.clone(), |name| self.of(name))
    }

    /// Every service. What the engine of an outer container says of it under the service's name is left out, and
    /// an outer container that does not answer has none.
    pub(crate) async fn services(&self) -> Result<Vec<ServiceView>, ClientError> {
        let mut all = self.node.services().await?;
        all.retain(|view| !self.is_outer(&view.specification.name));
        for (name, agent) in self.outer_agents() {
            match tokio::time::timeout(LIST_PATIENCE, agent.services()).await {
                Ok(Ok(of_it)) => all.extend(of_it),
                Ok(Err(error)) => {
                    tracing::debug!(service = %name, %error, "an outer container does not answer")
                }
                Err(_) => tracing::warn!(service = %name, "an outer container does not answer"),
            }
        }
        Ok(all)
    }

    /// All that outlives migrations on purpose.
    pub(crate) async fn attendants(&self) -> Result<Vec<Attendant>, ClientError> {
        let mut all = self.node.attendants().await?;
        for (_, agent) in self.outer_agents() {
            if let Ok(Ok(of_it)) = tokio::time::timeout(LIST_PATIENCE, agent.attendants()).await {
                all.extend(of_it);
            }
        }
        Ok(all)
    }

    fn outer_agents(&self) -> Vec<(ServiceName, AgentClient)> {
        let Some(outer) = &self.outer else {
            return Vec::new();
        };
        let names = outer.names().into_iter();
        names
            .map(|name| (name.clone(), outer.client(&name)))
            .collect()
    }
}

impl Outer {
    fn client(&self, service: &ServiceName) -> AgentClient {
        let make = || {
            let socket = self.directory.join(service.as_str()).join(SOCKET);
            AgentClient::new(socket, self.timeouts.0, self.timeouts.1)
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.entry(service.clone()).or_insert_with(make).clone()
    }

    /// Names of services that have an outer container; those whose container was removed are forgotten.
    fn names(&self) -> Vec<ServiceName> {
        let entries = std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut names: Vec<ServiceName> = names.take(OUTER_MAX).collect();
        names.sort();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|name, _| names.contains(name));
        names
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_directory_is_what_makes_a_service_an_outer_containers() {
        let run = tempfile::tempdir().unwrap();
        let second = Duration::from_secs(1);
        let node = AgentClient::new(run.path().join("agent.sock"), second, second);
        let agents = Agents::new(node, run.path(), (second, second));
        let name: ServiceName = "web".parse().unwrap();
        assert!(!agents.is_outer(&name));
        std::fs::create_dir_all(run.path().join("outer/web")).unwrap();
        assert!(agents.is_outer(&name));
        assert_eq!(agents.outer_agents().len(), 1);
        std::fs::remove_dir(run.path().join("outer/web")).unwrap();
        assert!(!agents.is_outer(&name) && agents.outer_agents().is_empty());
    }
}
