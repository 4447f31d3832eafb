//! A service that arrives in a container that an engine makes: it is shown, logged, executed into, limited, stopped, started
//! anew and removed by that engine afterwards (ADR 24).
//!
//! ```text
//!  arriving       volumes, places, a keeper               nothing of the engine's but empty volumes
//!  image_is_here  image, container, offer, start          the container waits in its runtime for the service
//!  (restore)      the keeper, in CRIU's place             the engine shows it running; it is held
//!  arrived        a line in the record                    it runs
//!  settled        restart policy, offer, keeper           it is its engine's own
//!  destroy        all of the above, backwards
//! ```
//!
//! What comes before the freeze is received beside, since an engine makes no container without its image.

pub mod body;
mod files;
mod make;
pub mod record;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::client::Keeper;
use ums_checkpoint::keeper::protocol::{ExternalMount, KeeperConfig, Request};
use ums_checkpoint::offers::Offers;
use ums_core::id::ServiceName;
use ums_core::specification::{FILES, Restart, Specification};
use ums_node::container::{ContainerPlan, Given, Volumes};
use ums_node::durable;
use ums_node::host::{Arriving, Engine, Keep, Service};
use ums_node::task::blocking;
use ums_node::{problem, tunnel};
use ums_standalone::bundle;

pub(crate) use make::image_is_here;

use crate::adopt::Places;
use crate::client::Client;
use crate::host::{Inner, refused};
use crate::stored;
use record::{Coming, Stage, Volume};

/// Size of a service's `/dev/shm`, bytes: what engines give.
const SHM_BYTES: u64 = 64 << 20;
/// The most volumes of one name that are tried until one is free.
const NAMES_MAX: u32 = 100;
/// Directory of the records, below that of the engines.
pub(crate) const RECORDS: &str = "engines/arriving";

impl Inner {
    fn coming_path(&self, name: &ServiceName) -> PathBuf {
        self.settings
            .state_dir
            .join(RECORDS)
            .join(format!("{name}.json"))
    }

    /// Where what a service has changed is kept until its container is made.
    fn staging(&self, name: &ServiceName) -> PathBuf {
        self.settings
            .state_dir
            .join(RECORDS)
            .join(format!("{name}.upper"))
    }

    pub(crate) fn offers(&self) -> Offers {
        Offers::new(self.settings.run_dir.join("runtime"))
    }

    /// What is known of a service that arrives, or has, in an engine's container.
    pub(crate) fn coming(&self, name: &ServiceName) -> Option<Coming> {
        self.state().coming.get(name).cloned()
    }

    /// Writes it down, before anybody sees it. Blocks.
    fn keep_coming(&self, coming: Coming) -> Result<(), Problem> {
        let name = coming.specification.name.clone();
        durable::write(&self.coming_path(&name), &coming).map_err(|error| {
            problem::failed(ProblemKind::Record, "a record can't be written")(&error)
        })?;
        self.state().coming.insert(name, coming);
        Ok(())
    }

