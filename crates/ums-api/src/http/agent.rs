//! The agent's API, a method for each operation.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ums_core::facts::{NodeFacts, ServiceFacts};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::preflight::Writing;

use super::{Client, ClientError, Connector, Unix};
use crate::agent::{
    Attendant, CheckpointRequest, Checkpointed, CreateRequest, Created, LeadRequest,
    MigrationState, OfService, OpenRequest, Restored, RunRequest, Running, ServiceView, Started,
    Unpacking, paths,
};
use crate::client::RESPONSE_BYTES_MAX;
use crate::peer::Empty;

/// A client of the Migration Interface of one's own system.
#[derive(Clone)]
pub struct AgentClient {
    client: Client,
    request_timeout: Duration,
    copy_timeout: Duration,
}

type Answer<T> = Result<T, ClientError>;

impl AgentClient {
    /// To the agent at this socket. Operations that copy data get `copy_timeout`.
    pub fn new(
        socket: impl Into<PathBuf>,
        request_timeout: Duration,
        copy_timeout: Duration,
    ) -> Self {
        let unix = Unix::new("the agent", socket);
        Self::over(unix, request_timeout, copy_timeout)
    }

    /// The same, over whatever leads to the agent.
    pub fn over(
        connector: impl Connector,
        request_timeout: Duration,
        copy_timeout: Duration,
    ) -> Self {
        Self {
            client: Client::new(connector, RESPONSE_BYTES_MAX),
            request_timeout,
            copy_timeout,
        }
    }

    /// What the node is and has.
    pub async fn facts(&self) -> Answer<NodeFacts> {
        self.client.get("/v1/facts", self.request_timeout).await
    }

    /// All services.
    pub async fn services(&self) -> Answer<Vec<ServiceView>> {
        self.client.get("/v1/services", self.request_timeout).await
    }

    /// What outlives migrations on purpose.
    pub async fn attendants(&self) -> Answer<Vec<Attendant>> {
        self.client
            .get("/v1/attendants", self.request_timeout)
            .await
    }

    /// Creates and starts a service; copies its root filesystem where that is new.
    pub async fn run_service(&self, request: &RunRequest) -> Answer<Started> {
        self.client
            .post("/v1/services", request, self.copy_timeout)
            .await
    }

    /// How far the image of a service is that is being started.
    pub async fn unpacking(&self, name: &ServiceName) -> Answer<Unpacking> {
        self.client
            .get(&paths::image(name), self.request_timeout)
            .await
    }

    /// What a service is made of.
    pub async fn service(&self, name: &ServiceName) -> Answer<ServiceFacts> {
        self.client
            .get(&paths::service(name), self.request_timeout)
            .await
    }

    /// How fast a service writes to its memory, as a look at it tells.
    pub async fn writing(&self, name: &ServiceName) -> Answer<Writing> {
        self.client
            .get(&paths::writing(name), self.request_timeout)
            .await
    }

    /// Deletes a service.
    pub async fn delete_service(&self, name: &ServiceName) -> Answer<()> {
        let _: Empty = self
            .client
            .delete(&paths::service(name), self.request_timeout)
            .await?;
        Ok(())
    }

    /// Shuts the gate: control messages are refused.
    pub async fn block(&self, id: MigrationId, service: &ServiceName) -> Answer<()> {
        self.of_service(id, "block", service).await
    }

    /// Opens the gate.
    pub async fn unblock(&self, id: MigrationId, service: &ServiceName) -> Answer<()> {
        self.of_service(id, "unblock", service).await
    }

    /// Opens the data path and copies files for the first time.
    pub async fn open(&self, id: MigrationId, request: &OpenRequest) -> Answer<()> {
        self.order(id, "open", request, self.copy_timeout).await
    }

    /// Lets the Frontman take the endpoint and hold what arrives.
    pub async fn frontman_hold(&self, id: MigrationId, service: &ServiceName) -> Answer<()> {
        self.of_service(id, "frontman/hold", service).await
    }

    /// Lets the Frontman lead clients to the new place.
    pub async fn frontman_lead(&self, id: MigrationId, request: &LeadRequest) -> Answer<()> {
        self.order(id, "frontman/lead", request, self.request_timeout)
            .await
    }

    /// Gives the endpoint back to the service.
    pub async fn frontman_yield(&self, id: MigrationId, service: &ServiceName) -> Answer<()> {
        self.of_service(id, "frontman/yield", service).await
    }

    /// Freezes, checkpoints and streams.
    pub async fn checkpoint(
        &self,
        id: MigrationId,
        request: &CheckpointRequest,
    ) -> Answer<Checkpointed> {
        self.client
            .post(
                &paths::operation(id, "checkpoint"),
                request,
                self.copy_timeout,
            )
            .await
    }

    /// Whether nobody has told the frozen container anything meanwhile: to be asked of an engine's before the commit.
    pub async fn confirm(&self, id: MigrationId, service: &ServiceName) -> Answer<()> {
        self.of_service(id, "confirm", service).await
    }

    /// Lets the service run on at the source.
    pub async fn thaw(&self, id: MigrationId, service: &ServiceName) -> Answer<()> {
        self.of_service(id, "thaw", service).await
    }

    /// Destroys the frozen container.
    pub async fn delete_source(&self, id: MigrationId, service: &ServiceName) -> Answer<()> {
        self.of_service(id, "delete-source", service).await
    }

    /// Creates the container that will receive.
    pub async fn create(&self, id: MigrationId, request: &CreateRequest) -> Answer<Created> {
        self.client
            .post(
                &paths::operation(id, "create"),
                request,
                self.request_timeout,
            )
            .await
    }

    /// Restores, and holds before the first instruction: by then all memory may have to be in place,
    /// which the caller's `limit` allows for.
    pub async fn restore(&self, id: MigrationId, limit: Duration) -> Answer<Restored> {
        let path = paths::operation(id, "restore");
        self.client.post(&path, &Empty {}, limit).await
    }

    /// Runs what is held.
    pub async fn run(&self, id: MigrationId) -> Answer<Running> {
        self.plain(id, "run").await
    }

    /// Leaves nothing of what was received.
    pub async fn discard(&self, id: MigrationId) -> Answer<()> {
        let _: Empty = self.plain(id, "discard").await?;
        Ok(())
    }

    /// Drops the working state of a migration whose pages are all in.
    pub async fn settle(&self, id: MigrationId) -> Answer<()> {
        let _: Empty = self.plain(id, "settle").await?;
        Ok(())
    }

    /// All migrations that the agent holds.
    pub async fn migrations(&self) -> Answer<Vec<MigrationState>> {
        self.client
            .get("/v1/migrations", self.request_timeout)
            .await
    }

    /// How far the agent is with one.
    pub async fn migration(&self, id: MigrationId) -> Answer<MigrationState> {
        self.client
            .get(&paths::progress(id), self.request_timeout)
            .await
    }

    async fn of_service(&self, id: MigrationId, operation: &str, name: &ServiceName) -> Answer<()> {
        let request = OfService {
            service: name.clone(),
        };
        self.order(id, operation, &request, self.request_timeout)
            .await
    }

    async fn order(
        &self,
        id: MigrationId,
        operation: &str,
        request: &(impl Serialize + Sync),
        limit: Duration,
    ) -> Answer<()> {
        let path = paths::operation(id, operation);
        let _: Empty = self.client.post(&path, request, limit).await?;
        Ok(())
    }

    async fn plain<T: DeserializeOwned>(&self, id: MigrationId, operation: &str) -> Answer<T> {
        let path = paths::operation(id, operation);
        self.client
            .post(&path, &Empty {}, self.request_timeout)
            .await
    }
}
