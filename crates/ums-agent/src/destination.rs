//! The destination side of a migration: everything from the reservation to the running service.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, watch};
use ums_api::agent::{CreateRequest, Created, MigrationState, Phase, Restored, Role, Running};
use ums_api::problem::Problem;
use ums_checkpoint::criu::page_server::{PAGE_LEN, PE_LAZY, PageOwner};
use ums_checkpoint::keeper::protocol::{
    self as keeper, CheckpointInfo, Connections, INDEX_NAME, INFO_NAME, Request, RestoreRequest,
};
use ums_checkpoint::memory_dir::MemoryDir;
use ums_checkpoint::store::{PageStore, Stored};
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_sync::Meter;
use ums_sync::files::Applier;
use ums_sync::frame::RootName;
use ums_sync::receive::{self, Block, FileOperation, Limits, Sink, SinkError};

use crate::agent::{Agent, Migration, Service};
use crate::connections::{self, Moving};
use crate::container::keeper_path;
use crate::frontman::{self, YIELD_DRAIN};
use crate::images::Staging;
use crate::network::Packets;
use crate::problem;
use crate::record::Arriving;
use crate::services::{self, blocking};
use crate::source::{ALPN, monotonic_ns};
use crate::tunnel;

/// How long a TLS handshake may take, and the opening after it: until then it is a stranger's.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Data paths served at once, strangers that have not been let in yet included.
const CONNECTIONS_MAX: usize = 64;
/// Room for CRIU's metadata images and for pages that must be there at the restore, beyond the
/// memory that was announced, bytes.
const IMAGES_BYTES_MAX: u64 = 1 << 30;
/// So much arrives between two looks at the memory that is left, bytes.
const MEMORY_LOOK_BYTES: u64 = 8 << 20;
/// Memory that must be left while pages arrive, bytes: for what is between two looks, and for all
/// else that runs here. Without it the kernel would choose whom to kill.
const MEMORY_LEFT_MIN: u64 = 32 << 20;
/// How long a `restore` waits for the end of a delivery that the source believes complete.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);
/// How long what has arrived may take to be written, or thrown away, when the rest is given up.
const RECEIVING_PATIENCE: Duration = Duration::from_secs(30);

/// What we hold of a migration that we receive.
pub struct Incoming {
    service: ServiceName,
    source: SystemName,
    operation: AsyncMutex<()>,
    /// Held by the data path as long as it writes.
    receiving: Arc<AsyncMutex<()>>,
    /// Set when it is given up: the data path ends.
    discarded: watch::Sender<bool>,
    view: Mutex<View>,
    delivered: tokio::sync::Notify,
    meter: Meter,
}

#[derive(Default)]
struct View {
    phase: Option<Phase>,
    error: Option<String>,
    /// BLAKE3 of the permit; taken by its first use.
    permit: Option<blake3::Hash>,
    created: Option<Created>,
    memory_bytes_max: u64,
    image_needed: bool,
    delivery: Option<Delivery>,
    restored: Option<Restored>,
    /// Whether the service has its place on the bridge already.
    has_place: bool,
    /// Whether it has been run, and found by its clients.
    has_run: bool,
}

/// Everything of a checkpoint, whole and verified.
struct Delivery {
    images: MemoryDir,
    stored: Stored,
    /// Whether pages are left to userfaultfd.
    lazy: bool,
    digest: String,
}

impl Incoming {
    fn new(service: ServiceName, source: SystemName) -> Self {
        Self {
            service,
            source,
            operation: AsyncMutex::new(()),
            receiving: Arc::default(),
            discarded: watch::Sender::new(false),
            view: Mutex::new(View::default()),
            delivered: tokio::sync::Notify::new(),
            meter: Meter::default(),
        }
    }

