//! Services that are started and removed here, outside a migration.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ums_api::agent::RunRequest;
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::Phase;
use ums_core::id::ServiceName;
use ums_core::specification::Specification;
use ums_image::unpack::Root;
use ums_image::user::Ids;
use ums_node::container::files;
use ums_node::durable;
use ums_node::host::{Arriving, Keep, Service};
use ums_node::task::blocking;
use ums_node::{place, problem};

use crate::image::{self, Base};
use crate::record::{self, Record};
use crate::settings::ServicePlaces;
use crate::state::Standalone;
use crate::{addresses, bundle, container, removal};

/// How long the end of a service may take that an earlier agent was killed in: whoever starts the agent
/// waits for it.
const CUT_OFF_PATIENCE: Duration = Duration::from_secs(5);

/// Creates and starts a service; tells what its image asks for that is not done here.
pub async fn run(
    host: &Arc<Standalone>,
    request: RunRequest,
) -> Result<(Service, Vec<String>), Problem> {
    run_furnished(host, request, |_| Ok(())).await
}

/// The same; `furnish` puts files in place before anything executes. It may block.
pub async fn run_furnished(
    host: &Arc<Standalone>,
    mut request: RunRequest,
    furnish: impl FnOnce(&ServicePlaces) -> Result<(), Problem> + Send + 'static,
) -> Result<(Service, Vec<String>), Problem> {
    let this = Arc::clone(host);
    let (request, base) = blocking(move || {
        let base = image::base(&this, &request)?;
        image::settle(&mut request, &base);
        Ok((request, base))
    })
    .await?;
    let notes = image::notes(&request, &base.run);
    let kept = addresses::kept(host).await?;
    let this = Arc::clone(host);
    let service = blocking(move || {
        let ids = ids(&this, &request, &base)?;
        // What is free is free until it is taken: two that are started at once must not be given the same.
        let _admission = this.admission();
        let specification = specify(&this, request, &base, &ids, &kept)?;
        prepare(&this, specification, None, None)
    })
    .await?;
    let places = host.settings.places(service.name());
    let furnished = blocking(move || furnish(&places)).await;
    let started = match furnished {
        Ok(()) => start(host, &service).await,
        Err(problem) => Err(problem),
    };
    match started {
        Ok(()) => Ok((service, notes)),
        Err(problem) => {
            // What could not be started leaves nothing; its own problem is what counts.
            let name = &service.specification.name;
            if let Err(error) = removal::destroy(host, &service, Keep::Nothing).await {
                tracing::warn!(service = %name, %error, "a service that did not start left something");
            }
            Err(problem)
        }
    }
}

/// Who its processes are: names are those of its root filesystem.
fn ids(host: &Standalone, request: &RunRequest, base: &Base) -> Result<Ids, Problem> {
    let Some(user) = &request.user else {
        return Ok(Ids {
            uid: request.uid,
            gid: request.gid,
            ..Ids::default()
        });
    };
    let resolved = Root::open(&host.images.rootfs(&base.id))
        .and_then(|root| ums_image::user::resolve(&root, user));
    resolved.map_err(|error| {
        let title = "the service can't be specified so";
        Problem::refused(
            400,
            ProblemKind::Specification,
            title,
            problem::chain(&error),
        )
    })
}

fn specify(
    host: &Standalone,
    request: RunRequest,
    base: &Base,
    ids: &Ids,
    kept: &BTreeMap<Ipv4Addr, ServiceName>,
) -> Result<Specification, Problem> {
    let network = host.settings.network;
    let in_use = addresses::of_others(host, &request.name, kept);
    let address = match request.address {
        Some(address) => address,
        None => addresses::free(host, &request.name, &in_use)?,
    };
    host.network.check(address).map_err(|error| {
        let title = "the address can't be used";
        Problem::refused(400, ProblemKind::Address, title, problem::chain(&error))
    })?;
    if in_use.contains(&address) {
        let detail = format!("another service has {address}: choose another address");
        return Err(problem::conflict(
            ProblemKind::AddressTaken,
            "the address is taken",
            detail,
        ));
    }
    let specification = Specification {
        hostname: request.name.to_string(),
        creation: image::creation(&request, base, ids),
        name: request.name,
        image: base.id.clone(),
        command: request.command,
        env: request.env,
        cwd: request.cwd,
        uid: ids.uid,
        gid: ids.gid,
        memory_limit_bytes: request.memory_limit_bytes,
        volumes: request.volumes,
        address,
        prefix_len: network.prefix_len,
        ports: request.ports,
        mounts: Vec::new(),
        engine: None,
        capabilities: bundle::DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
    };
    bundle::check(&specification).map_err(|error| {
        let detail = problem::chain(&error);
        Problem::refused(
            400,
            ProblemKind::Specification,
            "the service can't be specified so",
            detail,
        )
    })?;
    addresses::free_ports(host, &specification)?;
    host.can_confine(&specification)?;
    Ok(specification)
}

/// Makes a service's directories, record and keeper. Nothing executes. Blocks.
pub fn prepare(
    host: &Standalone,
    specification: Specification,
    arriving: Option<Arriving>,
    on_bridge: Option<Ipv4Addr>,
) -> Result<Service, Problem> {
    let version = record::VERSION;
    let record = Record {
        version,
        specification,
        gate: None,
        inbound: arriving.clone(),
        starting: arriving.is_none(),
        arriving,
        on_bridge,
    };
    let service = host.add(record.clone())?;
    let made = make(host, &record);
    if made.is_err() {
        let _ = host.settings.places(service.name()).remove();
        host.forget(service.name());
    }
    made.map(|()| service)
}