    /// Nothing is known of it any more, but what its engine tells.
    pub(crate) fn forget_coming(&self, name: &ServiceName) {
        self.state().unmade.remove(name);
        if self.state().coming.remove(name).is_none() {
            return;
        }
        for removed in [
            std::fs::remove_dir_all(&self.places(name).0),
            std::fs::remove_dir_all(self.staging(name)),
            std::fs::remove_file(self.coming_path(name)),
        ] {
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(service = %name, %error, "not removed");
                }
                _ => {}
            }
        }
    }

    /// It as a migration sees it, while its engine is not to be asked.
    pub(crate) fn seen_coming(&self, of: &Coming) -> Service {
        let name = &of.specification.name;
        let places = self.places(name);
        let volumes = of.volumes.iter();
        let mut volumes: BTreeMap<String, PathBuf> = volumes
            .map(|(name, it)| (name.clone(), it.path.clone()))
            .collect();
        volumes.insert(FILES.to_owned(), places.files());
        let upper = of.made.as_ref().map(|made| made.upper.clone());
        let address = of.made.as_ref().and_then(|made| made.address);
        Service {
            gate: None,
            arriving: (of.stage == Stage::Coming).then(|| of.from.clone()),
            inbound: Some(of.from.clone()),
            address: address.unwrap_or(of.specification.address),
            container: ContainerPlan {
                keeper: places.socket(),
                cgroup: nowhere(name),
                upper: upper.unwrap_or_else(|| self.staging(name)),
                volumes: Volumes::At(volumes),
                shm: shm(&places),
                given: of.init.map(|(init, began)| Given { init, began }),
            },
            engine: Some(Engine {
                name: of.engine.clone(),
                paused: false,
                obstacles: Vec::new(),
                losses: Vec::new(),
            }),
            specification: of.specification.clone(),
        }
    }
}

/// Control groups that are not there: the engine's runtime makes the container's.
fn nowhere(name: &ServiceName) -> String {
    format!("{}/engines/{name}", bundle::ALL_SERVICES)
}

fn shm(places: &Places) -> PathBuf {
    places.0.join("shm")
}

/// Steps 4 to 6: what can be made of it without its image.
pub(crate) async fn arriving(
    inner: &Arc<Inner>,
    engine: &str,
    specification: Specification,
    from: Arriving,
) -> Result<Service, Problem> {
    bundle::check(&specification).map_err(|error| {
        let title = "the Specification is not acceptable";
        let detail = problem::chain(&error);
        Problem::refused(400, ProblemKind::Specification, title, detail)
    })?;
    let name = specification.name.clone();
    let client = inner.client(engine).await?;
    is_free(inner, &client, &name).await?;
    let migration = from.migration.to_string();
    let mut coming = Coming {
        version: stored::VERSION,
        engine: engine.to_owned(),
        volumes: volumes(&client, &specification).await?,
        specification,
        from,
        stage: Stage::Coming,
        made: None,
        init: None,
    };
    // Written down before it is made: what is there has somebody who removes it.
    inner.keep_coming(coming.clone())?;
    let service = inner.seen_coming(&coming);
    let made = async {
        for volume in coming.volumes.values_mut() {
            let made = client.make_volume(&volume.name, &migration).await;
            volume.path = made.map_err(|error| refused(&error))?;
        }
        let this = Arc::clone(inner);
        blocking(move || {
            start_keeper(&this, &coming)?;
            this.keep_coming(coming.clone())?;
            Ok(this.seen_coming(&coming))
        })
        .await
    };
    let made = made.await;
    if made.is_err()
        && let Err(error) = destroy(inner, &service, Keep::Network).await
    {
        tracing::warn!(service = %name, %error, "a container that was not made left something");
    }
    made
}

async fn is_free(inner: &Arc<Inner>, client: &Client, name: &ServiceName) -> Result<(), Problem> {
    let taken = |by: &str| {
        let detail = format!("{by} `{name}` exists on this system: remove or rename it");
        problem::conflict(ProblemKind::NameTaken, "the name is taken", detail)
    };
    if inner.standalone.service(name).is_ok() || inner.coming(name).is_some() {
        return Err(taken("a service"));
    }
    let there = client.inspect(name.as_str()).await;
    match there.map_err(|error| refused(&error))? {
        Some(_) => Err(taken("a container")),
        None => Ok(()),
    }
}

