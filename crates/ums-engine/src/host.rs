//! The standalone host and the engines of a node together, as a migration sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::Request;
use ums_core::facts::EngineFacts;
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::{FILES, Specification};
use ums_node::container::{ContainerPlan, Given, Volumes};
use ums_node::durable;
use ums_node::facts::{Known, Port};
use ums_node::host::{Arriving, Engine, Host, Images, Keep, Pending, Service};
use ums_node::packets::Inside;
use ums_node::problem;
use ums_standalone::host::StandaloneHost;
use ums_standalone::state::Standalone;

use crate::adopt::{self, Places};
use crate::arriving;
use crate::arriving::record::{Coming, Stage};
use crate::client::{Client, EngineError};
use crate::images::AllImages;
use crate::leaving;
use crate::listing::Looks;
use crate::record::Record;
use crate::remains::{self, Remains};
use crate::settings::Setting;
use crate::stored;
use crate::told::Watch;

/// Where things are on this node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory for sockets, gone after a reboot.
    pub run_dir: PathBuf,
    /// Directory for records.
    pub state_dir: PathBuf,
    /// The C/R bundle's `bin`.
    pub bundle_bin: PathBuf,
    /// The engines.
    pub engines: Vec<Setting>,
}

/// All hosts of a node.
#[derive(Clone)]
pub struct Hosts(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) standalone: Arc<Standalone>,
    pub(crate) own: StandaloneHost,
    pub(crate) inside: Inside,
    pub(crate) images: AllImages,
    pub(crate) looks: Looks,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// What engines told last.
    pub(crate) listed: BTreeMap<ServiceName, Record>,
    /// Those that are being moved.
    pub(crate) leaving: BTreeMap<ServiceName, Record>,
    /// Those whose service has moved, by their engines' ids.
    pub(crate) remains: BTreeMap<String, Remains>,
    /// Who listens to what their engines are told of those whose gate is shut.
    pub(crate) watches: BTreeMap<ServiceName, Watch>,
    /// Those that arrive in a container, or have.
    pub(crate) coming: BTreeMap<ServiceName, Coming>,
    /// Those of them that an earlier agent has left.
    pub(crate) orphans: BTreeSet<ServiceName>,
    /// Those whose engine did not make their container after all, and why.
    pub(crate) unmade: BTreeMap<ServiceName, String>,
    /// Which engines there are, and whether services can arrive there.
    pub(crate) engines: Vec<EngineFacts>,
    /// Engines that did not answer.
    pub(crate) warnings: Vec<String>,
}

impl Hosts {
    /// Takes up what an earlier agent was in the midst of.
    pub fn load(settings: Settings, standalone: Arc<Standalone>) -> Self {
        let leaving = stored::read_all::<Record>(&settings.state_dir.join("engines"));
        let leaving = leaving
            .into_iter()
            .map(|record| (record.specification.name.clone(), record));
        let coming = stored::read_all::<Coming>(&settings.state_dir.join(arriving::RECORDS));
        let coming: BTreeMap<_, _> = coming
            .into_iter()
            .map(|of| (of.specification.name.clone(), of))
            .collect();
        let scratch = settings.run_dir.join("engines/.image");
        let remains = remains::read_all(&remains_dir(&settings));
        Self(Arc::new(Inner {
            images: AllImages::new(standalone.images.clone(), scratch),
            own: StandaloneHost(Arc::clone(&standalone)),
            inside: Inside::new(Some(settings.bundle_bin.clone())),
            looks: Looks::default(),
            state: Mutex::new(State {
                leaving: leaving.collect(),
                remains,
                orphans: coming.keys().cloned().collect(),
                coming,
                ..State::default()
            }),
            settings,
            standalone,
        }))
    }

    pub(crate) fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.0)
    }
}

