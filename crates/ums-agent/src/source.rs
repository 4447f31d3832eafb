//! The source side of a migration: everything from the shut gate to the deleted source.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, watch};
use ums_api::agent::{
    CheckpointRequest, Checkpointed, DataEndpoint, MigrationState, OpenRequest, Phase, Role,
};
use ums_api::problem::{Effect, Fault, Problem};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::criu::page_server;
use ums_checkpoint::keeper::client;
use ums_checkpoint::keeper::protocol::{
    self as keeper, CheckpointInfo, DumpRequest, INFO_NAME, Request, Status,
};
use ums_checkpoint::memory_dir::MemoryDir;
use ums_checkpoint::tree;
use ums_core::id::{MigrationId, ServiceName};
use ums_core::technique::Technique;
use ums_sync::Meter;
use ums_sync::files::{self, Always, Manifest, Tree};
use ums_sync::frame::RootName;
use ums_sync::send::{ImageWriter, PageWriter, SendError, Sender, Settings};

use crate::agent::{Agent, Migration, Service};
use crate::container::{keeper_path, netns_path};
use crate::services::{self, Keep, blocking, destroy, thaw_without_keeper};
use crate::{bundle, tunnel};
use ums_node::packets::Policy;
use ums_node::{inspect, problem};

mod freeze;

/// Application protocol of the data path.
pub const ALPN: &[u8] = b"ums-data/1";
/// How long the connection to the destination's data path may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Room for CRIU's metadata images, bytes: they grow with processes, mappings and deleted files.
const IMAGES_BYTES_MAX: u64 = 1 << 30;
/// Largest piece of a metadata image in memory at once is the whole image; ghost files are the
/// largest of them and are bounded by CRIU's `ghost_limit`.
const IMAGE_NAMES_LEFT: [&str; 2] = ["dump.log", "stats-dump"];
/// How long a dump may take to end after its page socket was closed.
const DUMP_END_PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two looks whether the pages of a service are in.
const PAGES_LOOK: Duration = Duration::from_millis(10);
/// Pause between two looks whether it has.
const DUMP_END_LOOK: Duration = Duration::from_millis(5);
/// How long a service may take to accept the connections that wait for it. One that is stuck shall
/// not be waited for: what it has not accepted by then is reset.
const ACCEPT_WITHIN: Duration = Duration::from_millis(300);
/// Pause between two looks whether it has.
const ACCEPT_LOOK: Duration = Duration::from_millis(2);
/// How long a service may take to read the datagrams that wait for it. One that is busy, or never reads
/// a socket, loses them, as it would without a migration when its queue is full.
const READ_WITHIN: Duration = Duration::from_millis(30);
/// Pause between two looks whether it has.
const READ_LOOK: Duration = Duration::from_millis(1);

/// What we hold of a migration that we send.
pub struct Outgoing {
    service: ServiceName,
    /// One operation at a time; a repetition finds what the first one left.
    operation: AsyncMutex<()>,
    /// Set once it is abandoned: what is under way ends, and nothing new begins.
    abandoned: watch::Sender<bool>,
    view: Mutex<View>,
    meter: Meter,
}

#[derive(Default)]
struct View {
    phase: Option<Phase>,
    error: Option<String>,
    path: Option<DataPath>,
    /// Where a tunnel for established connections would end.
    tunnel: Option<DataEndpoint>,
    /// What becomes of established connections.
    connections: Option<keeper::Connections>,
    checkpointed: Option<Checkpointed>,
}

struct DataPath {
    sender: Sender,
    manifest: Manifest,
}