    /// What a restarted agent knows: the rest is with the keeper.
    pub fn resumed(service: ServiceName, arriving: &Arriving) -> Self {
        Self::new(service, arriving.source.clone())
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is known of it. Blocks.
    pub fn state(&self, id: MigrationId, agent: &Agent) -> MigrationState {
        let service = agent.service(&self.service).ok();
        let status = service.map(|service| agent.keeper_status(&service));
        let view = self.view();
        let (phase, pending, lost) = match &status {
            Some(Ok(status)) => {
                let (phase, lost) = phase_of(status, view.phase);
                (phase, status.pages_missing, lost)
            }
            Some(Err(error)) if error.is_gone() => {
                (Phase::Failed, 0, Some("the container's keeper is lost"))
            }
            None => (Phase::Failed, 0, Some("its container is gone")),
            // It may be busy: what it holds is not known now.
            Some(Err(_)) => (
                view.phase.unwrap_or(Phase::Prepared).min(Phase::Delivered),
                0,
                None,
            ),
        };
        MigrationState {
            id,
            service: self.service.clone(),
            role: Role::Destination,
            phase,
            frozen_at_ns: None,
            bytes: self.meter.bytes(),
            pages_pending: pending,
            error: view.error.clone().or(lost.map(str::to_owned)),
        }
    }
}

/// How far an arriving service is, by what its keeper says and what this agent has seen, and why it
/// can't come any further.
fn phase_of(status: &keeper::Status, seen: Option<Phase>) -> (Phase, Option<&'static str>) {
    if status.resumed_at_ns.is_some() {
        let installing = status.pages_missing > 0;
        return match installing {
            true => (Phase::Installing, None),
            false => (Phase::Settled, None),
        };
    }
    match (&status.phase, seen) {
        (keeper::Phase::Held, _) => (Phase::Held, None),
        (keeper::Phase::Restoring, seen) => (seen.unwrap_or(Phase::Delivered), None),
        (keeper::Phase::Dead { .. }, _) | (_, Some(Phase::Held)) => (
            Phase::Failed,
            Some("what was held has died before its first instruction"),
        ),
        (_, None) => (
            Phase::Failed,
            Some("the agent was restarted while it was received"),
        ),
        (_, Some(seen)) => (seen, None),
    }
}

fn incoming(agent: &Agent, id: MigrationId) -> Result<Arc<Incoming>, Problem> {
    match agent.migration(id)? {
        Migration::Incoming(incoming) => Ok(incoming),
        Migration::Outgoing(_) => Err(problem::unknown_migration(id)),
    }
}

/// Steps 4 to 6: everything but the processes; name, address and ports are taken.
pub async fn create(
    agent: &Arc<Agent>,
    id: MigrationId,
    request: CreateRequest,
) -> Result<Created, Problem> {
    let name = request.specification.name.clone();
    let known = |migration: &Migration| match migration {
        Migration::Incoming(incoming) => Some(Arc::clone(incoming)),
        Migration::Outgoing(_) => None,
    };
    let incoming = agent.enter(id, known, || {
        let incoming = Arc::new(Incoming::new(name.clone(), request.source.clone()));
        (Arc::clone(&incoming), Migration::Incoming(incoming))
    })?;
    let _operation = incoming.operation.lock().await;
    if let Some(created) = incoming.view().created.clone() {
        return Ok(created);
    }
    let created = create_once(agent, id, &incoming, request).await;
    match &created {
        // Discarded while it was being made: nobody will ask for it any more.
        Ok(_) if agent.migration(id).is_err() => {
            if let Ok(service) = agent.service(&incoming.service) {
                services::destroy_arriving(agent, &service).await?;
            }
            return Err(problem::unknown_migration(id));
        }
        Ok(created) => incoming.view().created = Some(created.clone()),
        Err(_) => agent.forget_migration(id),
    }
    created
}

async fn create_once(
    agent: &Arc<Agent>,
    id: MigrationId,
    incoming: &Incoming,
    request: CreateRequest,
) -> Result<Created, Problem> {
    let specification = request.specification;
    crate::bundle::check(&specification).map_err(|error| {
        let detail = problem::chain(&error);
        Problem::refused(
            400,
            "specification",
            "the Specification is not acceptable",
            detail,
        )
    })?;
    let others = agent.all_services();
    let others: Vec<_> = others
        .iter()
        .map(|service| &service.record.specification)
        .collect();
    if let Some(other) = others
        .iter()
        .find(|other| other.address == specification.address)
    {
        let detail = format!("service `{}` has the address {}", other.name, other.address);
        return Err(problem::conflict(
            "address-taken",
            "the address is taken",
            detail,
        ));
    }
    services::free_ports(&specification, &others)?;
    let image_needed = !agent.images.present(&specification.image);
    let endpoints = agent.endpoints(&specification);
    let arriving = Arriving {
        migration: id,
        source: request.source,
    };
    let this = Arc::clone(agent);
    let service = blocking(move || services::prepare(&this, specification, Some(arriving))).await?;
    if let Err(problem) = services::connect(agent, &service).await {
        if let Err(error) = services::destroy_arriving(agent, &service).await {
            tracing::warn!(migration = %id, %error, "a container that was not made left something");
        }
        return Err(problem);
    }
    let tunnel = match tunnel::offer(agent, id, &service).await {
        Ok(tunnel) => tunnel,
        Err(problem) => {
            if let Err(error) = services::destroy_arriving(agent, &service).await {
                tracing::warn!(migration = %id, %error, "a container that was not made left something");
            }
            return Err(problem);
        }
    };
    let permit = random_permit()?;
    let mut view = incoming.view();
    view.permit = Some(blake3::hash(&permit));
    view.memory_bytes_max = request.memory_bytes_max;
    view.image_needed = image_needed;
    view.phase = Some(Phase::Prepared);
    Ok(Created {
        data_port: agent.data_port,
        permit: blake3::Hash::from_bytes(permit).to_hex().to_string(),
        image_needed,
        endpoints,
        tunnel,
    })
}

fn random_permit() -> Result<[u8; 32], Problem> {
    use std::io::Read;
    let mut permit = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut permit))
        .map_err(|error| problem::failed("random", "no random numbers")(&error))?;
    Ok(permit)
}

