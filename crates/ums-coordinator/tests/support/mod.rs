#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

//! Two systems on loopback: Coordinators as they are, mutual TLS between them, fake agents below,
//! and a link that can be cut.

pub mod agent;
pub mod disk;
pub mod link;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use agent::FakeAgent;
use link::Link;
use serde::de::DeserializeOwned;
use ums_api::client::{
    MigrateRequest, MigrationView, Permission, RESPONSE_BYTES_MAX, WatchQuery, paths,
};
use ums_api::http::{Client, ClientError, Unix};
use ums_coordinator::{
    Config, Coordinator, JournalError, Limits, PeerConfig, ServeError, Settings,
};
use ums_core::id::{MigrationId, SystemName};
use ums_core::report::Outcome;
use ums_core::specification::{PublishedPort, Specification, Transport};
use ums_tls::Identity;
use ums_tls::ca::{Authority, SYSTEM_VALIDITY};
use world::{Life, Service, World};

/// The service that moves.
pub const SERVICE: &str = "redis";

/// Longest wait for anything. Only what is wrong waits so long; a machine that builds beside the tests takes ten
/// times as long for a migration as an idle one.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Both systems.
pub struct Two {
    pub world: Arc<World>,
    pub a: System,
    pub b: System,
}

/// One system.
pub struct System {
    pub agent: Arc<FakeAgent>,
    pub link: Link,
    pub config: Config,
    coordinator: Option<Coordinator>,
    disk: Arc<AtomicU8>,
    _directory: tempfile::TempDir,
}

/// The CA of all systems, made once.
pub fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new("test").expect("a CA").0)
}

/// Identities of the systems, made once.
pub fn identity(name: &str) -> Identity {
    static ISSUED: OnceLock<BTreeMap<&str, Identity>> = OnceLock::new();
    let issued = ISSUED.get_or_init(|| {
        ["a", "b", "c"]
            .map(|name| (name, issue(authority(), name)))
            .into()
    });
    issued[name].clone()
}

/// A certificate.
pub fn issue(ca: &Authority, name: &str) -> Identity {
    let issued = ca
        .issue(&system(name), &[], SYSTEM_VALIDITY)
        .expect("a certificate");
    Identity {
        ca_pem: ca.cert_pem().to_owned(),
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
    }
}

pub fn system(name: &str) -> SystemName {
    name.parse().expect("a name")
}

/// Every permission.
pub fn both() -> BTreeSet<Permission> {
    [Permission::Send, Permission::Receive].into()
}

