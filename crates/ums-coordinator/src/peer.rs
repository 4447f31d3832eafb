//! The other Coordinators, as clients see them: connections, and what can be wrong with them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ums_api::http::{Client, ClientError, Connecting, Connector, Stream};
use ums_api::peer::{
    self, CloseRequest, CommitAnswer, CreateAnswer, Decision, DecisionAnswer, Empty, Hello,
    LossesAnswer, PagesAnswer, ReserveAnswer, ReserveRequest, RestoreAnswer, RestoreRequest,
    SpansAnswer, VERSIONS, View, paths,
};
use ums_api::problem::ProblemKind;
use ums_core::budget::Span;
use ums_core::facts::Loss;
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_core::preflight::Refusal;
use ums_core::technique::Technique;
use ums_tls::TlsError;

use crate::config::PeerConfig;

/// How long TCP and TLS may take each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Leads to a peer at an address.
pub(crate) type Dial = Box<dyn Fn(&SystemName, SocketAddr) -> Client + Send + Sync>;

/// Leads to peers over TCP and mutual TLS.
pub(crate) fn over_tls(config: Arc<ClientConfig>) -> Dial {
    Box::new(move |system, address| {
        let mtls = Mtls {
            system: system.clone(),
            address,
            config: Arc::clone(&config),
        };
        Client::new(mtls, peer::BODY_BYTES_MAX)
    })
}

/// Connections to all peers, kept open and shared.
pub(crate) struct Peers {
    dial: Dial,
    timeout: Duration,
    clients: Mutex<BTreeMap<(SystemName, SocketAddr), PeerClient>>,
}

impl Peers {
    pub(crate) fn new(dial: Dial, timeout: Duration) -> Self {
        Self {
            dial,
            timeout,
            clients: Mutex::default(),
        }
    }

    /// Closes the idle connections to whoever is not at one of these places any more. Requests that
    /// are under way end as they would.
    pub(crate) fn keep(&self, peers: &BTreeMap<SystemName, PeerConfig>) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|(system, address), _| {
            peers
                .get(system)
                .is_some_and(|peer| peer.address == *address)
        });
    }

    /// The client of a peer at an address.
    pub(crate) fn client(&self, system: &SystemName, address: SocketAddr) -> PeerClient {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || PeerClient {
            client: (self.dial)(system, address),
            timeout: self.timeout,
            version: VERSIONS[0],
        };
        clients
            .entry((system.clone(), address))
            .or_insert_with(make)
            .clone()
    }
}