/// Accepts data paths for ever.
pub async fn listen(agent: Arc<Agent>, listener: TcpListener) -> anyhow::Result<()> {
    let config = ums_tls::server_config(&agent.identity, &[ALPN])?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: others will be closed.
                tracing::warn!(%error, "a data path can't be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (agent, config) = (Arc::clone(&agent), Arc::clone(&config));
        tokio::spawn(async move {
            if let Err(error) = serve_path(&agent, tcp, config).await {
                tracing::warn!(%from, error = problem::chain(&*error), "a data path came to nothing");
            }
            drop(place);
        });
    }
}

async fn serve_path(
    agent: &Arc<Agent>,
    tcp: tokio::net::TcpStream,
    config: Arc<tokio_rustls::rustls::ServerConfig>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (stream, peer) = ums_tls::accept(tcp, config, HANDSHAKE_PATIENCE).await?;
    let opening = receive::accept(stream, agent.config.idle());
    let pending = tokio::time::timeout(HANDSHAKE_PATIENCE, opening)
        .await
        .map_err(|_| format!("`{}` did not say in time what it is for", peer.system))??;
    let id = pending.migration();
    let incoming = match admit(agent, id, &pending.permit(), &peer.system) {
        Ok(incoming) => incoming,
        Err(reason) => {
            tracing::warn!(migration = %id, peer = %peer.system, reason, "a data path was refused");
            return Ok(pending.refuse(reason).await?);
        }
    };
    let receiving = Arc::clone(&incoming.receiving).lock_owned().await;
    let (this, of) = (Arc::clone(agent), Arc::clone(&incoming));
    let arrival = tokio::task::spawn_blocking(move || Arrival::new(&this, &of, receiving)).await?;
    let arrival = match arrival {
        Ok(arrival) => arrival,
        Err(problem) => return Ok(pending.refuse(&problem.to_string()).await?),
    };
    let memory_bytes_max = incoming.view().memory_bytes_max;
    let limits = Limits {
        memory_bytes_max,
        // What fits is for the disk to say: the preflight has looked, and a full disk is an error.
        file_bytes_max: u64::MAX,
        ..Limits::default()
    };
    let mut discarded = incoming.discarded.subscribe();
    let received = tokio::select! {
        received = pending.welcome(limits, incoming.meter.clone(), arrival) => received,
        _ = discarded.wait_for(|discarded| *discarded) => return Ok(()),
    };
    let mut view = incoming.view();
    match received {
        Ok(received) => {
            let digest = blake3::Hash::from_bytes(received.digest)
                .to_hex()
                .to_string();
            let Arrival {
                images,
                stored,
                lazy,
                ..
            } = received.sink;
            let stored = stored.ok_or("the stream was not finished")?;
            view.delivery = Some(Delivery {
                images,
                stored,
                lazy,
                digest,
            });
            view.phase = Some(Phase::Delivered);
        }
        Err(error) => {
            view.phase = Some(Phase::Failed);
            view.error = Some(problem::chain(&error));
        }
    }
    drop(view);
    incoming.delivered.notify_waiters();
    Ok(())
}