impl Outgoing {
    /// Nothing done yet, or nothing left of it but the shut gate after a restart.
    pub fn new(service: ServiceName) -> Self {
        Self {
            service,
            operation: AsyncMutex::new(()),
            abandoned: watch::Sender::new(false),
            view: Mutex::new(View::default()),
            meter: Meter::default(),
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Where a tunnel for established connections would end, once the data path is open.
    pub(crate) fn tunnel(&self) -> Option<DataEndpoint> {
        self.view().tunnel.clone()
    }

    /// What becomes of established connections is known once there is a Frontman.
    pub(crate) fn decide_connections(&self, connections: keeper::Connections) {
        self.view().connections = Some(connections);
    }

    fn enter_phase(&self, phase: Phase) {
        self.view().phase = Some(phase);
    }

    fn fail(&self, problem: &Problem) {
        let mut view = self.view();
        view.phase = Some(Phase::Failed);
        view.error = Some(problem.to_string());
        view.path = None;
    }

    /// Does `work` unless the migration is abandoned, before or meanwhile.
    async fn unless_abandoned<T>(
        &self,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let mut abandoned = self.abandoned.subscribe();
        tokio::select! {
            biased;
            _ = abandoned.wait_for(|abandoned| *abandoned) => {
                let detail = "the migration was abandoned meanwhile";
                Err(problem::conflict("abandoned", "abandoned", detail))
            }
            result = work => result,
        }
    }

    /// What is known of it. Blocks.
    pub fn state(&self, id: MigrationId, agent: &Agent) -> MigrationState {
        let status = agent
            .service(&self.service)
            .ok()
            .and_then(|s| agent.keeper_status(&s).ok());
        let view = self.view();
        MigrationState {
            id,
            service: self.service.clone(),
            role: Role::Source,
            phase: view.phase.unwrap_or(Phase::Prepared),
            frozen_at_ns: status.and_then(|status| status.frozen_at_ns),
            bytes: self.meter.bytes(),
            pages_pending: 0,
            error: view.error.clone(),
        }
    }
}

pub(crate) fn outgoing(agent: &Agent, id: MigrationId) -> Result<Arc<Outgoing>, Problem> {
    match agent.migration(id)? {
        Migration::Outgoing(outgoing) => Ok(outgoing),
        Migration::Incoming(_) => Err(problem::unknown_migration(id)),
    }
}

/// The service of a migration, which must have its gate shut by it.
pub(crate) fn gated(
    agent: &Agent,
    id: MigrationId,
    name: &ServiceName,
) -> Result<Service, Problem> {
    let service = agent.service(name)?;
    if service.record.gate == Some(id) {
        return Ok(service);
    }
    let detail = format!("the gate of `{name}` is not shut by migration {id}");
    Err(problem::conflict(
        "not-blocked",
        "the service is not blocked",
        detail,
    ))
}

/// Step 8: control messages are refused from now on.
pub async fn block(agent: &Arc<Agent>, id: MigrationId, name: ServiceName) -> Result<(), Problem> {
    let this = Arc::clone(agent);
    blocking(move || {
        this.service(&name)?;
        remember(&this, id, &name)?;
        this.update_record(&name, |record| match record.gate {
            Some(other) if other != id => {
                let detail =
                    format!("migration {other} is moving it: wait for its end or abort it");
                Err(problem::conflict(
                    "migrating",
                    "the service is migrating",
                    detail,
                ))
            }
            _ => {
                record.gate = Some(id);
                Ok(())
            }
        })
        .map(drop)
    })
    .await
}

fn remember(agent: &Agent, id: MigrationId, name: &ServiceName) -> Result<Arc<Outgoing>, Problem> {
    let known = |migration: &Migration| match migration {
        Migration::Outgoing(outgoing) => Some(Arc::clone(outgoing)),
        Migration::Incoming(_) => None,
    };
    agent.enter(id, known, || {
        let outgoing = Arc::new(Outgoing::new(name.clone()));
        (Arc::clone(&outgoing), Migration::Outgoing(outgoing))
    })
}

/// Compensation of [`block`]. The migration is over for this agent.
pub async fn unblock(
    agent: &Arc<Agent>,
    id: MigrationId,
    name: ServiceName,
) -> Result<(), Problem> {
    if let Ok(outgoing) = outgoing(agent, id) {
        let path = outgoing.view().path.take();
        if let Some(path) = path {
            path.sender.abandon("the migration was abandoned").await;
        }
    }
    let this = Arc::clone(agent);
    blocking(move || {
        match this.update_record(&name, |record| {
            record.gate = record.gate.filter(|gate| *gate != id);
            Ok(())
        }) {
            Err(problem) if problem.status != 404 => return Err(problem),
            _ => {}
        }
        this.forget_migration(id);
        Ok(())
    })
    .await
}

/// Step 7: opens the data path and copies files for the first time, while the service runs.
pub async fn open(
    agent: &Arc<Agent>,
    id: MigrationId,
    request: OpenRequest,
) -> Result<(), Problem> {
    let outgoing = remember(agent, id, &request.service)?;
    let _operation = outgoing.operation.lock().await;
    if outgoing.view().path.is_some() || outgoing.view().checkpointed.is_some() {
        return Ok(());
    }
    outgoing.enter_phase(Phase::Copying);
    outgoing.view().tunnel.clone_from(&request.tunnel);
    match outgoing
        .unless_abandoned(open_path(agent, &outgoing, id, request))
        .await
    {
        Ok(path) => {
            outgoing.view().path = Some(path);
            Ok(())
        }
        Err(problem) => {
            outgoing.fail(&problem);
            // It had no effect, so nobody comes to undo it.
            agent.forget_migration(id);
            Err(problem)
        }
    }
}

async fn open_path(
    agent: &Arc<Agent>,
    outgoing: &Outgoing,
    id: MigrationId,
    request: OpenRequest,
) -> Result<DataPath, Problem> {
    let service = agent.service(&request.service)?;
    all_pages_in(agent, &service).await?;
    let permit = permit_bytes(&request.endpoint.permit)?;
    let config = ums_tls::client_config(&agent.identity, &[ALPN]).map_err(|error| {
        problem::failed("tls", "this system's certificates can't be used")(&error)
    })?;
    let endpoint = &request.endpoint;
    let stream = ums_tls::connect(endpoint.address, &endpoint.system, config, CONNECT_PATIENCE)
        .await
        .map_err(|error| not_connected(&error))?;
    let settings = Settings {
        bandwidth: agent
            .config
            .bandwidth_bytes
            .and_then(std::num::NonZeroU64::new),
        idle: agent.config.idle(),
        meter: outgoing.meter.clone(),
    };
    let sender = Sender::open(stream, id, permit, settings)
        .await
        .map_err(|e| at_peer(&e))?;
    let (this, of, mut writer) = (Arc::clone(agent), service, sender.files());
    let send_image = request.send_image;
    let manifest = blocking(move || {
        let status = this
            .keeper_status(&of)
            .map_err(|error| problem::keeper(&error))?;
        let tree = tree(&this, &of, &status, send_image);
        files::first_pass(&tree, &mut writer).map_err(|error| at_files(&error))
    })
    .await?;
    sender.settle().await.map_err(|error| at_peer(&error))?;
    Ok(DataPath { sender, manifest })
}

/// Waits until a service that has just arrived has all its pages: what is still to be installed would
/// be in no checkpoint. It runs meanwhile. While pages come in there is no end to that; when none does
/// for the length of the data path's patience, it is given up.
async fn all_pages_in(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    let (mut fewest, mut since) = (u64::MAX, Instant::now());
    loop {
        let (this, of) = (Arc::clone(agent), service.clone());
        let status = blocking(move || this.keeper_status(&of).map_err(|e| problem::keeper(&e)));
        let missing = status.await?.pages_missing;
        if missing == 0 {
            return Ok(());
        }
        if missing < fewest {
            (fewest, since) = (missing, Instant::now());
        }
        if since.elapsed() > agent.config.idle() {
            let detail = format!(
                "{missing} pages of its last move are still to be installed, and none came in for \
                 {} s: the service or the system may have no memory left; try again",
                agent.config.idle().as_secs()
            );
            return Err(Problem {
                retry: true,
                ..problem::conflict("installing", "the service has only just arrived", detail)
            });
        }
        tokio::time::sleep(PAGES_LOOK).await;
    }
}

/// The trees of a service, as the agent reaches them.
fn tree(agent: &Agent, service: &Service, status: &Status, with_image: bool) -> Tree {
    let places = &service.places;
    let mut roots = Vec::new();
    if with_image {
        let image = agent.images.rootfs(&service.record.specification.image);
        roots.push((RootName::Image, image));
    }
    roots.push((RootName::Upper, places.upper()));
    roots.push((RootName::SharedMemory, keeper_path(status, &places.shm())));
    for volume in &service.record.specification.volumes {
        let path = places.volumes().join(volume.name.as_str());
        roots.push((RootName::Volume(volume.name.clone()), path));
    }
    Tree { roots }
}

/// A permit from its text.
#[doc(hidden)]
pub fn permit_bytes(text: &str) -> Result<[u8; 32], Problem> {
    blake3::Hash::from_hex(text)
        .map(|hash| *hash.as_bytes())
        .map_err(|_| {
            let detail = "a permit is 64 hexadecimal digits";
            Problem::refused(400, "permit", "malformed permit", detail)
        })
}

fn at_peer(error: &(dyn std::error::Error + 'static)) -> Problem {
    let detail = problem::chain(error);
    Problem {
        fault: Fault::Peer,
        effect: Effect::None,
        status: 502,
        ..Problem::failed(
            "data-path",
            "the data path to the destination failed",
            detail,
        )
    }
}

fn not_connected(error: &ums_tls::TlsError) -> Problem {
    let problem = at_peer(error);
    let detail = format!(
        "{}; see whether its agent runs there (`ums doctor`), and whether a firewall lets its data \
         port through; then migrate again",
        problem.detail
    );
    Problem { detail, ..problem }
}

fn at_files(error: &files::FileError) -> Problem {
    match error {
        files::FileError::Send(error) => at_peer(error),
        other => problem::failed("files", "the service's files can't be sent")(other),
    }
}

/// Steps 8 to 10: freezes the service, checkpoints it while everything streams, and returns when
/// the destination has verified that it has all of it.
pub async fn checkpoint(
    agent: &Arc<Agent>,
    id: MigrationId,
    request: CheckpointRequest,
) -> Result<Checkpointed, Problem> {
    if request.technique != Technique::StopAndCopy {
        let detail = "this agent moves memory by stop-and-copy alone";
        return Err(Problem::refused(
            400,
            "technique",
            "technique not available",
            detail,
        ));
    }
    let outgoing = outgoing(agent, id)?;
    let _operation = outgoing.operation.lock().await;
    if let Some(done) = outgoing.view().checkpointed.clone() {
        return Ok(done);
    }
    let service = gated(agent, id, &request.service)?;
    let Some(path) = outgoing.view().path.take() else {
        let detail = "the data path is not open: the agent was restarted since, or never opened it";
        return Err(problem::conflict("not-open", "no data path", detail));
    };
    outgoing.enter_phase(Phase::Checkpointing);
    let decided = outgoing.view().connections;
    let connections = decided.unwrap_or(keeper::Connections::Close);
    let result = outgoing
        .unless_abandoned(freeze_and_send(agent, &service, path, connections))
        .await;
    match &result {
        Ok(done) => {
            let mut view = outgoing.view();
            view.phase = Some(Phase::Delivered);
            view.checkpointed = Some(done.clone());
        }
        Err(problem) => outgoing.fail(problem),
    }
    result
}

async fn freeze_and_send(
    agent: &Arc<Agent>,
    service: &Service,
    path: DataPath,
    connections: keeper::Connections,
) -> Result<Checkpointed, Problem> {
    let DataPath { sender, manifest } = path;
    let (this, of) = (Arc::clone(agent), service.clone());
    let status = blocking(move || this.keeper_status(&of).map_err(|e| problem::keeper(&e))).await?;
    if let keeper::Phase::Dead { code } = status.phase {
        return Err(problem::exited(&service.record.specification.name, code));
    }
    let images = MemoryDir::new(IMAGES_BYTES_MAX);
    let images = Arc::new(images.map_err(|e| {
        problem::failed("images", "there is no memory for the checkpoint's images")(&e)
    })?);
    let (attendant, gate) = freeze::pair()?;
    // In a task of its own: whatever becomes of this, packets pass again before the service runs on.
    let attending = freeze::attend(Arc::clone(agent), netns_path(&status), attendant);
    let attending = tokio::spawn(attending);
    let sending = PageSending {
        cgroup: bundle::cgroup_path(&agent.config.system, &service.record.specification.name),
        images: sender.images(),
        pages: sender.pages(),
    };
    let dumping = dump(agent, service, &images, sending, (connections, gate));
    let (attended, dumped) = tokio::join!(attending, dumping);
    let (status, moving) = freeze::both(dumped, attended)?;
    if connections == keeper::Connections::Carry {
        freeze::tell_destination(agent, service, &status, &images, &moving).await?;
    }
    let (this, of) = (Arc::clone(agent), service.clone());
    let (mut files, metadata) = (sender.files(), sender.images());
    let at = status.clone();
    blocking(move || {
        send_images(&images, &metadata)?;
        let tree = tree(&this, &of, &at, false);
        let always = changing_files(&of, &at)?;
        files::second_pass(&tree, &manifest, &always, &mut files).map_err(|e| at_files(&e))
    })
    .await?;
    let delivered = sender.finish().await.map_err(|error| at_peer(&error))?;
    Ok(Checkpointed {
        frozen_at_ns: status.frozen_at_ns.unwrap_or(0),
        dumped_at_ns: status.dumped_at_ns.unwrap_or(0),
        delivered_at_ns: monotonic_ns(),
        digest: hex(&delivered.digest),
        bytes: delivered.bytes,
        rounds: 0,
    })
}

fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// Nanoseconds of CLOCK_MONOTONIC, as the keeper counts them.
pub fn monotonic_ns() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// Has the keeper checkpoint the container, and sends its pages while CRIU reads them.
async fn dump(
    agent: &Arc<Agent>,
    service: &Service,
    images: &Arc<MemoryDir>,
    to: PageSending,
    (connections, gate): (keeper::Connections, OwnedFd),
) -> Result<Status, Problem> {
    let pair = UnixStream::pair();
    let (ours, theirs) =
        pair.map_err(|error| problem::failed("socket", "no socket can be made")(&error))?;
    let sending = tokio::task::spawn_blocking(move || send_pages(ours, to));
    let (this, of, at) = (Arc::clone(agent), service.clone(), Arc::clone(images));
    let dumped = blocking(move || {
        let keeper = this.keeper(&of).map_err(|error| problem::keeper(&error))?;
        let fds = [at.as_fd(), theirs.as_fd(), gate.as_fd()];
        let freeze_ms = this.config.freeze_seconds.saturating_mul(1000);
        let request = Request::Dump(DumpRequest {
            connections,
            freeze_ms,
        });
        keeper
            .call(&request, &fds)
            .map_err(|error| problem::keeper(&error))
    })
    .await;
    let sent = sending.await.map_err(|error| problem::panicked(&error))?;
    // Where the data path broke, CRIU only knows that its page socket did: the cause comes first.
    let owners = match (sent, &dumped) {
        (Ok(owners), _) => owners,
        (Err(PageError::Send(error)), _) => return Err(at_peer(&error)),
        (Err(PageError::Criu(_)), Err(problem)) => return Err(problem.clone()),
        (Err(PageError::Criu(error)), Ok(_)) => {
            return Err(problem::failed("pages", "pages can't be read")(&error));
        }
    };
    let status = dumped?;
    let info = std::fs::read(images.path().join(INFO_NAME)).map_err(|error| error.to_string());
    let info = info.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
    let info: CheckpointInfo =
        info.map_err(|error| Problem::failed("images", "the checkpoint is not whole", error))?;
    let info = serde_json::to_vec(&CheckpointInfo { owners, ..info }).unwrap_or_default();
    images.write(INFO_NAME, &info).map_err(|e| {
        problem::failed("images", "there is no memory for the checkpoint's images")(&e)
    })?;
    Ok(status)
}

#[derive(Debug)]
enum PageError {
    Send(SendError),
    Criu(page_server::Error),
}

/// Where pages go, and whose they are.
struct PageSending {
    cgroup: String,
    images: ImageWriter,
    pages: PageWriter,
}

impl PageSending {
    /// Who is whose child goes ahead of the pages: the destination keeps what they share.
    fn tell_parents(&self) -> Result<(), SendError> {
        let Ok(cgroup) = Cgroup::at(&self.cgroup) else {
            // CRIU will not find it either.
            return Ok(());
        };
        let parents = tree::parents(&cgroup);
        if parents.is_empty() {
            return Ok(());
        }
        let text = serde_json::to_vec(&parents).unwrap_or_default();
        self.images.image(tree::TREE_NAME, &text)
    }
}

fn send_pages(
    mut stream: UnixStream,
    mut to: PageSending,
) -> Result<std::collections::BTreeSet<page_server::PageOwner>, PageError> {
    let mut broken = None;
    let mut told = false;
    let served = page_server::serve(&mut stream, |run, stream| {
        let (owner, address, flags) = (run.owner.0, run.address, run.flags);
        // CRIU has stopped every process by now: there will be no other child.
        let parents = match std::mem::replace(&mut told, true) {
            false => to.tell_parents(),
            true => Ok(()),
        };
        let sent = parents.and_then(|()| {
            to.pages
                .write_from(owner, address, flags, run.pages, stream)
        });
        sent.map_err(|error| {
            let text = error.to_string();
            broken = Some(error);
            page_server::Error::Sink(text)
        })
    });
    served.map_err(|error| match broken {
        // Reading from CRIU failed, not writing to the destination.
        Some(SendError::Read { .. }) | None => PageError::Criu(error),
        Some(error) => PageError::Send(error),
    })
}

fn send_images(images: &MemoryDir, writer: &ums_sync::send::ImageWriter) -> Result<(), Problem> {
    let failed = problem::failed("images", "the checkpoint can't be read");
    for (name, _) in images.files().map_err(|error| failed(&error))? {
        if IMAGE_NAMES_LEFT.contains(&name.as_str()) {
            continue;
        }
        let bytes = std::fs::read(images.path().join(&name)).map_err(|error| failed(&error))?;
        writer
            .image(&name, &bytes)
            .map_err(|error| at_peer(&error))?;
    }
    Ok(())
}

/// Files that may have changed without a trace in their times, by tree and path in it.
fn changing_files(service: &Service, status: &Status) -> Result<Always, Problem> {
    let Some(init) = status.init_pid else {
        return Ok(Always::new());
    };
    let failed = problem::failed("inspect", "the service can't be inspected");
    let pids = inspect::processes(init).map_err(|error| failed(&error))?;
    let files = inspect::shared_writable_files(&pids).map_err(|error| failed(&error))?;
    Ok(files.iter().map(|path| locate(service, path)).collect())
}

/// In which tree a path of the container is.
fn locate(service: &Service, path: &Path) -> (RootName, PathBuf) {
    let volumes = &service.record.specification.volumes;
    let inside = volumes.iter().filter_map(|volume| {
        let rest = path.strip_prefix(&volume.path).ok()?;
        Some((
            volume.path.len(),
            RootName::Volume(volume.name.clone()),
            rest,
        ))
    });
    let shm = path.strip_prefix("/dev/shm").ok();
    let shm = shm.map(|rest| ("/dev/shm".len(), RootName::SharedMemory, rest));
    match inside.chain(shm).max_by_key(|(len, _, _)| *len) {
        Some((_, root, rest)) => (root, rest.to_owned()),
        None => (
            RootName::Upper,
            path.strip_prefix("/").unwrap_or(path).to_owned(),
        ),
    }
}

/// Compensation of [`checkpoint`] and [`open`]: what is under way ends, and the service runs on as
/// if nothing had been asked.
pub async fn thaw(agent: &Arc<Agent>, id: MigrationId, name: ServiceName) -> Result<(), Problem> {
    if let Ok(outgoing) = outgoing(agent, id) {
        outgoing.abandoned.send_replace(true);
        let _operation = outgoing.operation.lock().await;
        let path = outgoing.view().path.take();
        if let Some(path) = path {
            path.sender.abandon("the migration was abandoned").await;
        }
    }
    let service = match agent.service(&name) {
        Ok(service) if service.record.gate.is_none_or(|gate| gate == id) => service,
        Ok(_) | Err(_) => return Ok(()),
    };
    if thaw_without_keeper(agent, &service).await? {
        return Ok(());
    }
    let (this, of) = (Arc::clone(agent), service.clone());
    let status = blocking(move || after_dump(&this, &of)).await?;
    if !matches!(status.phase, keeper::Phase::Frozen | keeper::Phase::Running) {
        return Ok(());
    }
    // First, or the service would begin with packets lost; but it must run whatever comes of it.
    let netns = netns_path(&status);
    let released = agent.packets.direct(&netns, Policy::Pass).await;
    let (this, of) = (Arc::clone(agent), service);
    blocking(move || {
        let thawed = this.ask_keeper(&of, &Request::Thaw);
        thawed.map_err(|error| problem::keeper(&error))
    })
    .await?;
    released.map_err(|error| problem::failed("network", "packets can't be released")(&error))
}

/// The keeper's status once no dump is under way: one that is is ended.
fn after_dump(agent: &Agent, service: &Service) -> Result<Status, Problem> {
    // A keeper of an earlier version does not know the request, and closes the connection: its dump
    // ends by itself, because nobody takes its pages any more.
    if let Err(error @ client::Error::Failed { .. }) = agent.ask_keeper(service, &Request::Cut) {
        return Err(problem::keeper(&error));
    }
    let end = Instant::now() + DUMP_END_PATIENCE;
    loop {
        let status = agent
            .keeper_status(service)
            .map_err(|error| problem::keeper(&error))?;
        if status.phase != keeper::Phase::Dumping {
            return Ok(status);
        }
        if Instant::now() > end {
            let detail = "CRIU does not end although nobody takes its pages: try again";
            return Err(Problem::failed(
                "dump",
                "the checkpoint does not end",
                detail,
            ));
        }
        std::thread::sleep(DUMP_END_LOOK);
    }
}

/// Step 15: the frozen source is destroyed without executing another instruction.
pub async fn delete_source(
    agent: &Arc<Agent>,
    id: MigrationId,
    name: ServiceName,
) -> Result<(), Problem> {
    let Ok(service) = agent.service(&name) else {
        agent.forget_migration(id);
        return Ok(());
    };
    if service.record.gate != Some(id) {
        // It was deleted, and another service has its name since.
        return Ok(());
    }
    if tunnel::is_there(agent, &name).await? {
        if let Some(netns) = services::remaining_netns(agent, &service).await
            && let Err(error) = agent.packets.forget_connections(&netns).await
        {
            tracing::warn!(migration = %id, %error, "the old namespace will stay for minutes");
        }
        destroy(agent, &service, Keep::Network).await?;
        agent.forget_migration(id);
        return Ok(());
    }
    let (this, of) = (Arc::clone(agent), service.clone());
    let status = blocking(move || this.keeper_if_any(&of)).await?;
    let netns = status.as_ref().map(netns_path);
    let address = service.record.address().on_bridge;
    // Clients with a connection from before learn that it is over; else they would wait.
    let dropped = agent
        .network
        .drop_connections(&name, address, netns.as_deref())
        .await;
    dropped.map_err(|error| problem::failed("network", "connections can't be reset")(&error))?;
    destroy(agent, &service, Keep::Endpoints).await?;
    agent.forget_migration(id);
    Ok(())
}
