//! Services that are started and removed here, outside a migration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ums_api::agent::{RunRequest, ServiceView};
use ums_api::problem::Problem;
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::freezer::Freezer;
use ums_checkpoint::keeper::protocol::{Phase, Request};
use ums_core::id::ServiceName;
use ums_core::specification::{ImageId, PublishedPort, Specification};

use crate::agent::{Agent, Service};
use crate::bundle;
use crate::container;
use crate::network;
use crate::record::{self, Record};
use crate::{frontman, tunnel};
use ums_node::facts::{Port, listening_ports};
use ums_node::packets::Policy;
use ums_node::problem;

/// How long the end of a service may take that an earlier agent was killed in: whoever starts the agent
/// waits for it.
const CUT_OFF_PATIENCE: Duration = Duration::from_secs(5);

fn kill_cgroup(agent: &Agent, service: &Service) -> Result<(), Problem> {
    let cgroup = cgroup_of(agent, service)?;
    let killed = match Freezer::of(&cgroup).and_then(|freezer| freezer.kill()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => cgroup.remove(),
    };
    killed.map_err(|error| problem::failed("cgroup", "the container can't be killed")(&error))
}

/// Lets a service whose keeper is lost run on: the freeze is the kernel's, so nobody else is needed
/// to end it. True when there was no keeper to ask, and it was done.
pub async fn thaw_without_keeper(agent: &Arc<Agent>, service: &Service) -> Result<bool, Problem> {
    let (this, of) = (Arc::clone(agent), service.clone());
    let orphans = blocking(move || match this.keeper_if_any(&of)? {
        None => cgroup_of(&this, &of).map(Some),
        Some(_) => Ok(None),
    })
    .await?;
    let Some(cgroup) = orphans else {
        return Ok(false);
    };
    let released = match netns_of(&cgroup) {
        Some(netns) => agent.packets.direct(&netns, Policy::Pass).await,
        None => Ok(()),
    };
    blocking(
        move || match Freezer::of(&cgroup).and_then(|freezer| freezer.release()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(problem::failed(
                "cgroup",
                "the container can't be thawed",
            )(&error)),
            _ => Ok(()),
        },
    )
    .await?;
    released.map_err(|error| problem::failed("network", "packets can't be released")(&error))?;
    Ok(true)
}

fn cgroup_of(agent: &Agent, service: &Service) -> Result<Cgroup, Problem> {
    let path = bundle::cgroup_path(&agent.config.system, &service.record.specification.name);
    Cgroup::at(&path).map_err(|error| problem::failed("cgroup", "no control groups")(&error))
}

/// The network namespace of a container without a keeper: where its processes are.
fn netns_of(cgroup: &Cgroup) -> Option<PathBuf> {
    let pid = *cgroup.processes().first()?;
    Some(format!("/proc/{pid}/ns/net").into())
}

/// The network namespace of a service whose keeper may be lost; `None` when it has no process.
pub async fn remaining_netns(agent: &Arc<Agent>, service: &Service) -> Option<PathBuf> {
    match netns(agent, service).await {
        Ok(netns) => Some(netns),
        Err(_) => netns_of(&cgroup_of(agent, service).ok()?),
    }
}

/// Runs what blocks where it may.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(problem::panicked(&error)))
}

/// Creates and starts a service.
pub async fn run(agent: &Arc<Agent>, request: RunRequest) -> Result<ServiceView, Problem> {
    let this = Arc::clone(agent);
    let of = request.rootfs.clone();
    let image = blocking(move || import(&this, &of)).await?;
    let kept = kept_addresses(agent).await?;
    let this = Arc::clone(agent);
    let service = blocking(move || {
        // What is free is free until it is taken: two that are started at once must not be given the same.
        let _admission = this.admission();
        let specification = specify(&this, request, image, &kept)?;
        prepare(&this, specification, None, None)
    })
    .await?;
    match start(agent, &service).await {
        Ok(()) => {
            let this = Arc::clone(agent);
            blocking(move || Ok(this.view(&service))).await
        }
        Err(problem) => {
            // What could not be started leaves nothing; its own problem is what counts.
            let name = &service.record.specification.name;
            if let Err(error) = destroy(agent, &service, Keep::Nothing).await {
                tracing::warn!(service = %name, %error, "a service that did not start left something");
            }
            Err(problem)
        }
    }
}