/// Lets a source in: the right system, with a permit that nobody has used.
fn admit(
    agent: &Agent,
    id: MigrationId,
    permit: &[u8; 32],
    system: &SystemName,
) -> Result<Arc<Incoming>, &'static str> {
    let incoming = incoming(agent, id).map_err(|_| "no such migration is expected here")?;
    if incoming.source != *system {
        return Err("this migration is expected from another system");
    }
    let mut view = incoming.view();
    // Hashes compare in constant time.
    if view.permit != Some(blake3::hash(permit)) {
        return Err("the permit is not valid: it was used before, or is another one's");
    }
    view.permit = None;
    view.phase = Some(Phase::Copying);
    drop(view);
    Ok(incoming)
}

/// Takes a checkpoint as it arrives.
struct Arrival {
    agent: Arc<Agent>,
    lazy: bool,
    /// Bytes of pages until the next look at the memory that is left.
    unlooked: u64,
    images: MemoryDir,
    store: Option<PageStore>,
    stored: Option<Stored>,
    info: Option<CheckpointInfo>,
    applier: Applier,
    image: Option<Staging>,
    /// Last, so that it is let go when all else is gone.
    _receiving: OwnedMutexGuard<()>,
}

impl Arrival {
    /// Blocks.
    fn new(
        agent: &Arc<Agent>,
        incoming: &Incoming,
        receiving: OwnedMutexGuard<()>,
    ) -> Result<Self, Problem> {
        let service = agent.service(&incoming.service)?;
        let status = agent
            .keeper_status(&service)
            .map_err(|error| problem::keeper(&error))?;
        let (memory_bytes_max, image_needed) = {
            let view = incoming.view();
            (view.memory_bytes_max, view.image_needed)
        };
        let memory = problem::failed("memory", "no memory for arriving pages");
        let mut roots = vec![
            (RootName::Upper, service.places.upper()),
            (
                RootName::SharedMemory,
                keeper_path(&status, &service.places.shm()),
            ),
        ];
        for volume in &service.record.specification.volumes {
            let path = service.places.volumes().join(volume.name.as_str());
            roots.push((RootName::Volume(volume.name.clone()), path));
        }
        let id = service.record.specification.image;
        let image = image_needed
            .then(|| agent.images.staging(&id))
            .transpose()
            .map_err(|error| problem::failed("images", "image store")(&error))?;
        if let Some(staging) = &image {
            roots.push((RootName::Image, staging.rootfs()));
        }
        let lazy = agent.eager_restore.is_none();
        Ok(Self {
            agent: Arc::clone(agent),
            lazy,
            unlooked: 0,
            images: MemoryDir::new(IMAGES_BYTES_MAX.saturating_add(memory_bytes_max))
                .map_err(|e| memory(&e))?,
            store: Some(PageStore::new(memory_bytes_max, lazy).map_err(|e| memory(&e))?),
            stored: None,
            info: None,
            applier: Applier::new(roots)
                .map_err(|error| problem::failed("files", "files can't be received")(&error))?,
            image,
            _receiving: receiving,
        })
    }
}

impl Arrival {
    /// Refuses before the kernel would: what it kills when memory is gone may be anybody's.
    fn look_at_memory(&mut self, bytes: u64) -> Result<(), SinkError> {
        self.unlooked += bytes;
        if self.unlooked < MEMORY_LOOK_BYTES {
            return Ok(());
        }
        self.unlooked = 0;
        let left = self.agent.memory_available()?;
        if left >= MEMORY_LEFT_MIN {
            return Ok(());
        }
        let mib = |bytes: u64| bytes >> 20;
        Err(format!(
            "there is no memory for more pages: {} MiB are left for services at the destination, \
             and {} MiB must stay; free memory there, or choose another destination",
            mib(left),
            mib(MEMORY_LEFT_MIN)
        )
        .into())
    }
}

impl Sink for Arrival {
    fn image(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), SinkError> {
        if name == INFO_NAME {
            self.info = Some(serde_json::from_slice(&bytes)?);
        }
        Ok(self.images.write(name, &bytes)?)
    }

