//! Starts keepers: from a Specification and its places to a container that a keeper holds.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::keeper::client::{self, Keeper};
use ums_checkpoint::keeper::protocol::{self, KeeperConfig, Request, Status};
use ums_core::id::ServiceName;
use ums_core::specification::Specification;
use ums_node::container::{ContainerPlan, Volumes, netns_path};

use crate::bundle::{self, Places};
use crate::settings::{ServicePlaces, Settings};

/// Size of a service's `/dev/shm`, bytes: what container engines give.
const SHM_BYTES: u64 = 64 << 20;

/// The program that is running, also after its file was replaced by a newer one: a keeper speaks
/// the same language as the agent that starts it.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Why a container could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keeper.
    #[error(transparent)]
    Keeper(#[from] client::Error),
    /// The Specification can't be made a container.
    #[error("the Specification can't be made a container: {0}")]
    Specification(String),
    /// The limit of processors.
    #[error("the service's processors can't be limited")]
    Processors(#[source] io::Error),
    /// A file or directory.
    #[error("`{}` can't be written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a migration has to know of a service's container.
pub fn plan(settings: &Settings, name: &ServiceName) -> ContainerPlan {
    let places = settings.places(name);
    ContainerPlan {
        keeper: places.keeper(),
        cgroup: bundle::cgroup_path(&settings.system, name),
        upper: places.upper(),
        volumes: Volumes::Below(places.volumes()),
        shm: places.shm(),
        given: None,
    }
}

/// Starts the keeper of a service whose directories exist. Nothing executes yet.
pub fn start_keeper(
    settings: &Settings,
    specification: &Specification,
    places: &ServicePlaces,
) -> Result<Keeper, Error> {
    let program = THIS_PROGRAM.to_owned();
    let bundle_places = bundle_places(settings, specification, places);
    let mounts = bundle::external_mounts(specification, &bundle_places.borrowed());
    let mounts = mounts.into_iter().map(|mount| protocol::ExternalMount {
        mountpoint: mount.mountpoint,
        key: mount.key,
        source: on_this_node(mount.source, &places.shm()),
    });
    let keeper = KeeperConfig {
        service: specification.name.to_string(),
        socket: places.keeper(),
        bundle_bin: settings.bundle_bin.clone(),
        guard: vec![program.clone(), "guard".to_owned()],
        log_pump: [std::slice::from_ref(&program), &settings.log_pump[..]].concat(),
        cgroup: bundle::cgroup_path(&settings.system, &specification.name),
        memory_limit_bytes: specification.memory_limit_bytes,
        lower: settings
            .images()
            .join(specification.image.as_str())
            .join("rootfs"),
        upper: places.upper(),
        work: places.work(),
        merged: places.merged(),
        shm: places.shm(),
        shm_bytes: SHM_BYTES,
        devices: bundle::ALLOWED_DEVICES.map(str::to_owned).to_vec(),
        log: places.log(),
        mounts: mounts.collect(),
        placed: false,
        adopted: None,
    };
    let cgroup = keeper.cgroup.clone();
    let keeper = Keeper::start(&[program, "keeper".to_owned()], &keeper)?;
    if let Some(nano_cpus) = nano_cpus(specification) {
        let limited = Cgroup::at(&cgroup).and_then(|group| group.limit_processors(nano_cpus));
        if let Err(source) = limited {
            // Nothing has begun in it: a service must not run without its limits.
            let _ = keeper.call(&Request::Quit, &[]);
            return Err(Error::Processors(source));
        }
    }
    Ok(keeper)
}

/// Processors that a service may use, in billionths of one, where it is limited.
pub fn nano_cpus(specification: &Specification) -> Option<u64> {
    let creation = specification.creation.as_ref()?;
    let wanted = u64::try_from(creation.nano_cpus?).ok()?;
    (wanted > 0).then_some(wanted)
}

/// Why processors can't be limited on this node; `None` when they can.
pub fn lacks_processor_limit() -> Option<String> {
    match Cgroup::at(bundle::ALL_SERVICES) {
        Ok(group) => group.lacks_processor_limit(),
        Err(error) => Some(error.to_string()),
    }
}

/// Lets a new keeper create and start the container.
pub fn start_container(
    settings: &Settings,
    specification: &Specification,
    places: &ServicePlaces,
    keeper: &Keeper,
) -> Result<Status, Error> {
    let status = keeper.status()?;
    let netns = netns_path(&status);
    let own = bundle_places(settings, specification, places);
    let json = bundle::config(
        specification,
        &Places {
            netns: &netns,
            ..own.borrowed()
        },
        file_limit(),
    )
    .map_err(|error| Error::Specification(error.to_string()))?;
    let path = places.bundle().join("config.json");
    fs::write(&path, json.to_string()).map_err(|source| Error::File { path, source })?;
    Ok(keeper.call(
        &Request::Start {
            bundle: places.bundle(),
        },
        &[],
    )?)
}

/// A control group of a hierarchy that this node has not is an empty directory.
fn on_this_node(source: PathBuf, shm: &Path) -> PathBuf {
    let Ok(below) = source.strip_prefix(bundle::CONTROL_GROUPS) else {
        return source;
    };
    let hierarchy = below
        .components()
        .next()
        .map(|name| Path::new(bundle::CONTROL_GROUPS).join(name));
    match hierarchy.is_some_and(|path| path.join("cgroup.procs").exists()) {
        true => source,
        false => bundle::empty(shm),
    }
}

fn file_limit() -> bundle::FileLimit {
    use nix::sys::resource::{Resource, getrlimit};
    // Failing is impossible for a resource that exists; the kernel's default is no worse.
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 4096))
}

struct OwnedPlaces {
    rootfs: PathBuf,
    volumes: PathBuf,
    shm: PathBuf,
    cgroup: String,
}

impl OwnedPlaces {
    fn borrowed(&self) -> Places<'_> {
        Places {
            rootfs: &self.rootfs,
            netns: std::path::Path::new(""),
            volumes: &self.volumes,
            shm: &self.shm,
            cgroup: &self.cgroup,
        }
    }
}

fn bundle_places(
    settings: &Settings,
    specification: &Specification,
    places: &ServicePlaces,
) -> OwnedPlaces {
    OwnedPlaces {
        rootfs: places.merged(),
        volumes: places.volumes(),
        shm: places.shm(),
        cgroup: bundle::cgroup_path(&settings.system, &specification.name),
    }
}