/// Copies a root filesystem into the image store, unless it is there.
fn import(agent: &Agent, rootfs: &str) -> Result<ImageId, Problem> {
    agent.images.import(Path::new(rootfs)).map_err(|error| {
        let title = "the root filesystem can't be imported";
        Problem::refused(400, "rootfs", title, problem::chain(&error))
    })
}

/// Addresses on the bridge and whose they are, those included that are kept for a service that has left.
pub async fn kept_addresses(
    agent: &Arc<Agent>,
) -> Result<BTreeMap<Ipv4Addr, ServiceName>, Problem> {
    let failed = problem::failed("network", "the addresses in use can't be seen");
    agent.network.addresses().await.map_err(|e| failed(&e))
}

/// Addresses that other services than `name` have on the bridge.
fn addresses_of_others(
    agent: &Agent,
    name: &ServiceName,
    kept: &BTreeMap<Ipv4Addr, ServiceName>,
) -> BTreeSet<Ipv4Addr> {
    let kept = kept.iter().filter(|(_, service)| *service != name);
    let mut in_use: BTreeSet<_> = kept.map(|(address, _)| *address).collect();
    let services = agent.all_services();
    let others = services.iter().map(|service| &service.record);
    let others = others.filter(|record| record.specification.name != *name);
    in_use.extend(others.map(|record| record.address().on_bridge));
    in_use
}

fn free_address(
    agent: &Agent,
    name: &ServiceName,
    in_use: &BTreeSet<Ipv4Addr>,
) -> Result<Ipv4Addr, Problem> {
    let (network, system) = (agent.config.service_network, &agent.config.system);
    network::free_address(network, system, name, in_use).ok_or_else(|| {
        let detail = "every address of the service network is in use: remove a service";
        problem::conflict("addresses", "no address is free", detail)
    })
}

/// The address on this system's bridge for a service that arrives, if it is to be another than its own.
/// Where what it left behind at an earlier visit still leads its clients, it is that one's: they know no
/// other.
pub fn address_for_arrival(
    agent: &Agent,
    specification: &Specification,
    kept: &BTreeMap<Ipv4Addr, ServiceName>,
) -> Result<Option<Ipv4Addr>, Problem> {
    let (name, own) = (&specification.name, specification.address);
    let in_use = addresses_of_others(agent, name, kept);
    let before = kept.iter().find(|(_, service)| *service == name);
    let on_bridge = match before {
        Some((address, _)) if !in_use.contains(address) => *address,
        _ if in_use.contains(&own) => free_address(agent, name, &in_use)?,
        _ => own,
    };
    Ok((on_bridge != own).then_some(on_bridge))
}

fn specify(
    agent: &Agent,
    request: RunRequest,
    image: ImageId,
    kept: &BTreeMap<Ipv4Addr, ServiceName>,
) -> Result<Specification, Problem> {
    let network = agent.config.service_network;
    let in_use = addresses_of_others(agent, &request.name, kept);
    let address = match request.address {
        Some(address) => address,
        None => free_address(agent, &request.name, &in_use)?,
    };
    agent.network.check(address).map_err(|error| {
        let title = "the address can't be used";
        Problem::refused(400, "address", title, problem::chain(&error))
    })?;
    if in_use.contains(&address) {
        let detail = format!("another service has {address}: choose another address");
        return Err(problem::conflict(
            "address-taken",
            "the address is taken",
            detail,
        ));
    }
    let specification = Specification {
        hostname: request.name.to_string(),
        name: request.name,
        image,
        command: request.command,
        env: request.env,
        cwd: if request.cwd.is_empty() {
            "/".to_owned()
        } else {
            request.cwd
        },
        uid: request.uid,
        gid: request.gid,
        memory_limit_bytes: request.memory_limit_bytes,
        volumes: request.volumes,
        address,
        prefix_len: network.prefix_len,
        ports: request.ports,
        capabilities: bundle::DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
    };
    bundle::check(&specification).map_err(|error| {
        let detail = problem::chain(&error);
        Problem::refused(
            400,
            "specification",
            "the service can't be specified so",
            detail,
        )
    })?;
    free_ports(agent, &specification)?;
    agent.can_confine(&specification)?;
    Ok(specification)
}

/// Refuses ports that another service or program has.
pub fn free_ports(agent: &Agent, wanted: &Specification) -> Result<(), Problem> {
    let services = agent.all_services();
    let others = services.iter().map(|service| &service.record.specification);
    let others = others.filter(|other| other.name != wanted.name);
    let taken = network::ports_in_use(others, &listening_ports());
    let is_taken = |port: &&PublishedPort| taken.contains(&Port::of(port));
    match wanted.ports.iter().find(is_taken) {
        Some(port) => {
            let (number, transport) = (port.system_port, port.transport.name());
            let detail = format!(
                "port {number}/{transport} of this system is in use: publish another, or end what has it"
            );
            Err(problem::conflict("port-taken", "the port is taken", detail))
        }
        None => Ok(()),
    }
}