    fn pages(&mut self, block: &Block<'_>) -> Result<(), SinkError> {
        if let Some(content) = block.content {
            self.look_at_memory(content.bytes.len() as u64)?;
        }
        let store = self.store.as_mut().ok_or("pages after the end")?;
        Ok(keep_pages(store, &self.images, block)?)
    }

    fn file(&mut self, operation: &FileOperation<'_>) -> Result<(), SinkError> {
        Ok(self.applier.apply(operation)?)
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        self.applier.finish()?;
        let mut store = self.store.take().ok_or("finished twice")?;
        let info = self
            .info
            .take()
            .ok_or("the checkpoint's own description is missing")?;
        for owner in &info.owners {
            store.open(*owner, &self.images)?;
        }
        let stored = store.finish(&self.images)?;
        self.images
            .write(INDEX_NAME, &serde_json::to_vec(&stored.index)?)?;
        self.stored = Some(stored);
        if let Some(staging) = self.image.take() {
            staging.commit()?;
        }
        Ok(())
    }
}

/// Puts arrived pages into the store.
#[doc(hidden)]
pub fn keep_pages(
    store: &mut PageStore,
    images: &MemoryDir,
    block: &Block<'_>,
) -> Result<(), ums_checkpoint::store::Error> {
    let owner = PageOwner(block.process);
    let Some(content) = block.content else {
        return Ok(());
    };
    if content.present.count_ones() == block.count {
        return store.push(owner, block.address, block.flags, content.bytes, images);
    }
    for (address, page) in block.pages() {
        match page {
            Some(bytes) => store.push(owner, address, block.flags, bytes, images)?,
            // A zero page that may be late is simply missing: a fault there reads as zero.
            None if block.flags & PE_LAZY != 0 && owner.process().is_some() => {}
            None => store.push(owner, address, block.flags, &[0; PAGE_LEN], images)?,
        }
    }
    Ok(())
}

/// Steps 11 and 12: restores the service and holds it before its first instruction.
pub async fn restore(agent: &Arc<Agent>, id: MigrationId) -> Result<Restored, Problem> {
    let incoming = incoming(agent, id)?;
    let _operation = incoming.operation.lock().await;
    if let Some(restored) = incoming.view().restored.clone() {
        return Ok(restored);
    }
    let delivery = wait_for_delivery(&incoming).await?;
    let service = agent.service(&incoming.service)?;
    let moving = moving_connections(&delivery.images)?;
    let connections = moving
        .as_ref()
        .map_or(Connections::Close, |_| Connections::Carry);
    let (this, of) = (Arc::clone(agent), service.clone());
    let digest = delivery.digest.clone();
    let restoring = blocking(move || {
        let keeper = this.keeper(&of).map_err(|error| problem::keeper(&error))?;
        let request = RestoreRequest {
            lazy_bytes: delivery.stored.lazy_bytes,
            lazy: delivery.lazy,
            connections,
        };
        let fds = [delivery.images.as_fd(), delivery.stored.lazy.as_fd()];
        let status = keeper.call(&Request::Restore(request), &fds);
        let status = status.map_err(|error| problem::keeper(&error))?;
        Ok(Restored {
            restore_us: status.restore_us.unwrap_or(0),
            digest,
        })
    });
    // Its network is made ready meanwhile, so that none of that is left for after the commit.
    let (restored, ready) = tokio::join!(restoring, stand_ready(agent, &service, moving));
    let mut view = incoming.view();
    let restored = restored.and_then(|restored| {
        view.has_place = ready?;
        Ok(restored)
    });
    match &restored {
        Ok(restored) => {
            view.phase = Some(Phase::Held);
            view.restored = Some(restored.clone());
        }
        Err(problem) => {
            view.phase = Some(Phase::Failed);
            view.error = Some(problem.to_string());
        }
    }
    restored
}

/// Which connections move along; `None` when they don't.
fn moving_connections(images: &MemoryDir) -> Result<Option<Moving>, Problem> {
    let text = match std::fs::read(images.path().join(connections::NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let failed = problem::failed("images", "the checkpoint can't be read");
            return Err(failed(&error));
        }
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let title = "the checkpoint's list of connections is malformed";
        let detail = format!("{error}; are both systems of the same version?");
        Problem::failed("images", title, detail)
    })
}

