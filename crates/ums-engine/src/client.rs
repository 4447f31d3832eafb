//! The Docker Engine's API, which Podman serves too, on a unix socket.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{
    ContainerInspectResponse, ContainerUpdateBody, EventMessage, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::{EventsOptions, ListContainersOptions, RemoveContainerOptions};
use futures_util::Stream;
use ums_core::specification::Restart;

/// How long an engine may take to answer, seconds: to remove a container takes it a part of one.
const PATIENCE_S: u64 = 30;
/// How long one that only looks may take: Podman reads its database for each answer, on a disk that others use.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
/// The most containers of one engine that are looked at.
pub const CONTAINERS_MAX: usize = 1024;

/// Why an engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It refused, or can't be reached.
    #[error("the engine does not do it: is it running, and may it be asked at `{socket}`?")]
    Api {
        /// Where it was asked.
        socket: String,
        /// Why.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// It does not answer.
    #[error("the engine at `{socket}` does not answer within {} s", LOOK_PATIENCE.as_secs())]
    Silent {
        /// Where it was asked.
        socket: String,
    },
    /// An archive of an image can't be made.
    #[error("`{}` can't be packed for the engine: has the C/R bundle `tar`?", path.display())]
    Archive {
        /// Of what.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It has more containers than are looked at.
    #[error("the engine has more than {CONTAINERS_MAX} containers that run, which is the limit")]
    TooMany,
}

/// An engine that answers.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) docker: Docker,
    pub(crate) socket: String,
}

impl Client {
    /// Connects, and agrees with the engine on a version of its API.
    pub async fn connect(socket: &Path) -> Result<Self, EngineError> {
        let socket = socket.display().to_string();
        let version = bollard::API_DEFAULT_VERSION;
        let connect = async {
            let docker = Docker::connect_with_unix(&socket, PATIENCE_S, version)?;
            docker.negotiate_version().await
        };
        let docker = in_time(&socket, connect).await?;
        Ok(Self { docker, socket })
    }

    /// The ids of its containers that run or are paused.
    pub async fn running(&self) -> Result<Vec<String>, EngineError> {
        let options = ListContainersOptions {
            limit: Some(CONTAINERS_MAX as i32 + 1),
            ..ListContainersOptions::default()
        };
        let listed = in_time(&self.socket, self.docker.list_containers(Some(options))).await?;
        if listed.len() > CONTAINERS_MAX {
            return Err(EngineError::TooMany);
        }
        Ok(listed
            .into_iter()
            .filter_map(|container| container.id)
            .collect())
    }

    /// What it says of what happens, from `since` on, without end. Nothing is asked before the first is waited for.
    pub(crate) fn events(
        &self,
        since: String,
        filters: HashMap<String, Vec<String>>,
    ) -> impl Stream<Item = Result<EventMessage, bollard::errors::Error>> + use<> {
        let options = EventsOptions {
            since: Some(since),
            filters: Some(filters),
            ..EventsOptions::default()
        };
        // It outlives who asks.
        let docker = self.docker.clone();
        docker.events(Some(options))
    }

    /// All that it knows of one; `None` when there is no such container any more.
    pub async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        match in_time(&self.socket, self.docker.inspect_container(id, None)).await {
            Ok(container) => Ok(Some(container)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets what happens when a container ends.
    pub async fn set_restart(&self, id: &str, restart: &Restart) -> Result<(), EngineError> {
        let name = match restart.policy.as_str() {
            "always" => RestartPolicyNameEnum::ALWAYS,
            "unless-stopped" => RestartPolicyNameEnum::UNLESS_STOPPED,
            "on-failure" => RestartPolicyNameEnum::ON_FAILURE,
            _ => RestartPolicyNameEnum::NO,
        };
        let policy = RestartPolicy {
            name: Some(name),
            maximum_retry_count: Some(restart.times),
        };
        let change = ContainerUpdateBody {
            restart_policy: Some(policy),
            ..ContainerUpdateBody::default()
        };
        let asked = self.docker.update_container(id, change).await;
        asked.map_err(|source| failed(&self.socket, source))
    }

    /// Removes a container, with the volumes that have no name; content when it is gone.
    pub async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions {
            force: true,
            v: true,
            ..RemoveContainerOptions::default()
        };
        let asked = self.docker.remove_container(id, Some(options)).await;
        match asked.map_err(|source| failed(&self.socket, source)) {
            Err(error) if is_missing(&error) => Ok(()),
            // One that was started with `--rm` is being removed by the engine itself.
            Err(error) if is_conflict(&error) => self.gone(id).await.map_err(|_| error),
            done => done,
        }
    }

    /// Waits until a container that is being removed is gone.
    async fn gone(&self, id: &str) -> Result<(), EngineError> {
        const LOOKS: u32 = 100;
        for _ in 0..LOOKS {
            if self.inspect(id).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let socket = self.socket.clone();
        Err(EngineError::Silent { socket })
    }
}

pub(crate) async fn in_time<T>(
    socket: &str,
    asked: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(LOOK_PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|source| failed(socket, source)),
        Err(_) => Err(EngineError::Silent {
            socket: socket.to_owned(),
        }),
    }
}

pub(crate) fn failed(socket: &str, source: bollard::errors::Error) -> EngineError {
    EngineError::Api {
        socket: socket.to_owned(),
        source: Box::new(source),
    }
}

fn status(error: &EngineError) -> Option<u16> {
    let EngineError::Api { source, .. } = error else {
        return None;
    };
    match **source {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(status_code),
        _ => None,
    }
}

pub(crate) fn is_missing(error: &EngineError) -> bool {
    status(error) == Some(404)
}

fn is_conflict(error: &EngineError) -> bool {
    status(error) == Some(409)
}