/// Makes a service's directories, record and keeper. Nothing executes. Blocks.
pub fn prepare(
    agent: &Agent,
    specification: Specification,
    arriving: Option<record::Arriving>,
    on_bridge: Option<Ipv4Addr>,
) -> Result<Service, Problem> {
    let places = agent.config.places(&specification.name);
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
    let service = Service { record, places };
    agent.add_service(service.clone())?;
    let made = make(agent, &service);
    if made.is_err() {
        let _ = service.places.remove();
        agent.forget_service(&service.record.specification.name);
    }
    made.map(|()| service)
}

fn make(agent: &Agent, service: &Service) -> Result<(), Problem> {
    let specification = &service.record.specification;
    let volumes = specification
        .volumes
        .iter()
        .map(|volume| volume.name.to_string());
    let failed = |error: std::io::Error| {
        let detail = format!("{}: {error}", service.places.state().display());
        Problem::failed(
            "directories",
            "the service's directories can't be made",
            detail,
        )
    };
    // Directories without a record belong to a service that was never promised to anybody.
    service.places.remove().map_err(failed)?;
    service.places.create(volumes).map_err(failed)?;
    record::write(&service.places.record(), &service.record).map_err(failed)?;
    container::start_keeper(&agent.config, specification, &service.places)
        .map_err(|error| problem::failed("container", "the keeper can't be started")(&error))?;
    Ok(())
}

/// The file that stands for a service's network namespace.
pub async fn netns(agent: &Arc<Agent>, service: &Service) -> Result<PathBuf, Problem> {
    let (this, of) = (Arc::clone(agent), service.clone());
    let status = blocking(move || {
        this.keeper_status(&of)
            .map_err(|error| problem::keeper(&error))
    });
    Ok(container::netns_path(&status.await?))
}

/// Connects a service's network namespace.
pub async fn connect(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    let failed = problem::failed("network", "the service's network can't be made");
    let specification = &service.record.specification;
    agent
        .network
        .ensure_bridge()
        .await
        .map_err(|error| failed(&error))?;
    let netns = netns(agent, service).await?;
    let wired = agent
        .network
        .wire(&specification.name, &netns, service.record.address());
    wired.await.map_err(|error| failed(&error))
}

/// Gives a connected service its place in the system's network, from whoever had it.
pub async fn join(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    let netns = netns(agent, service).await?;
    let specification = &service.record.specification;
    let joining = agent
        .network
        .join(&specification.name, &netns, service.record.address());
    let failed = problem::failed("network", "the service can't take its place");
    joining.await.map_err(|error| failed(&error))
}

/// Leads the service's endpoints to it.
pub async fn publish(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    let failed = problem::failed("network", "the ports can't be published");
    let specification = &service.record.specification;
    let (name, address) = (&specification.name, service.record.address().on_bridge);
    let published = agent.network.publish(name, address, &specification.ports);
    published.await.map_err(|error| failed(&error))
}

async fn start(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    // All of its network first: what its first instruction sends must find its way, and who is told
    // of it must find the service.
    connect(agent, service).await?;
    join(agent, service).await?;
    publish(agent, service).await?;
    let (this, of) = (Arc::clone(agent), service.clone());
    blocking(move || {
        let keeper = this.keeper(&of).map_err(|error| problem::keeper(&error))?;
        let specification = &of.record.specification;
        container::start_container(&this.config, specification, &of.places, &keeper)
            .map_err(|error| problem::failed("start", "the container can't be started")(&error))?;
        started(&this, &specification.name)
    })
    .await
}

/// Writes down that a service has been started. Blocks.
fn started(agent: &Agent, name: &ServiceName) -> Result<(), Problem> {
    let started = agent.update_record(name, |record| {
        record.starting = false;
        Ok(())
    });
    started.map(drop)
}

