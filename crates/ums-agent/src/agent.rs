//! What an agent holds: its services and the migrations it takes part in.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ums_api::agent::{MigrationState, ServiceStatus, ServiceView};
use ums_api::problem::Problem;
use ums_checkpoint::keeper::client::{self, Keeper};
use ums_checkpoint::keeper::protocol::{Phase, Request, Status};
use ums_core::facts::{Loss, NodeFacts, ServiceFacts};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::Specification;
use ums_node::packets::Inside;
use ums_tls::Identity;

use crate::config::{AgentConfig, RestoreMode, ServicePlaces};
use crate::destination::Incoming;
use crate::images::{Bounds, ImageStore};
use crate::network;
use crate::record::{self, Record};
use crate::source::Outgoing;
use ums_node::facts::{Known, Node};
use ums_node::problem;

/// The most services on one node: bounds what a client of the API can make us keep.
const SERVICES_MAX: usize = 4096;
/// The most migrations remembered at one time.
const MIGRATIONS_MAX: usize = 1024;

/// A service on this node.
#[derive(Debug, Clone)]
pub struct Service {
    /// What is remembered of it.
    pub record: Record,
    /// Where it is.
    pub places: ServicePlaces,
}

/// One side of one migration.
#[derive(Clone)]
pub enum Migration {
    /// We send.
    Outgoing(Arc<Outgoing>),
    /// We receive.
    Incoming(Arc<Incoming>),
}

/// The agent.
pub struct Agent {
    /// How it was started.
    pub config: AgentConfig,
    /// Certificates of this system.
    pub identity: Identity,
    /// Image store.
    pub images: ImageStore,
    /// Network of the services.
    pub network: network::Driver,
    /// Packets in the services' namespaces.
    pub packets: Inside,
    /// Where the data path listens.
    pub data_port: u16,
    /// Why all pages are put in place before a service runs; `None` where userfaultfd installs them.
    pub eager_restore: Option<String>,
    node: Node,
    services: Mutex<BTreeMap<ServiceName, Service>>,
    migrations: Mutex<BTreeMap<MigrationId, Migration>>,
    /// Held from looking for a free name, address or port until it is taken.
    admission: Mutex<()>,
    /// What stands in the way of clients here, for people.
    warnings: Mutex<Vec<String>>,
    /// Migrations that are over here: a request of theirs that comes late changes nothing.
    ended: Mutex<VecDeque<MigrationId>>,
}

impl Agent {
    /// Takes up what an earlier agent left: records of services, each with its keeper.
    pub fn load(config: AgentConfig, data_port: u16) -> anyhow::Result<Self> {
        let identity = Identity::load(&config.ca, &config.cert, &config.key)?;
        let images = ImageStore::open(&config.state_dir, Bounds::default())?;
        let network = network::Driver::new(Some(config.bundle_bin()), config.service_network)
            .keeping(config.run_dir.join("endpoints.nft"));
        let packets = Inside::new(Some(config.bundle_bin()));
        let eager_restore = eager_restore(config.restore);
        if let Some(reason) = &eager_restore {
            tracing::info!(reason, "pages are put in place before a service runs");
        }
        let eager = eager_restore.clone();
        let node = Node::new(&config.bundle, &config.state_dir, "/ums", eager);
        let services = load_services(&config)?;
        let agent = Self {
            config,
            identity,
            images,
            network,
            packets,
            data_port,
            eager_restore,
            node,
            services: Mutex::new(services),
            migrations: Mutex::new(BTreeMap::new()),
            admission: Mutex::new(()),
            warnings: Mutex::default(),
            ended: Mutex::new(VecDeque::new()),
        };
        agent.take_up_migrations();
        Ok(agent)
    }

    fn take_up_migrations(&self) {
        for service in self.all_services() {
            let name = service.record.specification.name.clone();
            if let Some(arriving) = &service.record.arriving {
                let incoming = Incoming::resumed(name, arriving);
                self.remember(arriving.migration, Migration::Incoming(Arc::new(incoming)));
            } else if let Some(id) = service.record.gate {
                let outgoing = Outgoing::new(name);
                self.remember(id, Migration::Outgoing(Arc::new(outgoing)));
            }
        }
    }