fn remains_dir(settings: &Settings) -> PathBuf {
    settings.state_dir.join("engines/remains")
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_path(&self, name: &ServiceName) -> PathBuf {
        self.settings.state_dir.join(format!("engines/{name}.json"))
    }

    pub(crate) fn remains_dir(&self) -> PathBuf {
        remains_dir(&self.settings)
    }

    pub(crate) fn places(&self, name: &ServiceName) -> Places {
        Places(self.settings.run_dir.join(format!("engines/{name}")))
    }

    pub(crate) fn record(&self, name: &ServiceName) -> Result<Record, Problem> {
        let state = self.state();
        let record = state.leaving.get(name).or_else(|| state.listed.get(name));
        record
            .cloned()
            .ok_or_else(|| problem::unknown_service(name))
    }

    /// Whether the image of a service that is to arrive need not be sent.
    async fn has_image(&self, of: &Specification) -> Result<bool, Problem> {
        if Images::is_present(&self.images, &of.image) {
            return Ok(true);
        }
        let Some(engine) = &of.engine else {
            return Ok(false);
        };
        let client = self.client(engine).await?;
        let known = client.image(&of.image, of.creation.as_deref()).await;
        known
            .map(|it| it.is_some())
            .map_err(|error| refused(&error))
    }

    /// A service that arrives, has, leaves, or was listed.
    fn any(&self, name: &ServiceName) -> Result<Service, Problem> {
        let coming = self.coming(name);
        if let Some(of) = coming.as_ref().filter(|of| of.stage != Stage::Settled) {
            return Ok(self.seen_coming(of));
        }
        match (self.record(name), coming.filter(|of| of.given().is_some())) {
            (Err(_), Some(of)) => Ok(self.seen_coming(&of)),
            (record, _) => record.map(|record| self.seen(&record)),
        }
    }

    /// Whether it is not its engine's alone yet.
    fn is_coming(&self, name: &ServiceName) -> bool {
        self.coming(name)
            .is_some_and(|of| of.stage != Stage::Settled)
    }

    /// From where its older connections come, and its address on its engine's network, if it has come here.
    fn inbound(&self, record: &Record) -> Option<Coming> {
        let of = self.coming(&record.specification.name)?;
        let same = of.init == Some(record.init);
        (of.stage == Stage::Settled && same).then_some(of)
    }

    pub(crate) fn seen(&self, record: &Record) -> Service {
        let places = self.places(&record.specification.name);
        let mut volumes = record.volumes.clone();
        volumes.insert(FILES.to_owned(), places.files());
        let (init, began) = record.init;
        let inbound = self.inbound(record);
        let address = inbound.as_ref().and_then(|of| of.made.as_ref()?.address);
        Service {
            specification: record.specification.clone(),
            gate: record.gate,
            arriving: None,
            inbound: inbound.map(|of| of.from),
            address: address.unwrap_or(record.specification.address),
            container: ContainerPlan {
                keeper: places.socket(),
                cgroup: record.cgroup.clone(),
                upper: record.upper.clone(),
                volumes: Volumes::At(volumes),
                shm: adopt::shm(record),
                given: Some(Given { init, began }),
            },
            engine: Some(Engine {
                name: record.engine.clone(),
                paused: record.paused,
                obstacles: record.obstacles.clone(),
                losses: record.losses.clone(),
            }),
        }
    }

    pub(crate) async fn client(&self, engine: &str) -> Result<Client, Problem> {
        let settings = self.settings.engines.iter();
        let mut named = settings.filter(|setting| setting.name == engine);
        let Some(setting) = named.next() else {
            let detail =
                format!("the engine `{engine}` is not among this node's any more (`--engine`)");
            return Err(problem::conflict(
                ProblemKind::Container,
                "no such engine",
                detail,
            ));
        };
        Client::connect(&setting.socket)
            .await
            .map_err(|error| refused(&error))
    }

    pub(crate) fn keep(&self, record: Record) -> Result<(), Problem> {
        let name = record.specification.name.clone();
        durable::write(&self.record_path(&name), &record).map_err(|error| {
            problem::failed(ProblemKind::Record, "a record can't be written")(&error)
        })?;
        self.state().leaving.insert(name, record);
        Ok(())
    }

    /// What was made for a move goes.
    pub(crate) fn forget(&self, name: &ServiceName) {
        let places = self.places(name);
        for (what, removed) in [
            ("directory", std::fs::remove_dir_all(&places.0)),
            ("record", std::fs::remove_file(self.record_path(name))),
        ] {
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(service = %name, %error, what, "not removed");
                }
                _ => {}
            }
        }
        let mut state = self.state();
        state.leaving.remove(name);
        state.watches.remove(name);
    }
}

pub(crate) fn refused(error: &EngineError) -> Problem {
    problem::failed(
        ProblemKind::Container,
        "the container engine does not do it",
    )(error)
}

impl Host for Hosts {
    fn services(&self) -> Vec<Service> {
        let mut services = self.0.own.services();
        let state = self.0.state();
        let listed = state
            .listed
            .iter()
            .filter(|(name, _)| !state.leaving.contains_key(*name));
        let records = state
            .leaving
            .values()
            .chain(listed.map(|(_, record)| record));
        let mut records: Vec<_> = records.cloned().collect();
        let coming: Vec<_> = state.coming.values().cloned().collect();
        drop(state);
        // Those that are their engine's own are listed by it, once it was asked.
        let coming = coming.into_iter().filter(|of| {
            let is = |record: &Record| record.specification.name == of.specification.name;
            let listed = records.iter().position(is);
            match (of.stage, listed) {
                (Stage::Settled, Some(_)) => false,
                (Stage::Settled, None) => of.given().is_some(),
                (_, Some(listed)) => {
                    records.remove(listed);
                    true
                }
                (_, None) => true,
            }
        });
        services.extend(coming.map(|of| self.0.seen_coming(&of)));
        services.extend(records.iter().map(|record| self.0.seen(record)));
        services
    }

    fn service(&self, name: &ServiceName) -> Result<Service, Problem> {
        match self.0.own.service(name) {
            Ok(service) => Ok(service),
            Err(_) => self.0.any(name),
        }
    }

    fn look<'a>(&'a self, name: Option<&'a ServiceName>) -> Pending<'a, ()> {
        Box::pin(async move {
            self.0.refresh().await;
            match name {
                Some(name) => self.0.read_image(name).await,
                None => Ok(()),
            }
        })
    }

