//! What the standalone host holds: its services, by their records, and what they are made with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ums_api::agent::Unpacking;
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::ServiceName;
use ums_core::specification::Specification;
use ums_node::host::Service;
use ums_node::launch::Launcher;
use ums_node::{durable, facts, problem};

use crate::bundle::ALL_SERVICES;
use crate::container;
use crate::images::{ImageError, ImageStore};
use crate::network::Driver;
use crate::record::{self, Record};
use crate::settings::Settings;

/// The most services on one node: bounds what a client of the API can make us keep.
const SERVICES_MAX: usize = 4096;

/// The standalone host.
pub struct Standalone {
    /// How it is set up.
    pub settings: Settings,
    /// Image store.
    pub images: ImageStore,
    /// Network of the services.
    pub network: Arc<Driver>,
    /// Who stands in for services that move.
    pub frontmen: Arc<Launcher>,
    records: Mutex<BTreeMap<ServiceName, Record>>,
    /// Held from looking for a free name, address or port until it is taken.
    admission: Mutex<()>,
    /// How far images are that services wait for.
    unpacking: Mutex<BTreeMap<ServiceName, Unpacking>>,
    /// What stands in the way of clients here, for people.
    warnings: Mutex<Vec<String>>,
}

impl Standalone {
    /// Takes up what an earlier agent left: records of services, each with its keeper.
    pub fn load(
        settings: Settings,
        images: ImageStore,
        network: Arc<Driver>,
        frontmen: Arc<Launcher>,
    ) -> anyhow::Result<Self> {
        let records = load(&settings)?;
        Ok(Self {
            settings,
            images,
            network,
            frontmen,
            records: Mutex::new(records),
            admission: Mutex::new(()),
            unpacking: Mutex::default(),
            warnings: Mutex::default(),
        })
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Record>> {
        // Each value is replaced as a whole, so that a panic elsewhere leaves the map usable.
        self.records
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// One service after the other looks for what is free and takes it. Blocks.
    pub fn admission(&self) -> MutexGuard<'_, ()> {
        self.admission
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How far the image is that a service waits for.
    pub fn unpacking(&self, name: &ServiceName) -> Option<Unpacking> {
        let unpacking = self.unpacking.lock();
        let unpacking = unpacking.unwrap_or_else(PoisonError::into_inner);
        unpacking.get(name).copied()
    }

    /// Tells how far the image is that a service waits for; `None` when it waits no more.
    pub(crate) fn set_unpacking(&self, name: &ServiceName, far: Option<Unpacking>) {
        let unpacking = self.unpacking.lock();
        let mut unpacking = unpacking.unwrap_or_else(PoisonError::into_inner);
        match far {
            Some(far) => drop(unpacking.insert(name.clone(), far)),
            None => drop(unpacking.remove(name)),
        }
    }

    /// Every record.
    pub fn all(&self) -> Vec<Record> {
        self.records().values().cloned().collect()
    }

    /// Every service.
    pub fn services(&self) -> Vec<Service> {
        let records = self.all();
        records.iter().map(|record| self.seen(record)).collect()
    }

    /// A service by its name.
    pub fn service(&self, name: &ServiceName) -> Result<Service, Problem> {
        let records = self.records();
        let record = records.get(name);
        record
            .map(|record| self.seen(record))
            .ok_or_else(|| problem::unknown_service(name))
    }

    /// A service as a migration sees it.
    fn seen(&self, record: &Record) -> Service {
        Service {
            gate: record.gate,
            arriving: record.arriving.clone(),
            inbound: record.inbound.clone(),
            address: record.on_bridge(),
            container: container::plan(&self.settings, &record.specification.name),
            specification: record.specification.clone(),
            engine: None,
        }
    }

    /// Adds a service whose name must be free.
    pub fn add(&self, record: Record) -> Result<Service, Problem> {
        let name = record.specification.name.clone();
        let mut records = self.records();
        if records.contains_key(&name) {
            let detail = format!("a service `{name}` exists on this system: choose another name");
            return Err(problem::conflict(
                ProblemKind::NameTaken,
                "the name is taken",
                detail,
            ));
        }
        if records.len() >= SERVICES_MAX {
            let detail = format!(
                "this node has {SERVICES_MAX} services, which is its limit: remove one (`ums rm`) or move one \
                 away"
            );
            return Err(problem::conflict(
                ProblemKind::TooManyServices,
                "too many services",
                detail,
            ));
        }
        let service = self.seen(&record);
        records.insert(name, record);
        Ok(service)
    }

    /// Changes what is remembered of a service, durably, before anybody sees it. Blocks.
    pub fn update(
        &self,
        name: &ServiceName,
        change: impl FnOnce(&mut Record) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let mut records = self.records();
        let record = records
            .get_mut(name)
            .ok_or_else(|| problem::unknown_service(name))?;
        let mut changed = record.clone();
        change(&mut changed)?;
        if changed != *record {
            let path = self.settings.places(name).record();
            durable::write(&path, &changed).map_err(|error| {
                let detail = format!("{}: {error}; is the disk full?", path.display());
                Problem::failed(
                    ProblemKind::Record,
                    "a service's record can't be written",
                    detail,
                )
            })?;
            *record = changed;
        }
        Ok(())
    }

    /// Forgets a service that is gone.
    pub fn forget(&self, name: &ServiceName) {
        self.records().remove(name);
    }

    /// What stands in the way of clients here.
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.warnings.lock();
        warnings.unwrap_or_else(PoisonError::into_inner).clone()
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
        let limits = facts::limits(ALL_SERVICES);
        let wanted = specification.memory_limit_bytes;
        let no_limit = limits.no_memory_limit.filter(|_| wanted.is_some());
        let processors = container::nano_cpus(specification);
        let no_quota = processors.and_then(|_| container::lacks_processor_limit());
        match limits.no_device_filter.or(no_limit).or(no_quota) {
            Some(reason) => {
                let title = "the service can't be confined here";
                Err(Problem::refused(
                    409,
                    ProblemKind::Confinement,
                    title,
                    reason,
                ))
            }
            None => Ok(()),
        }
    }

    /// Removes the images that no service has used for as long as they are kept. Blocks.
    pub fn remove_old_images(&self) -> Result<(), ImageError> {
        // Held until it is done: a service that is added meanwhile would find its image gone.
        let records = self.records();
        let used = records.values().map(|record| &record.specification.image);
        let used = used.cloned().collect();
        let removed = self
            .images
            .retire_unused(&used, self.settings.keep_images)?;
        drop(records);
        for id in removed {
            tracing::info!(image = id.as_str(), "an image that nobody uses was removed");
        }
        self.images.clear_retired()
    }
}

fn load(settings: &Settings) -> anyhow::Result<BTreeMap<ServiceName, Record>> {
    let dir = settings.services();
    std::fs::create_dir_all(&dir)?;
    let mut records = BTreeMap::new();
    for entry in std::fs::read_dir(&dir)? {
        let name = entry?.file_name();
        let Some(name) = name
            .to_str()
            .and_then(|name| name.parse::<ServiceName>().ok())
        else {
            continue;
        };
        let places = settings.places(&name);
        match record::read(&places.record()) {
            Ok(record) => drop(records.insert(name, record)),
            // Created and never recorded: whoever asked for it got no answer.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => places.remove()?,
            Err(error) => anyhow::bail!(
                "{}: {error}; mend it, or move its directory out of `services` to give the service up",
                places.record().display()
            ),
        }
    }
    Ok(records)
}