    fn services(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Service>> {
        // Each value is replaced as a whole, so that a panic elsewhere leaves the map usable.
        self.services
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn migrations(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Migration>> {
        self.migrations
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// One service after the other looks for what is free and takes it. Blocks.
    pub fn admission(&self) -> MutexGuard<'_, ()> {
        self.admission
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Every service.
    pub fn all_services(&self) -> Vec<Service> {
        self.services().values().cloned().collect()
    }

    /// A service by its name.
    pub fn service(&self, name: &ServiceName) -> Result<Service, Problem> {
        self.services()
            .get(name)
            .cloned()
            .ok_or_else(|| problem::unknown_service(name))
    }

    /// Adds a service whose name must be free, durably.
    pub fn add_service(&self, service: Service) -> Result<(), Problem> {
        let name = service.record.specification.name.clone();
        let mut services = self.services();
        if services.contains_key(&name) {
            let detail = format!("a service `{name}` exists on this system: choose another name");
            return Err(problem::conflict("name-taken", "the name is taken", detail));
        }
        if services.len() >= SERVICES_MAX {
            let detail = format!(
                "this node has {SERVICES_MAX} services, which is its limit: remove one (`ums rm`) or move one \
                 away"
            );
            return Err(problem::conflict(
                "too-many-services",
                "too many services",
                detail,
            ));
        }
        services.insert(name, service);
        Ok(())
    }

    /// Changes what is remembered of a service, durably, before anybody sees it.
    pub fn update_record(
        &self,
        name: &ServiceName,
        change: impl FnOnce(&mut Record) -> Result<(), Problem>,
    ) -> Result<Service, Problem> {
        let mut services = self.services();
        let service = services
            .get_mut(name)
            .ok_or_else(|| problem::unknown_service(name))?;
        let mut changed = service.record.clone();
        change(&mut changed)?;
        if changed != service.record {
            let path = service.places.record();
            record::write(&path, &changed).map_err(|error| {
                let detail = format!("{}: {error}; is the disk full?", path.display());
                Problem::failed("record", "a service's record can't be written", detail)
            })?;
            service.record = changed;
        }
        Ok(service.clone())
    }

    /// Forgets a service that is gone.
    pub fn forget_service(&self, name: &ServiceName) {
        self.services().remove(name);
    }

    /// Remembers a migration.
    pub fn remember(&self, id: MigrationId, migration: Migration) {
        self.migrations().insert(id, migration);
    }

    fn ended(&self) -> MutexGuard<'_, VecDeque<MigrationId>> {
        self.ended
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a migration unless it is known; the known one wins. One that is over is refused.
    pub fn enter<T>(
        &self,
        id: MigrationId,
        known: impl FnOnce(&Migration) -> Option<Arc<T>>,
        make: impl FnOnce() -> (Arc<T>, Migration),
    ) -> Result<Arc<T>, Problem> {
        let mut migrations = self.migrations();
        if self.ended().contains(&id) {
            return Err(problem::unknown_migration(id));
        }
        if let Some(migration) = migrations.get(&id) {
            return known(migration).ok_or_else(|| {
                let detail = format!("migration {id} is known here from its other side");
                problem::conflict("wrong-role", "wrong side of the migration", detail)
            });
        }
        if migrations.len() >= MIGRATIONS_MAX {
            let detail = format!(
                "{MIGRATIONS_MAX} migrations are remembered, which is the limit: try again when some are over"
            );
            return Err(problem::conflict(
                "too-many-migrations",
                "too many migrations",
                detail,
            ));
        }
        let (value, migration) = make();
        migrations.insert(id, migration);
        Ok(value)
    }

    /// A migration by its id.
    pub fn migration(&self, id: MigrationId) -> Result<Migration, Problem> {
        self.migrations()
            .get(&id)
            .cloned()
            .ok_or_else(|| problem::unknown_migration(id))
    }

    /// Forgets a migration that is over, but not that it is.
    pub fn forget_migration(&self, id: MigrationId) {
        let mut migrations = self.migrations();
        let mut ended = self.ended();
        if !ended.contains(&id) {
            ended.truncate(MIGRATIONS_MAX - 1);
            ended.push_front(id);
        }
        migrations.remove(&id);
    }

    /// What this agent knows of all migrations.
    pub fn migration_states(self: &Arc<Self>) -> Vec<MigrationState> {
        let all: Vec<_> = self
            .migrations()
            .iter()
            .map(|(id, m)| (*id, m.clone()))
            .collect();
        all.into_iter()
            .map(|(id, migration)| self.state_of(id, &migration))
            .collect()
    }

    /// What this agent knows of one migration. Blocks.
    pub fn state_of(&self, id: MigrationId, migration: &Migration) -> MigrationState {
        match migration {
            Migration::Outgoing(outgoing) => outgoing.state(id, self),
            Migration::Incoming(incoming) => incoming.state(id, self),
        }
    }

    /// Connects to a service's keeper. Blocks.
    pub fn keeper(&self, service: &Service) -> Result<Keeper, client::Error> {
        Keeper::connect(&service.places.keeper())
    }

    /// What a service's keeper says. Blocks.
    pub fn keeper_status(&self, service: &Service) -> Result<Status, client::Error> {
        self.keeper(service)?.status()
    }

    /// What a service's keeper says; `None` when it is certain that there is none. Blocks.
    pub fn keeper_if_any(&self, service: &Service) -> Result<Option<Status>, Problem> {
        match self.keeper_status(service) {
            Ok(status) => Ok(Some(status)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(problem::keeper(&error)),
        }
    }

    /// One request to a service's keeper, without descriptors. Blocks.
    pub fn ask_keeper(
        &self,
        service: &Service,
        request: &Request,
    ) -> Result<Status, client::Error> {
        self.keeper(service)?.call(request, &[])
    }

    /// Where clients reach a service on this system.
    pub fn endpoints(&self, specification: &Specification) -> Vec<SocketAddr> {
        let address = self.config.data_address;
        specification
            .ports
            .iter()
            .map(|port| SocketAddr::new(address, port.system_port))
            .collect()
    }

    /// A service as it is listed. Blocks.
    pub fn view(&self, service: &Service) -> ServiceView {
        let asked = self.keeper_status(service);
        let is_gone = asked.as_ref().is_err_and(client::Error::is_gone);
        let status = asked.ok();
        let phase = status.as_ref().map(|status| status.phase.clone());
        let arriving = service.record.arriving.as_ref();
        let resumed = status
            .as_ref()
            .is_some_and(|status| status.resumed_at_ns.is_some());
        // From the freeze on, and not only when its checkpoint is whole.
        let stands_still = status
            .as_ref()
            .is_some_and(|status| status.frozen_at_ns.is_some());
        ServiceView {
            status: match phase {
                Some(Phase::Frozen) => ServiceStatus::Frozen,
                Some(Phase::Dumping) if stands_still => ServiceStatus::Frozen,
                Some(Phase::Running | Phase::Dumping) if arriving.is_none() || resumed => {
                    ServiceStatus::Running
                }
                Some(Phase::Dead { .. }) => ServiceStatus::Exited,
                None if is_gone => ServiceStatus::Exited,
                // A keeper that is busy has a service that goes on, as far as anybody knows.
                None if arriving.is_none() => ServiceStatus::Running,
                _ => ServiceStatus::Arriving,
            },
            init_pid: status.as_ref().and_then(|status| status.init_pid),
            losses: status
                .into_iter()
                .flat_map(|status| status.lost)
                .map(Loss::from)
                .collect(),
            migration: service
                .record
                .gate
                .or(arriving.map(|arriving| arriving.migration)),
            endpoints: self.endpoints(&service.record.specification),
            specification: service.record.specification.clone(),
        }
    }

    /// What this node is and has. Blocks.
    pub fn node_facts(&self) -> Result<NodeFacts, Problem> {
        let services = self.all_services();
        let specifications = || services.iter().map(|service| &service.record.specification);
        let network = self.config.service_network;
        let known = Known {
            services: specifications().map(|s| s.name.clone()).collect(),
            addresses: services
                .iter()
                .map(|service| service.record.address().on_bridge)
                .collect(),
            ports: specifications()
                .flat_map(|s| &s.ports)
                .map(ums_node::facts::Port::of)
                .collect(),
            service_network: (self.network_base(), network.prefix_len),
            images: self
                .images
                .list()
                .map_err(|e| problem::failed("images", "the image store can't be read")(&e))?,
            covered: crate::bundle::covered_proc_paths().collect(),
        };
        let facts = self.node.facts(known);
        let facts =
            facts.map_err(|e| problem::failed("facts", "this node can't be looked at")(&e))?;
        let warnings = self.warnings.lock();
        let warnings = warnings.unwrap_or_else(PoisonError::into_inner).clone();
        Ok(NodeFacts { warnings, ..facts })
    }

    /// Keeps what stands in the way of clients here, for the facts of the node; news is logged.
    pub fn warn(&self, warnings: Vec<String>) {
        let mut told = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings.iter().filter(|warning| !told.contains(warning)) {
            tracing::warn!("{warning}");
        }
        *told = warnings;
    }

    /// Refuses a service that this node can't confine, before anything is made of it. Blocks.
    pub fn can_confine(&self, specification: &Specification) -> Result<(), Problem> {
        let limits = self.node.limits();
        let wanted = specification.memory_limit_bytes;
        let no_limit = limits.no_memory_limit.filter(|_| wanted.is_some());
        match limits.no_device_filter.or(no_limit) {
            Some(reason) => {
                let title = "the service can't be confined here";
                Err(Problem::refused(409, "confinement", title, reason))
            }
            None => Ok(()),
        }
    }

    /// Memory that can be had here now, bytes.
    pub fn memory_available(&self) -> Result<u64, ums_node::facts::FactsError> {
        self.node.memory_available()
    }

    /// Has CRIU look at this kernel, so that no service waits for that. Blocks.
    pub fn acquaint_criu(&self) {
        self.node.acquaint_criu();
    }

    /// Removes the images that no service has used for as long as they are kept. Blocks.
    pub fn remove_old_images(&self) -> Result<(), crate::images::ImageError> {
        // Held until it is done: a service that is added meanwhile would find its image gone.
        let services = self.services();
        let used = services
            .values()
            .map(|service| service.record.specification.image.clone());
        let keep = std::time::Duration::from_secs(self.config.keep_images_seconds);
        let removed = self.images.retire_unused(&used.collect(), keep)?;
        drop(services);
        for id in removed {
            tracing::info!(image = id.as_str(), "an image that nobody uses was removed");
        }
        self.images.clear_retired()
    }

    fn network_base(&self) -> Ipv4Addr {
        let network = self.config.service_network;
        let bits = 32 - u32::from(network.prefix_len);
        Ipv4Addr::from(u32::from(network.address) >> bits << bits)
    }

    /// What a service is made of. Blocks.
    pub fn service_facts(&self, name: &ServiceName) -> Result<ServiceFacts, Problem> {
        let service = self.service(name)?;
        let gate = service.record.gate;
        let specification = service.record.specification.clone();
        let status = self.keeper_if_any(&service)?;
        let init = status.and_then(|status| status.init_pid);
        let image_bytes = self
            .images
            .bytes(&specification.image)
            .map_err(|error| problem::failed("images", "the image store can't be read")(&error))?;
        let Some(init) = init else {
            return Ok(ServiceFacts {
                specification,
                running: false,
                processes: 0,
                threads: 0,
                memory_bytes: 0,
                filesystem_bytes: 0,
                image_bytes,
                connections: 0,
                obstacles: Vec::new(),
                losses: Vec::new(),
                migrating: gate,
            });
        };
        let directories = [service.places.upper(), service.places.volumes()];
        let directories: Vec<_> = directories.iter().map(PathBuf::as_path).collect();
        let failed = problem::failed("inspect", "the service can't be inspected");
        let mut seen =
            ums_node::inspect::inspect(init, &directories).map_err(|error| failed(&error))?;
        if let Some(limit) = specification.memory_limit_bytes {
            let over =
                ums_node::inspect::over_limit(init, limit).map_err(|error| failed(&error))?;
            seen.obstacles.extend(over);
        }
        Ok(ServiceFacts {
            image_bytes,
            ..seen.facts(specification, gate)
        })
    }
}

fn load_services(config: &AgentConfig) -> anyhow::Result<BTreeMap<ServiceName, Service>> {
    let dir = config.state_dir.join("services");
    std::fs::create_dir_all(&dir)?;
    let mut services = BTreeMap::new();
    for entry in std::fs::read_dir(&dir)? {
        let name = entry?.file_name();
        let Some(name) = name
            .to_str()
            .and_then(|name| name.parse::<ServiceName>().ok())
        else {
            continue;
        };
        let places = config.places(&name);
        match record::read(&places.record()) {
            Ok(record) => drop(services.insert(name, Service { record, places })),
            // Created and never recorded: whoever asked for it got no answer.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => places.remove()?,
            Err(error) => anyhow::bail!(
                "{}: {error}; mend it, or move its directory out of `services` to give the service up",
                places.record().display()
            ),
        }
    }
    Ok(services)
}

/// Why pages are not left to userfaultfd here; tried, since a kernel that has it may still not let
/// us (a container's seccomp profile, lacking privileges).
fn eager_restore(mode: RestoreMode) -> Option<String> {
    match mode {
        RestoreMode::Eager => Some("`restore` is set to `eager`".to_owned()),
        RestoreMode::Auto => ums_checkpoint::uffd::probe()
            .err()
            .map(|error| error.to_string()),
    }
}