/// Names for its volumes that are free: what an earlier visit has left is not mixed with what comes.
async fn volumes(client: &Client, of: &Specification) -> Result<BTreeMap<String, Volume>, Problem> {
    let mut volumes = BTreeMap::new();
    for volume in &of.volumes {
        let plain = format!("{}-{}", of.name, volume.name);
        let mut names = std::iter::once(plain.clone())
            .chain((2..NAMES_MAX).map(|number| format!("{plain}-{number}")));
        let name = loop {
            let Some(name) = names.next() else {
                let detail =
                    format!("`{plain}` and {NAMES_MAX} more: remove those that nobody uses");
                let title = "the names of its volumes are taken";
                return Err(problem::conflict(ProblemKind::Container, title, detail));
            };
            let taken = client.has_volume(&name).await;
            if !taken.map_err(|error| refused(&error))? {
                break name;
            }
        };
        let path = PathBuf::new();
        volumes.insert(volume.name.to_string(), Volume { name, path });
    }
    Ok(volumes)
}

/// Starts its keeper, which awaits the container. Blocks.
fn start_keeper(inner: &Inner, of: &Coming) -> Result<Keeper, Problem> {
    let name = &of.specification.name;
    let places = inner.places(name);
    let failed = |error: std::io::Error| {
        let title = "the service's directories can't be made";
        Problem::failed(ProblemKind::Directories, title, error.to_string())
    };
    for directory in [
        places.files(),
        shm(&places),
        empty(&places),
        inner.staging(name),
    ] {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let program = "/proc/self/exe".to_owned();
    let unused = PathBuf::new;
    let config = KeeperConfig {
        service: name.to_string(),
        socket: places.socket(),
        bundle_bin: inner.settings.bundle_bin.clone(),
        guard: vec![program.clone(), "guard".to_owned()],
        log_pump: vec![program.clone(), "log".to_owned()],
        cgroup: nowhere(name),
        memory_limit_bytes: None,
        lower: unused(),
        upper: unused(),
        work: unused(),
        merged: unused(),
        shm: shm(&places),
        shm_bytes: SHM_BYTES,
        devices: Vec::new(),
        log: places.0.join("log"),
        mounts: mounts(of, &places),
        placed: true,
        adopted: None,
    };
    let started = Keeper::start(&[program, "keeper".to_owned()], &config);
    started.map_err(|error| problem::keeper(&error))
}

/// An empty directory.
fn empty(places: &Places) -> PathBuf {
    places.0.join("empty")
}

/// What is mounted where the checkpoint has mounts that are not CRIU's, unless the engine has it mounted there itself.
fn mounts(of: &Coming, places: &Places) -> Vec<ExternalMount> {
    let shm = shm(places);
    let here = bundle::Places {
        rootfs: Path::new(""),
        netns: Path::new(""),
        volumes: &places.0,
        shm: &shm,
        cgroup: "",
    };
    let volume = |path: &str| {
        let mut all = of.specification.volumes.iter();
        let volume = all.find(|volume| volume.path == path)?;
        Some(of.volumes.get(volume.name.as_str())?.path.clone())
    };
    let all = bundle::external_mounts(&of.specification, &here).into_iter();
    all.map(|mount| ExternalMount {
        source: volume(&mount.mountpoint).unwrap_or(mount.source),
        mountpoint: mount.mountpoint,
        key: mount.key,
    })
    .collect()
}

/// An engine that has ended, or does not wait any more, would know nothing of a service that runs.
pub(crate) fn is_made(inner: &Inner, name: &ServiceName) -> Result<(), Problem> {
    match inner.state().unmade.get(name) {
        None => Ok(()),
        Some(why) => {
            let title = "the engine does not make the container any more";
            Err(Problem::failed(ProblemKind::Container, title, why))
        }
    }
}

/// It executes: writes down which its init is. Blocks.
pub(crate) fn arrived(inner: &Inner, mut of: Coming) -> Result<(), Problem> {
    if of.stage != Stage::Coming {
        return Ok(());
    }
    let status = inner.seen_coming(&of).container.status();
    let status = status.map_err(|error| problem::keeper(&error))?;
    let given = status.init_pid.and_then(Given::of);
    of.init = given.map(|given| (given.init, given.began));
    of.stage = Stage::Arrived;
    inner.keep_coming(of)
}

/// All its pages are in: it is its engine's alone from now on.
pub(crate) async fn settled(inner: &Arc<Inner>, mut of: Coming) -> Result<(), Problem> {
    let (Stage::Arrived, Some(made)) = (of.stage, of.made.clone()) else {
        return Ok(());
    };
    // The other way round its engine would be refused to start it anew.
    let offers = inner.offers();
    offers.withdraw(&made.id).map_err(|error| {
        problem::failed(ProblemKind::Container, "the container stays reserved")(&error)
    })?;
    let restart = restart(&of.specification);
    if restart.is_on() {
        let client = inner.client(&of.engine).await?;
        let set = client.set_restart(&made.id, &restart).await;
        set.map_err(|error| refused(&error))?;
    }
    let this = Arc::clone(inner);
    blocking(move || {
        let left = this.seen_coming(&of).container.ask(&Request::Leave);
        match left {
            Err(error) if !error.is_gone() => return Err(problem::keeper(&error)),
            _ => {}
        }
        // What was its keeper's.
        let name = of.specification.name.clone();
        let _ = std::fs::remove_dir_all(&this.places(&name).0);
        let _ = std::fs::remove_dir_all(this.staging(&name));
        of.stage = Stage::Settled;
        this.keep_coming(of)
    })
    .await
}

fn restart(of: &Specification) -> Restart {
    let creation = of.creation.as_ref();
    creation.map(|it| it.restart.clone()).unwrap_or_default()
}

/// Lets go of those that an earlier agent was killed before it did.
pub(crate) async fn settle_all(inner: &Arc<Inner>) {
    let all: Vec<Coming> = inner.state().coming.values().cloned().collect();
    for of in all {
        let name = of.specification.name.clone();
        if of.stage == Stage::Settled && of.given().is_none() {
            // It has ended, or was started anew: nothing of it came from elsewhere.
            inner.forget_coming(&name);
            continue;
        }
        if of.stage != Stage::Arrived || !inner.state().orphans.contains(&name) {
            continue;
        }
        let status = inner.seen_coming(&of).container.status_async().await;
        let is_whole = status.is_ok_and(|status| status.pages_missing == 0);
        match is_whole {
            true => {
                if let Err(error) = settled(inner, of).await {
                    tracing::warn!(service = %name, %error, "its keeper can't let go of it yet");
                }
            }
            false => tracing::debug!(service = %name, "its keeper has pages of it still"),
        }
    }
}

/// Ends what has never executed here, or a keeper's work with what has; nothing is left of it. Repeating it is harmless.
pub(crate) async fn destroy(
    inner: &Arc<Inner>,
    service: &Service,
    keep: Keep,
) -> Result<(), Problem> {
    let name = service.name();
    let Some(of) = inner.coming(name) else {
        return Ok(());
    };
    let container = service.container.clone();
    blocking(move || match container.ask(&Request::Quit) {
        Err(error) if !error.is_gone() => Err(problem::keeper(&error)),
        _ => Ok(()),
    })
    .await?;
    let client = inner.client(&of.engine).await?;
    let migration = of.from.migration.to_string();
    let made = client.made_for(&migration).await;
    let made = made.map_err(|error| refused(&error))?;
    for id in made.iter().chain(of.made.iter().map(|made| &made.id)) {
        let removed = client.remove(id).await;
        removed.map_err(|error| refused(&error))?;
        inner.offers().withdraw(id).map_err(|error| {
            problem::failed(ProblemKind::Container, "the container stays reserved")(&error)
        })?;
    }
    for volume in of.volumes.values() {
        let removed = client.remove_volume(&volume.name, &migration).await;
        removed.map_err(|error| refused(&error))?;
    }
    if keep != Keep::Network {
        tunnel::end_inbound(&inner.standalone.frontmen, service).await?;
    }
    inner.forget_coming(name);
    Ok(())
}