/// Makes the service's network ready for its first instruction, and says whether it has its place
/// on the bridge. Until then nothing reaches it: its kernel would answer for a copy that may never
/// run.
async fn stand_ready(
    agent: &Arc<Agent>,
    service: &Service,
    moving: Option<Moving>,
) -> Result<bool, Problem> {
    let failed = problem::failed("network", "the service's network can't be made ready");
    let (name, netns) = (
        &service.record.specification.name,
        services::netns(agent, service).await?,
    );
    let held = agent.network.direct(&netns, Packets::Hold).await;
    held.map_err(|error| failed(&error))?;
    match moving {
        Some(moving) => {
            let sorted = moving.sort(&agent.config.system);
            let carried = agent
                .network
                .carry(&netns, &sorted.carried, &sorted.home)
                .await;
            carried.map_err(|error| failed(&error))?;
        }
        // The source works on connections: the tunnel that it was offered is of no use.
        None => tunnel::end_inbound(agent, service).await?,
    }
    if frontman::is_there(agent, name).await? {
        // It has been here before, and its Frontman has its place until the commit.
        return Ok(false);
    }
    services::join(agent, service).await?;
    services::publish(agent, service).await.map(|()| true)
}

/// The delivery, which may be a moment behind what the source was told.
async fn wait_for_delivery(incoming: &Incoming) -> Result<Delivery, Problem> {
    let wait = async {
        loop {
            let notified = incoming.delivered.notified();
            {
                let mut view = incoming.view();
                if let Some(delivery) = view.delivery.take() {
                    return Ok(delivery);
                }
                if let Some(error) = &view.error {
                    return Err(Problem::failed(
                        "delivery",
                        "the checkpoint did not arrive",
                        error,
                    ));
                }
            }
            notified.await;
        }
    };
    tokio::time::timeout(DELIVERY_PATIENCE, wait).await.unwrap_or_else(|_| {
        let detail = "the checkpoint has not arrived whole: this agent was restarted meanwhile, or \
                      the source was not finished; migrate again";
        Err(problem::conflict("not-delivered", "nothing to restore", detail))
    })
}

/// Step 13, after the commit: the service executes.
pub async fn run(agent: &Arc<Agent>, id: MigrationId) -> Result<Running, Problem> {
    let asked_at = monotonic_ns();
    let incoming = incoming(agent, id)?;
    let _operation = incoming.operation.lock().await;
    let service = agent.service(&incoming.service);
    let arrived_before = |service: &Service| !is_arriving(service, id);
    if incoming.view().has_run || service.as_ref().is_ok_and(arrived_before) {
        // Whatever became of it since: the answer to that was lost.
        return Ok(Running { resume_us: 0 });
    }
    let service = service?;
    let (this, of) = (Arc::clone(agent), service.clone());
    let resuming = blocking(move || {
        this.ask_keeper(&of, &Request::Resume)
            .map_err(|error| problem::keeper(&error))
    });
    let has_place = incoming.view().has_place;
    let resumed = if has_place {
        let (resumed, opened) = tokio::join!(resuming, open_to_clients(agent, &service));
        opened.and(resumed)
    } else {
        // One that comes home: no packet of the clients that it finds again may be lost between
        // its Frontman and itself. From the commit on its kernel may answer for it.
        open_to_clients(agent, &service).await?;
        services::join(agent, &service).await?;
        let (resumed, published) = tokio::join!(resuming, services::publish(agent, &service));
        published.and(resumed)
    };
    let status = resumed?;
    let resume_ns = status
        .resumed_at_ns
        .unwrap_or(asked_at)
        .saturating_sub(asked_at);
    incoming.view().has_run = true;
    if let Err(problem) = arrived(agent, &incoming.service).await {
        // It runs, and clients wait for that to be told. It is written before the migration is settled.
        tracing::warn!(migration = %id, ?problem, "that the service has arrived can't be written yet");
    }
    retire_frontman(agent, id, &incoming.service);
    Ok(Running {
        resume_us: resume_ns / 1000,
    })
}

/// The service has its endpoint back; whoever stood in for it here has only old connections left. It
/// sends what it has first, for which nobody waits.
fn retire_frontman(agent: &Arc<Agent>, id: MigrationId, name: &ServiceName) {
    let (agent, name) = (Arc::clone(agent), name.clone());
    tokio::spawn(async move {
        if let Err(error) = frontman::retire(&agent, &name, YIELD_DRAIN).await {
            tracing::warn!(migration = %id, %error, "an old Frontman did not retire");
        }
    });
}