/// Ends what an earlier agent was killed in: a service that it was starting, and of which nobody has been
/// told. One that was started after all goes on; of the others nothing is left. To be called before
/// anybody is served, so that none of them can be asked for again meanwhile.
pub async fn end_cut_off(agent: &Arc<Agent>) {
    let all = agent.all_services().into_iter();
    for service in all.filter(|service| service.record.starting) {
        let name = service.record.specification.name.clone();
        let ended = tokio::time::timeout(CUT_OFF_PATIENCE, end_one_cut_off(agent, &service)).await;
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

async fn end_one_cut_off(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    let (this, of) = (Arc::clone(agent), service.clone());
    let status = blocking(move || this.keeper_if_any(&of)).await?;
    if status.is_some_and(|status| status.phase != Phase::Created) {
        let (this, name) = (Arc::clone(agent), service.record.specification.name.clone());
        return blocking(move || started(&this, &name)).await;
    }
    destroy(agent, service, Keep::Nothing).await?;
    let name = &service.record.specification.name;
    tracing::warn!(service = %name, "the agent was killed while it started this service: nothing is left of it");
    Ok(())
}

/// Removes a service that is not migrating, or the Frontman of one that has moved away.
pub async fn remove(agent: &Arc<Agent>, name: &ServiceName) -> Result<(), Problem> {
    let service = match agent.service(name) {
        Ok(service) => service,
        Err(unknown) => return remove_frontman(agent, name, unknown).await,
    };
    let arriving = service
        .record
        .arriving
        .as_ref()
        .map(|arriving| arriving.migration);
    if let Some(id) = service.record.gate.or(arriving) {
        let detail = format!("`{name}` is being moved by migration {id}: abort that first");
        return Err(problem::conflict(
            "migrating",
            "the service is migrating",
            detail,
        ));
    }
    destroy(agent, &service, Keep::Nothing).await
}

/// The service runs elsewhere, and what is left here leads its clients there: it retires now.
async fn remove_frontman(
    agent: &Arc<Agent>,
    name: &ServiceName,
    unknown: Problem,
) -> Result<(), Problem> {
    if !frontman::retire(agent, name, Duration::ZERO).await? {
        return Err(unknown);
    }
    let failed = problem::failed("network", "the endpoint can't be removed");
    agent
        .network
        .unpublish(name)
        .await
        .map_err(|error| failed(&error))?;
    agent
        .network
        .release()
        .await
        .map(drop)
        .map_err(|error| failed(&error))
}

/// What of a service stays with its Frontman.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: it has none.
    Nothing,
    /// The endpoints.
    Endpoints,
    /// The endpoints and the network namespace, on the bridge as before.
    Network,
    /// The endpoints, and whatever has its place on the bridge: it is not the service's own yet.
    Place,
}

/// [`destroy`]s a service that never executed here. Where it had been before, the Frontman of that
/// time keeps its place.
pub async fn destroy_arriving(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    let name = &service.record.specification.name;
    let keep = if frontman::is_there(agent, name).await? {
        Keep::Place
    } else {
        Keep::Nothing
    };
    destroy(agent, service, keep).await
}

/// Kills what there is of a service and removes all that belongs to it, but what a Frontman keeps.
/// Repeating it is harmless.
pub async fn destroy(agent: &Arc<Agent>, service: &Service, keep: Keep) -> Result<(), Problem> {
    let name = &service.record.specification.name;
    let failed = problem::failed("network", "the service's network can't be removed");
    if keep == Keep::Nothing {
        let unpublished = agent.network.unpublish(name).await;
        unpublished.map_err(|error| failed(&error))?;
    }
    let (this, of) = (Arc::clone(agent), service.clone());
    blocking(move || match this.ask_keeper(&of, &Request::Quit) {
        Ok(_) => Ok(()),
        // Its keeper is lost: what the control group still holds has nobody else.
        Err(error) if error.is_gone() => kill_cgroup(&this, &of),
        Err(error) => Err(problem::keeper(&error)),
    })
    .await?;
    if keep == Keep::Nothing || keep == Keep::Endpoints {
        let removed = agent.network.detach(name).await;
        removed.map_err(|error| failed(&error))?;
    }
    let unwired = agent.network.unwire(name).await;
    unwired.map_err(|error| failed(&error))?;
    if keep != Keep::Network {
        tunnel::end_inbound(agent, service).await?;
    }
    let (this, of) = (Arc::clone(agent), service.clone());
    blocking(move || {
        of.places.remove().map_err(|error| {
            Problem::failed(
                "directories",
                "the service's files can't be removed",
                error.to_string(),
            )
        })?;
        this.forget_service(&of.record.specification.name);
        Ok(())
    })
    .await?;
    if let Err(error) = agent.network.release().await {
        tracing::debug!(%error, "the service network stays");
    }
    Ok(())
}