struct Mtls {
    system: SystemName,
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Connector for Mtls {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let config = Arc::clone(&self.config);
            let stream =
                ums_tls::connect(self.address, &self.system, config, CONNECT_TIMEOUT).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn server(&self) -> String {
        format!("the Coordinator of `{}` at {}", self.system, self.address)
    }
}

/// A client of one peer, in the first version until another one is agreed on.
#[derive(Clone)]
pub(crate) struct PeerClient {
    client: Client,
    timeout: Duration,
    version: u32,
}

type Answer<T> = Result<T, ClientError>;

impl PeerClient {
    /// The same in the version that was agreed on.
    pub(crate) fn speaking(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// What it is, and what there is where a service of this name would arrive.
    pub(crate) async fn hello(&self, service: Option<&ServiceName>) -> Answer<Hello> {
        self.get(&paths::hello(service)).await
    }

    pub(crate) async fn reserve(
        &self,
        id: MigrationId,
        it: &ReserveRequest,
    ) -> Answer<ReserveAnswer> {
        self.post(id, "reserve", it).await
    }

    pub(crate) async fn renew(&self, id: MigrationId) -> Answer<View> {
        self.post(id, "renew", &Empty {}).await
    }

    pub(crate) async fn create(&self, id: MigrationId) -> Answer<CreateAnswer> {
        self.post(id, "create", &Empty {}).await
    }

    pub(crate) async fn restore(
        &self,
        id: MigrationId,
        it: &RestoreRequest,
        timeout: Duration,
    ) -> Answer<RestoreAnswer> {
        let patient = Self {
            timeout,
            ..self.clone()
        };
        patient.post(id, "restore", it).await
    }

    pub(crate) async fn commit(&self, id: MigrationId) -> Answer<CommitAnswer> {
        self.post(id, "commit", &Empty {}).await
    }

    pub(crate) async fn abort(&self, id: MigrationId) -> Answer<()> {
        self.post(id, "abort", &Empty {}).await.map(|Empty {}| ())
    }

    /// What could not be set again there; version 1 has no word for it.
    pub(crate) async fn losses(&self, id: MigrationId) -> Answer<Vec<Loss>> {
        if self.version < 2 {
            return Ok(Vec::new());
        }
        let answer: LossesAnswer = self.post(id, "losses", &Empty {}).await?;
        Ok(answer.losses)
    }

    /// Where the time went there; version 1 has no word for it.
    pub(crate) async fn spans(&self, id: MigrationId) -> Answer<Vec<Span>> {
        if self.version < 2 {
            return Ok(Vec::new());
        }
        let answer: SpansAnswer = self.post(id, "spans", &Empty {}).await?;
        Ok(answer.spans)
    }

    pub(crate) async fn pages(&self, id: MigrationId) -> Answer<PagesAnswer> {
        self.post(id, "pages", &Empty {}).await
    }

    /// The end; version 1 has no use for the account.
    pub(crate) async fn close(&self, id: MigrationId, account: &CloseRequest) -> Answer<()> {
        let closed = match self.version {
            1 => self.post(id, "close", &Empty {}).await,
            _ => self.post(id, "close", account).await,
        };
        closed.map(|Empty {}| ())
    }

    pub(crate) async fn decision(&self, id: MigrationId) -> Answer<Decision> {
        let answer: DecisionAnswer = self.get(&paths::decision(self.version, id)).await?;
        Ok(answer.decision)
    }

    /// Repeats once when the connection broke: a kept one may have been cut without a trace, and
    /// every request may be repeated.
    async fn post<T: DeserializeOwned>(
        &self,
        id: MigrationId,
        operation: &str,
        body: &(impl Serialize + Sync),
    ) -> Answer<T> {
        let path = paths::operation(self.version, id, operation);
        match self.client.post(&path, body, self.timeout).await {
            Err(error @ ClientError::Broken { .. }) if !is_untrusted(&error) => {
                self.client.post(&path, body, self.timeout).await
            }
            answer => answer,
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        match self.client.get(path, self.timeout).await {
            Err(error @ ClientError::Broken { .. }) if !is_untrusted(&error) => {
                self.client.get(path, self.timeout).await
            }
            answer => answer,
        }
    }
}

/// The version that we go on in with a peer.
pub(crate) fn agree(ours: &[u32], system: &SystemName, hello: &Hello) -> Result<u32, Refusal> {
    let theirs = || versions(&hello.versions);
    peer::agreed(ours, &hello.versions)
        .ok_or_else(|| Refusal::peer_version(system.as_str(), versions(ours), theirs()))
}

/// Why a migration by this technique can't go to a peer with which that version was agreed on.
pub(crate) fn unspoken(system: &SystemName, version: u32, technique: Technique) -> Option<Refusal> {
    let needed = peer::version_for(technique);
    (version < needed).then(|| {
        let ours = format!("version {needed}, which memory that stays at the source needs");
        Refusal::peer_version(system.as_str(), ours, versions(&[version]))
    })
}

fn versions(all: &[u32]) -> String {
    let all: Vec<String> = all.iter().take(8).map(u32::to_string).collect();
    format!("version {}", all.join(", "))
}

/// What an attempt to talk to a peer told, as a refusal of the preflight.
pub(crate) fn refusal(system: &SystemName, error: &ClientError) -> Refusal {
    let name = system.as_str();
    match error {
        ClientError::Problem(problem) if problem.kind == ProblemKind::PeerDenied => {
            Refusal::peer_denied(name, &problem.detail)
        }
        ClientError::Problem(problem) if problem.status == 404 => {
            Refusal::peer_version(name, versions(&VERSIONS), "none of its versions")
        }
        ClientError::Foreign { .. } => Refusal::peer_version(
            name,
            versions(&VERSIONS),
            format!("something else ({})", error.chain()),
        ),
        error if is_untrusted(error) => Refusal::peer_untrusted(name, error.chain()),
        error => Refusal::peer_unreachable(name, error.chain()),
    }
}

/// Whether TLS failed for reasons of identity: theirs is not good here, or ours is not there (which
/// TLS 1.3 tells only when the answer is read).
fn is_untrusted(error: &ClientError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        let wrapped = this
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if this.is::<rustls::Error>() || wrapped.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        let by_tls = this.downcast_ref::<TlsError>();
        if by_tls.is_some_and(|error| matches!(error, TlsError::PeerName { .. })) {
            return true;
        }
        cause = this.source();
    }
    false
}