fn make(host: &Standalone, record: &Record) -> Result<(), Problem> {
    let specification = &record.specification;
    let places = host.settings.places(&specification.name);
    let volumes = specification
        .volumes
        .iter()
        .map(|volume| volume.name.clone());
    let volumes = volumes.chain(files(specification));
    let volumes = volumes.map(|name| name.to_string());
    let failed = |error: std::io::Error| {
        let detail = format!("{}: {error}", places.state().display());
        Problem::failed(
            ProblemKind::Directories,
            "the service's directories can't be made",
            detail,
        )
    };
    // Directories without a record belong to a service that was never promised to anybody.
    places.remove().map_err(failed)?;
    places.create(volumes).map_err(failed)?;
    if record.arriving.is_none() {
        fill_volumes(host, specification, &places)?;
    }
    durable::write(&places.record(), record).map_err(failed)?;
    container::start_keeper(&host.settings, specification, &places).map_err(|error| {
        problem::failed(ProblemKind::Container, "the keeper can't be started")(&error)
    })?;
    Ok(())
}

/// A new volume begins with what the root filesystem has in its place, and with its owner, as in container
/// engines: a program of another user than root could not write to one of root's.
fn fill_volumes(
    host: &Standalone,
    specification: &Specification,
    places: &ServicePlaces,
) -> Result<(), Problem> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        let title = "a volume can't be filled";
        Problem::failed(ProblemKind::Directories, title, problem::chain(error))
    };
    let root = Root::open(&host.images.rootfs(&specification.image));
    let root = root.map_err(|error| failed(&error))?;
    for volume in &specification.volumes {
        let found = root.directory(Path::new(&volume.path));
        let Some((_open, from)) = found.map_err(|error| failed(&error))? else {
            continue;
        };
        let to = places.volumes().join(volume.name.as_str());
        std::fs::remove_dir(&to).map_err(|error| failed(&error))?;
        let copied = host.images.copy_out(&from, &to);
        copied.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Connects a service's network namespace.
pub async fn connect(host: &Arc<Standalone>, service: &Service) -> Result<(), Problem> {
    let failed = problem::failed(ProblemKind::Network, "the service's network can't be made");
    host.network
        .ensure_bridge()
        .await
        .map_err(|error| failed(&error))?;
    let netns = service.container.netns().await?;
    let wired = host.network.wire(service.name(), &netns, service.into());
    wired.await.map_err(|error| failed(&error))
}

async fn start(host: &Arc<Standalone>, service: &Service) -> Result<(), Problem> {
    // All of its network first: what its first instruction sends must find its way, and who is told
    // of it must find the service.
    connect(host, service).await?;
    place::join(&*host.network, service).await?;
    place::publish(&*host.network, service).await?;
    let (this, of) = (Arc::clone(host), service.clone());
    blocking(move || {
        let keeper = of.container.keeper();
        let keeper = keeper.map_err(|error| problem::keeper(&error))?;
        let places = this.settings.places(of.name());
        let specification = &of.specification;
        container::start_container(&this.settings, specification, &places, &keeper).map_err(
            |error| problem::failed(ProblemKind::Start, "the container can't be started")(&error),
        )?;
        started(&this, &specification.name)
    })
    .await
}

/// Writes down that a service has been started. Blocks.
fn started(host: &Standalone, name: &ServiceName) -> Result<(), Problem> {
    host.update(name, |record| {
        record.starting = false;
        Ok(())
    })
}

/// Ends what an earlier agent was killed in: a service that it was starting, and of which nobody has been
/// told. One that was started after all goes on; of the others nothing is left. To be called before
/// anybody is served, so that none of them can be asked for again meanwhile.
pub async fn end_cut_off(host: &Arc<Standalone>) {
    let all = host.all().into_iter().filter(|record| record.starting);
    for name in all.map(|record| record.specification.name) {
        let Ok(service) = host.service(&name) else {
            continue;
        };
        let ended = tokio::time::timeout(CUT_OFF_PATIENCE, end_one_cut_off(host, &service)).await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(service = %name, %error, "a service that was being started when the agent was killed is still there: `ums rm` removes it");
            }
            Err(_) => {
                tracing::warn!(service = %name, "a service that was being started when the agent was killed does not end: `ums rm` removes it");
            }
        }
    }
}

/// Lets services run on that an earlier agent was killed in a look at: it freezes a service for a moment to see what
/// changes in its memory where the kernel tells no other way. Of one that is frozen to be moved its keeper says so.
pub async fn thaw_cut_off(host: &Arc<Standalone>) {
    for name in host.all().into_iter().map(|it| it.specification.name) {
        let Ok(service) = host.service(&name) else {
            continue;
        };
        let status = service.container.status_if_any_async().await;
        if !matches!(status, Ok(Some(status)) if status.phase == Phase::Running) {
            continue;
        }
        match blocking(move || service.container.thaw_if_frozen()).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(service = %name, "it was frozen, and nobody is moving it: it runs on")
            }
            Err(error) => tracing::warn!(service = %name, %error, "it may be frozen"),
        }
    }
}

async fn end_one_cut_off(host: &Arc<Standalone>, service: &Service) -> Result<(), Problem> {
    let status = service.container.status_if_any_async().await?;
    if status.is_some_and(|status| status.phase != Phase::Created) {
        let (this, name) = (Arc::clone(host), service.specification.name.clone());
        return blocking(move || started(&this, &name)).await;
    }
    removal::destroy(host, service, Keep::Nothing).await?;
    let name = &service.specification.name;
    tracing::warn!(service = %name, "the agent was killed while it started this service: nothing is left of it");
    Ok(())
}