/// Writes down that a service is not on its way here any more.
async fn arrived(agent: &Arc<Agent>, name: &ServiceName) -> Result<(), Problem> {
    let (this, name) = (Arc::clone(agent), name.clone());
    let update = move || {
        this.update_record(&name, |record| {
            record.arriving = None;
            Ok(())
        })
    };
    blocking(update).await.map(drop)
}

/// Lets packets reach the service.
async fn open_to_clients(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    let netns = services::netns(agent, service).await?;
    let opened = agent.network.direct(&netns, Packets::Pass).await;
    opened.map_err(|error| problem::failed("network", "clients can't reach the service")(&error))
}

/// Before the commit: nothing is left of it.
pub async fn discard(agent: &Arc<Agent>, id: MigrationId) -> Result<(), Problem> {
    let Ok(incoming) = incoming(agent, id) else {
        // A `create` that this has overtaken must find that it is over.
        if agent.migration(id).is_err() {
            agent.forget_migration(id);
        }
        return Ok(());
    };
    let _made = made(&incoming).await?;
    let service = agent.service(&incoming.service).ok();
    if let Some(service) = service.filter(|service| is_arriving(service, id)) {
        let (this, of) = (Arc::clone(agent), service.clone());
        let status = blocking(move || Ok(this.keeper_status(&of).ok())).await?;
        if status.is_some_and(|status| status.resumed_at_ns.is_some()) {
            let detail = format!("migration {id} was committed: the service runs here");
            return Err(problem::conflict(
                "committed",
                "too late to discard",
                detail,
            ));
        }
        stop_receiving(&incoming).await?;
        services::destroy_arriving(agent, &service).await?;
    } else if agent.service(&incoming.service).is_ok() {
        let detail = format!("migration {id} was committed: the service runs here");
        return Err(problem::conflict(
            "committed",
            "too late to discard",
            detail,
        ));
    }
    agent.forget_migration(id);
    Ok(())
}

/// Waits for a container that is still being made: what is half there can't be found, and would be
/// left behind. Nobody makes it while the answer is kept.
async fn made(incoming: &Incoming) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, Problem> {
    if incoming.view().created.is_some() {
        return Ok(None);
    }
    let made = tokio::time::timeout(RECEIVING_PATIENCE, incoming.operation.lock()).await;
    made.map(Some).map_err(|_| Problem {
        retry: true,
        ..Problem::failed(
            "creating",
            "the container is still being made",
            "it is discarded once it is there: try again",
        )
    })
}

/// Ends the data path and waits until it writes nothing more.
async fn stop_receiving(incoming: &Incoming) -> Result<(), Problem> {
    incoming.discarded.send_replace(true);
    let ended = tokio::time::timeout(RECEIVING_PATIENCE, incoming.receiving.lock()).await;
    ended.map(drop).map_err(|_| Problem {
        retry: true,
        ..Problem::failed(
            "receiving",
            "what arrives is still being written",
            "the disk does not take what it was given",
        )
    })
}

fn is_arriving(service: &Service, id: MigrationId) -> bool {
    service
        .record
        .arriving
        .as_ref()
        .is_some_and(|arriving| arriving.migration == id)
}

/// After the last page is in: the working state goes, the service stays.
pub async fn settle(agent: &Arc<Agent>, id: MigrationId) -> Result<(), Problem> {
    let Ok(incoming) = incoming(agent, id) else {
        return Ok(());
    };
    let (this, of) = (Arc::clone(agent), Arc::clone(&incoming));
    let state = blocking(move || Ok(of.state(id, &this))).await?;
    if state.phase == Phase::Installing {
        let detail = format!("{} pages are still to be installed", state.pages_pending);
        return Err(Problem {
            retry: true,
            ..problem::conflict("installing", "not settled yet", detail)
        });
    }
    let service = agent.service(&incoming.service);
    if service.is_ok_and(|service| is_arriving(&service, id)) {
        arrived(agent, &incoming.service).await?;
    }
    agent.forget_migration(id);
    Ok(())
}

#[cfg(test)]
mod test;