pub fn specification(name: &str) -> Specification {
    let number = u8::try_from(name.bytes().map(u32::from).sum::<u32>() % 200).expect("small");
    Specification {
        name: name.parse().expect("a name"),
        image: "0".repeat(64).try_into().expect("an image id"),
        command: vec!["/bin/redis".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        memory_limit_bytes: None,
        volumes: Vec::new(),
        address: [10, 88, 0, number + 2].into(),
        prefix_len: 16,
        ports: vec![PublishedPort {
            transport: Transport::Tcp,
            system_port: 6000 + u16::from(number),
            service_port: 6379,
        }],
        mounts: Vec::new(),
        creation: None,
        engine: None,
        capabilities: Vec::new(),
        hostname: name.to_owned(),
    }
}

/// Periods that make a test fast.
pub fn limits() -> Limits {
    Limits {
        // Longer than a busy machine lets a Coordinator stand still.
        lease: Duration::from_millis(2500),
        doubt_after: Duration::from_millis(80),
        reconcile_every: Duration::from_millis(20),
        retry_first: Duration::from_millis(5),
        retry_max: Duration::from_millis(50),
        request_timeout: Duration::from_secs(10),
        copy_timeout: Duration::from_secs(10),
        progress_every: Duration::from_millis(10),
        ..Limits::default()
    }
}

impl Two {
    /// Both running, with the service on `a`.
    pub async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    /// The same, with changes to the configurations.
    pub async fn with(change: impl FnOnce(&mut Config, &mut Config)) -> Self {
        let world = World::new();
        let (mut a, mut b) = (
            System::new("a", &world).await,
            System::new("b", &world).await,
        );
        a.knows("b", &b);
        b.knows("a", &a);
        change(&mut a.config, &mut b.config);
        a.start().await;
        b.start().await;
        let two = Self { world, a, b };
        two.add(SERVICE);
        two
    }

    /// A service that executes on `a`.
    pub fn add(&self, name: &str) {
        let service = Service {
            specification: specification(name),
            state: Life::Executing,
        };
        self.world.change("begun", |world| {
            world.node("a").services.insert(name.to_owned(), service)
        });
    }

    /// Asks for the migration of the service to `b`.
    pub async fn migrate(&self) -> MigrationId {
        let view = self.a.migrate(SERVICE, "b").await.expect("admitted");
        view.report.migration_id
    }

    /// Waits until all is as it must be after a migration with this view.
    pub async fn settled(&self, view: &MigrationView, context: &str) {
        let (place, led_from) = match view.report.outcome {
            Outcome::Completed => ("b", Some("a")),
            _ => ("a", None),
        };
        let until = Instant::now() + PATIENCE;
        loop {
            let wrong = self.world.look().leftovers(SERVICE, place, led_from);
            if wrong.is_empty() {
                return;
            }
            if Instant::now() > until || !self.world.look().violations.is_empty() {
                let log = self.world.look().log.clone();
                panic!("{context}: {wrong:#?}\n{view:#?}\n{log:#?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl System {
    async fn new(name: &str, world: &Arc<World>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let agent_socket = directory.path().join("agent.sock");
        let agent = FakeAgent::serve(name, world, &agent_socket);
        let config = Config {
            system: system(name),
            state_dir: directory.path().join("state"),
            run_dir: directory.path().join("run"),
            listen: "127.0.0.1:0".parse().expect("an address"),
            identity: identity(name),
            peers: BTreeMap::new(),
            agent_socket,
            agent_command: None,
            peer_versions: ums_api::peer::VERSIONS.to_vec(),
            limits: limits(),
        };
        let link = Link::new().await;
        Self {
            agent,
            link,
            config,
            coordinator: None,
            disk: Arc::default(),
            _directory: directory,
        }
    }

    fn knows(&mut self, name: &str, other: &System) {
        let peer = PeerConfig {
            address: other.link.address(),
            allow: both(),
        };
        self.config.peers.insert(system(name), peer);
    }

    /// Starts the Coordinator, once whatever is left of a killed one has let go of the journal.
    pub async fn start(&mut self) {
        self.disk = Arc::new(AtomicU8::new(disk::GOOD));
        let store = disk::on(&self.disk);
        let until = Instant::now() + PATIENCE;
        let coordinator = loop {
            let started = Coordinator::start_with_store(self.config.clone(), Arc::clone(&store));
            match started.await {
                Ok(coordinator) => break coordinator,
                Err(ServeError::Journal(JournalError::InUse(_))) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        self.link.lead_to(coordinator.address());
        self.coordinator = Some(coordinator);
    }

    /// Has the running Coordinator take up changed settings.
    pub fn take_up(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        let coordinator = self.coordinator.as_ref().expect("it runs");
        coordinator.take_up(Settings::of(&self.config));
    }

    /// Ends the Coordinator where it stands.
    pub async fn kill(&mut self) {
        self.disk.store(disk::DEAD, Ordering::SeqCst);
        if let Some(coordinator) = self.coordinator.take() {
            coordinator.stop().await;
        }
    }

    /// How the disk under the journal fares.
    pub fn disk(&self) -> Arc<AtomicU8> {
        Arc::clone(&self.disk)
    }

    pub fn client(&self) -> Client {
        let socket: PathBuf = self.config.run_dir.join("ums.sock");
        Client::new(Unix::new("the Coordinator", socket), RESPONSE_BYTES_MAX)
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.client().get(path, PATIENCE).await
    }

    pub async fn migrate(&self, service: &str, to: &str) -> Result<MigrationView, ClientError> {
        let request = MigrateRequest {
            service: service.parse().expect("a name"),
            destination: system(to),
            approach: None,
            technique: None,
            max_downtime_ms: None,
            accept_loss: false,
            engine: None,
            measure: false,
        };
        self.client()
            .post(paths::MIGRATIONS, &request, PATIENCE)
            .await
    }

    /// A migration as it is now.
    pub async fn seen(&self, id: MigrationId) -> Result<MigrationView, ClientError> {
        self.get(&paths::migration(id, &WatchQuery::default()))
            .await
    }

    /// Whether the journal tells about a migration that is over: its view is final then.
    pub async fn remembers(&self, id: MigrationId) -> bool {
        let view = self.seen(id).await.expect("known");
        view.progress.generation >= 1 << 52
    }

    /// Waits until a migration is over, watching it as a client does, over restarts.
    pub async fn over(&self, id: MigrationId) -> MigrationView {
        let until = Instant::now() + PATIENCE;
        let mut query = WatchQuery {
            after: Some(0),
            wait_ms: Some(500),
        };
        loop {
            match self
                .get::<MigrationView>(&paths::migration(id, &query))
                .await
            {
                Ok(view) if view.report.outcome != Outcome::Running => return view,
                Ok(view) => query.after = Some(view.progress.generation),
                Err(ClientError::Problem(problem)) => panic!("{problem}"),
                Err(_) => {
                    // Killed, and about to be started again: its generations begin anew.
                    query.after = Some(0);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            if Instant::now() > until {
                let view = self.seen(id).await;
                panic!("migration {id} does not end: {view:#?}");
            }
        }
    }
}