    fn leave<'a>(&'a self, name: &'a ServiceName) -> Pending<'a, ()> {
        Box::pin(leaving::leave(&self.0, name))
    }

    fn is_undisturbed<'a>(&'a self, service: &'a Service) -> Pending<'a, ()> {
        Box::pin(leaving::is_undisturbed(&self.0, service))
    }

    fn confirm<'a>(&'a self, service: &'a Service) -> Pending<'a, ()> {
        Box::pin(leaving::confirm(&self.0, service))
    }

    fn shut_gate(&self, name: &ServiceName, id: MigrationId) -> Result<(), Problem> {
        if self.0.own.service(name).is_ok() {
            return self.0.own.shut_gate(name, id);
        }
        let mut record = self.0.record(name)?;
        if let Some(other) = record.gate.filter(|gate| *gate != id) {
            let detail = format!("migration {other} is moving it: wait for its end or abort it");
            let title = "the service is migrating";
            return Err(problem::conflict(ProblemKind::Migrating, title, detail));
        }
        record.gate = Some(id);
        tokio::runtime::Handle::current().block_on(leaving::shut(&self.0, record))
    }

    fn open_gate(&self, name: &ServiceName, id: MigrationId) -> Result<(), Problem> {
        if self.0.own.service(name).is_ok() {
            return self.0.own.open_gate(name, id);
        }
        let record = self.0.record(name)?;
        if record.gate.is_some_and(|gate| gate != id) {
            return Ok(());
        }
        let left = self
            .0
            .seen(&record)
            .container
            .keeper()
            .and_then(|keeper| keeper.call(&Request::Leave, &[]));
        match left {
            Err(error) if !error.is_gone() => return Err(problem::keeper(&error)),
            _ => {}
        }
        let handle = tokio::runtime::Handle::current();
        if let Some(netns) = record.netns() {
            let undone = handle.block_on(self.0.inside.undo(&netns, record.network.clone()));
            undone.map_err(|error| {
                problem::failed(
                    ProblemKind::Network,
                    "the rules in the container's network stay",
                )(&error)
            })?;
        }
        if record.gate.is_some() {
            let restart = record.restart.clone();
            let set = leaving::set_restart(&self.0, &record, &restart);
            tokio::runtime::Handle::current().block_on(set)?;
        }
        self.0.forget(name);
        Ok(())
    }

    fn has_image<'a>(&'a self, of: &'a Specification) -> Pending<'a, bool> {
        Box::pin(self.0.has_image(of))
    }

    fn arriving(&self, specification: Specification, from: Arriving) -> Pending<'_, Service> {
        let Some(engine) = specification.engine.clone() else {
            return self.0.own.arriving(specification, from);
        };
        Box::pin(async move { arriving::arriving(&self.0, &engine, specification, from).await })
    }

    fn image_is_here<'a>(&'a self, name: &'a ServiceName) -> Pending<'a, Option<PathBuf>> {
        Box::pin(arriving::image_is_here(&self.0, name))
    }

    fn arrived(&self, name: &ServiceName) -> Result<(), Problem> {
        match self.0.coming(name) {
            Some(of) => arriving::arrived(&self.0, of),
            None => self.0.own.arrived(name),
        }
    }

    fn is_made(&self, service: &Service) -> Result<(), Problem> {
        arriving::is_made(&self.0, service.name())
    }

    fn settled<'a>(&'a self, name: &'a ServiceName) -> Pending<'a, ()> {
        Box::pin(async move {
            match self.0.coming(name) {
                Some(of) => arriving::settled(&self.0, of).await,
                None => Ok(()),
            }
        })
    }

    fn destroy<'a>(&'a self, service: &'a Service, keep: Keep) -> Pending<'a, ()> {
        match service.engine {
            None => self.0.own.destroy(service, keep),
            Some(_) if self.0.is_coming(service.name()) => {
                Box::pin(arriving::destroy(&self.0, service, keep))
            }
            Some(_) => Box::pin(leaving::destroy(&self.0, service, keep)),
        }
    }

    fn images(&self) -> &dyn Images {
        &self.0.images
    }

    fn known(&self) -> Result<Known, Problem> {
        let mut known = self.0.own.known()?;
        let state = self.0.state();
        let all = || state.leaving.iter().chain(&state.listed);
        known.services.extend(all().map(|(name, _)| name.clone()));
        let coming = || state.coming.iter();
        known
            .services
            .extend(coming().map(|(name, _)| name.clone()));
        known.engines = state.engines.clone();
        let ports = all().flat_map(|(_, record)| &record.specification.ports);
        let of_remains = state.remains.values().flat_map(|remains| &remains.ports);
        let ports = ports.chain(of_remains);
        let ports = ports.chain(coming().flat_map(|(_, of)| &of.specification.ports));
        known
            .ports
            .extend(ports.map(Port::of).collect::<BTreeSet<_>>());
        known.warnings.extend(state.warnings.clone());
        Ok(known)
    }
}
