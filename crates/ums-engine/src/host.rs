//! The standalone host and the engines of a node together, as a migration sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::client;
use ums_checkpoint::keeper::protocol::Request;
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::{FILES, Restart, Specification};
use ums_node::container::{ContainerPlan, Given, Volumes};
use ums_node::durable;
use ums_node::facts::{Known, Port};
use ums_node::frontman;
use ums_node::host::{Arriving, Engine, Host, Images, Keep, Pending, Service};
use ums_node::packets::Inside;
use ums_node::problem;
use ums_node::task::blocking;
use ums_standalone::host::StandaloneHost;
use ums_standalone::state::Standalone;

use crate::adopt::{self, Places};
use crate::client::{Client, EngineError};
use crate::describe::service_name;
use crate::gather;
use crate::images::AllImages;
use crate::record::{self, Record};
use crate::settings::Setting;

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

struct Inner {
    settings: Settings,
    standalone: Arc<Standalone>,
    own: StandaloneHost,
    inside: Inside,
    images: AllImages,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What engines told last.
    listed: BTreeMap<ServiceName, Record>,
    /// Those that are being moved.
    leaving: BTreeMap<ServiceName, Record>,
    /// Engines that did not answer.
    warnings: Vec<String>,
}

impl Hosts {
    /// Takes up what an earlier agent was in the midst of.
    pub fn load(settings: Settings, standalone: Arc<Standalone>) -> Self {
        let leaving = record::read_all(&settings.state_dir.join("engines"));
        let leaving = leaving
            .into_iter()
            .map(|record| (record.specification.name.clone(), record));
        let scratch = settings.run_dir.join("engines/.image");
        Self(Arc::new(Inner {
            images: AllImages::new(standalone.images.clone(), scratch),
            own: StandaloneHost(Arc::clone(&standalone)),
            inside: Inside::new(Some(settings.bundle_bin.clone())),
            state: Mutex::new(State {
                leaving: leaving.collect(),
                ..State::default()
            }),
            settings,
            standalone,
        }))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_path(&self, name: &ServiceName) -> PathBuf {
        self.settings.state_dir.join(format!("engines/{name}.json"))
    }

    fn places(&self, name: &ServiceName) -> Places {
        Places(self.settings.run_dir.join(format!("engines/{name}")))
    }

    fn record(&self, name: &ServiceName) -> Result<Record, Problem> {
        let state = self.state();
        let record = state.leaving.get(name).or_else(|| state.listed.get(name));
        record
            .cloned()
            .ok_or_else(|| problem::unknown_service(name))
    }

    fn seen(&self, record: &Record) -> Service {
        let places = self.places(&record.specification.name);
        let mut volumes = record.volumes.clone();
        volumes.insert(FILES.to_owned(), places.files());
        let (init, began) = record.init;
        Service {
            specification: record.specification.clone(),
            gate: record.gate,
            arriving: None,
            inbound: None,
            address: record.specification.address,
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

    async fn client(&self, engine: &str) -> Result<Client, Problem> {
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

    /// Asks all engines what runs there.
    async fn refresh(&self) {
        let (mut listed, mut warnings) = (BTreeMap::new(), Vec::new());
        for setting in &self.settings.engines {
            if !setting.expected && !setting.socket.exists() {
                continue;
            }
            match self.list(setting, &mut listed).await {
                Ok(unnamed) => warnings.extend(unnamed),
                Err(error) => {
                    let (name, why) = (&setting.name, problem::chain(&error));
                    warnings.push(format!("what the engine `{name}` runs is not known: {why}"));
                }
            }
        }
        let mut state = self.state();
        state.listed = listed;
        state.warnings = warnings;
    }

    /// Takes up what one engine runs; what can't have a name here is told.
    async fn list(
        &self,
        setting: &Setting,
        listed: &mut BTreeMap<ServiceName, Record>,
    ) -> Result<Vec<String>, EngineError> {
        let mut unnamed = Vec::new();
        let client = Client::connect(&setting.socket).await?;
        for id in client.running().await? {
            let Some(inspected) = client.inspect(&id).await? else {
                continue;
            };
            let called = inspected.name.clone().unwrap_or_default();
            let called = called.trim_start_matches('/');
            let Some(name) = self.free_name(&setting.name, called, listed) else {
                unnamed.push(format!(
                    "the container `{called}` of the engine `{}` is not listed: no service can have its name, or another \
                     has it; rename it there",
                    setting.name
                ));
                continue;
            };
            let of_layers = |lower: &str| self.images.of_layers(lower);
            // A few small files each; nobody waits for this but who asks.
            let record = gather::record(&setting.name, name.clone(), inspected, of_layers);
            listed.extend(record.map(|record| (name, record)));
        }
        Ok(unnamed)
    }

    /// Names are unique on a node: one that is taken gets its engine's before it.
    fn free_name(
        &self,
        engine: &str,
        container: &str,
        listed: &BTreeMap<ServiceName, Record>,
    ) -> Option<ServiceName> {
        let names = [container.to_owned(), format!("{engine}-{container}")];
        let free = |name: &ServiceName| {
            self.standalone.service(name).is_err() && !listed.contains_key(name)
        };
        names
            .iter()
            .filter_map(|name| service_name(name))
            .find(free)
    }

    /// Reads the image of a service, unless it was: from now on its id is the image's content's.
    async fn read_image(self: &Arc<Self>, name: &ServiceName) -> Result<(), Problem> {
        let Ok(record) = self.record(name) else {
            return Ok(());
        };
        if record.gate.is_some() || !record.obstacles.is_empty() {
            return Ok(());
        }
        let this = Arc::clone(self);
        let image = blocking(move || this.images.read(&record.lower)).await?;
        if let Some(record) = self.state().listed.get_mut(name) {
            record.specification.image = image;
        }
        Ok(())
    }

    fn keep(&self, record: Record) -> Result<(), Problem> {
        let name = record.specification.name.clone();
        durable::write(&self.record_path(&name), &record).map_err(|error| {
            problem::failed(ProblemKind::Record, "a record can't be written")(&error)
        })?;
        self.state().leaving.insert(name, record);
        Ok(())
    }

    /// What was made for a move goes.
    fn forget(&self, name: &ServiceName) {
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
        self.state().leaving.remove(name);
    }
}

fn refused(error: &EngineError) -> Problem {
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
        services.extend(records.map(|record| self.0.seen(record)));
        services
    }

    fn service(&self, name: &ServiceName) -> Result<Service, Problem> {
        match self.0.own.service(name) {
            Ok(service) => Ok(service),
            Err(_) => self.0.record(name).map(|record| self.0.seen(&record)),
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
        Box::pin(leave(&self.0, name))
    }

    fn is_undisturbed<'a>(&'a self, service: &'a Service) -> Pending<'a, ()> {
        Box::pin(is_undisturbed(&self.0, service))
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
        self.0.keep(record.clone())?;
        set_restart(&self.0, &record, &Restart::default())
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
            set_restart(&self.0, &record, &restart)?;
        }
        self.0.forget(name);
        Ok(())
    }

    fn arriving(&self, specification: Specification, from: Arriving) -> Pending<'_, Service> {
        self.0.own.arriving(specification, from)
    }

    fn arrived(&self, name: &ServiceName) -> Result<(), Problem> {
        self.0.own.arrived(name)
    }

    fn destroy<'a>(&'a self, service: &'a Service, keep: Keep) -> Pending<'a, ()> {
        match service.engine {
            None => self.0.own.destroy(service, keep),
            Some(_) => Box::pin(destroy(&self.0, service)),
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
        let ports = all().flat_map(|(_, record)| &record.specification.ports);
        known
            .ports
            .extend(ports.map(Port::of).collect::<BTreeSet<_>>());
        known.warnings.extend(state.warnings.clone());
        Ok(known)
    }
}

/// Changes what its engine does when a container ends; content when there is nothing to change. Blocks.
fn set_restart(inner: &Arc<Inner>, record: &Record, to: &Restart) -> Result<(), Problem> {
    if !record.restart.is_on() {
        return Ok(());
    }
    tokio::runtime::Handle::current().block_on(async {
        let client = inner.client(&record.engine).await?;
        let set = client.set_restart(&record.id, to).await;
        match set {
            // It is gone, and with it what would be restarted.
            Err(_) if matches!(client.inspect(&record.id).await, Ok(None)) => Ok(()),
            done => done.map_err(|error| refused(&error)),
        }
    })
}

/// Starts the keeper of a container that leaves, unless it has one.
async fn leave(inner: &Arc<Inner>, name: &ServiceName) -> Result<(), Problem> {
    if inner.standalone.service(name).is_ok() {
        return Ok(());
    }
    let mut record = inner.record(name)?;
    if let Some(obstacle) = record.obstacles.first() {
        let title = "the container can't be taken over";
        let detail = format!("{}: see `ums plan`", obstacle.detail);
        return Err(problem::conflict(ProblemKind::Container, title, detail));
    }
    let failed = problem::failed(
        ProblemKind::Network,
        "the container's network can't be prepared",
    );
    let netns = record.netns().ok_or_else(|| ended(name))?;
    let is_new = record.network.is_empty();
    if is_new {
        record.network = inner
            .inside
            .settings(&netns)
            .await
            .map_err(|error| failed(&error))?;
    }
    let (this, of) = (Arc::clone(inner), record);
    blocking(move || {
        let container = this.seen(&of).container;
        match container.keeper().map(drop) {
            Ok(()) => return Ok(()),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(problem::keeper(&error)),
        }
        this.keep(of.clone())?;
        let places = this.places(&of.specification.name);
        adopt::start_keeper(&of, &places, &this.settings.bundle_bin)
            .inspect_err(|_| this.forget(&of.specification.name))
            .map_err(|error: client::Error| problem::keeper(&error))?;
        Ok(())
    })
    .await?;
    match is_new {
        true => inner
            .inside
            .prepare(&netns)
            .await
            .map_err(|error| failed(&error)),
        false => Ok(()),
    }
}

fn ended(name: &ServiceName) -> Problem {
    let detail = format!(
        "the container `{name}` has ended or was started anew since it was looked at: migrate again"
    );
    let title = "the container has ended";
    problem::conflict(ProblemKind::ServiceExited, title, detail)
}

/// Signals that people and engines send to a container that is to end.
const ENDING: [u32; 5] = [1, 2, 3, 9, 15];

async fn is_undisturbed(inner: &Arc<Inner>, service: &Service) -> Result<(), Problem> {
    if service.engine.is_none() {
        return Ok(());
    }
    let record = inner.record(service.name())?;
    let disturbed = |what: String| {
        let detail = format!("{what} while it was being moved: it stays here");
        let title = "the container's engine was told something";
        Err(Problem::failed(ProblemKind::Container, title, detail))
    };
    // It is frozen: whatever was sent to it waits.
    if let Some(signal) = pending(record.init.0)
        .into_iter()
        .find(|it| ENDING.contains(it))
    {
        return disturbed(format!("signal {signal} was sent to it"));
    }
    let inspected = inner
        .client(&record.engine)
        .await?
        .inspect(&record.id)
        .await;
    let state = inspected
        .map_err(|error| refused(&error))?
        .and_then(|it| it.state);
    let state = state.unwrap_or_default();
    let same = state.pid == Some(record.init.0.into());
    match state.running == Some(true) && same && state.paused != Some(true) {
        true => Ok(()),
        false => disturbed("it was stopped, paused or started again".to_owned()),
    }
}

/// Signals that wait for a process (`ShdPnd`, proc_pid_status(5)).
fn pending(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let mask = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
    let mask = mask.unwrap_or(0);
    (1..=64)
        .filter(|signal| mask & (1 << (signal - 1)) != 0)
        .collect()
}

/// Kills a container that has moved, without letting it execute another instruction, and has its engine remove it.
/// Repeating it is harmless.
async fn destroy(inner: &Arc<Inner>, service: &Service) -> Result<(), Problem> {
    let record = inner.record(service.name())?;
    let container = service.container.clone();
    blocking(move || match container.keeper() {
        Ok(keeper) => {
            let killed = keeper.call(&Request::Kill, &[]);
            killed.map_err(|error| problem::keeper(&error)).map(drop)
        }
        Err(error) if error.is_gone() => container.kill_only(),
        Err(error) => Err(problem::keeper(&error)),
    })
    .await?;
    let client = inner.client(&record.engine).await?;
    client
        .remove(&record.id)
        .await
        .map_err(|error| refused(&error))?;
    let container = service.container.clone();
    blocking(move || {
        // Gone is as good.
        let _ = container.ask(&Request::Leave);
        Ok(())
    })
    .await?;
    // Its network has gone with it: who stood in for it there has nobody to lead any more.
    let frontmen = &inner.standalone.frontmen;
    frontman::retire(frontmen, service.name(), None, Duration::ZERO).await?;
    inner.forget(service.name());
    inner.state().listed.remove(service.name());
    Ok(())
}
