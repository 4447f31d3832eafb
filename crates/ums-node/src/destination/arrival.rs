//! Step 9: the data path. Who is let in, and where what arrives is kept.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use ums_api::agent::Phase;
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::criu::page_server::{PAGE_LEN, PE_LAZY, PageOwner};
use ums_checkpoint::keeper::protocol::{CheckpointInfo, INDEX_NAME, INFO_NAME, Request};
use ums_checkpoint::memory_dir::MemoryDir;
use ums_checkpoint::store::away::{AWAY_NAME, STAYS_AWAY};
use ums_checkpoint::store::{PageStore, READ_RUNNING, Stored, index};
use ums_checkpoint::tree::{Parents, TREE_NAME};
use ums_core::converge::ROUNDS_MAX;
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_sync::files::Applier;
use ums_sync::frame::RootName;
use ums_sync::receive::{self, Block, FileOperation, Limits, Sink, SinkError};
use ums_tls::ALPN_DATA;

use crate::host::Receiving;
use crate::migration::{Delivery, Incoming};
use crate::node::Node;
use crate::problem;

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

/// Accepts data paths for ever.
pub async fn listen(node: Arc<Node>, listener: TcpListener) -> anyhow::Result<()> {
    let config = ums_tls::server_config(&node.identity, &[ALPN_DATA])?;
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
        let (node, config) = (Arc::clone(&node), Arc::clone(&config));
        tokio::spawn(async move {
            if let Err(error) = serve_path(&node, tcp, config).await {
                tracing::warn!(%from, error = problem::chain(&*error), "a data path came to nothing");
            }
            drop(place);
        });
    }
}

async fn serve_path(
    node: &Arc<Node>,
    tcp: tokio::net::TcpStream,
    config: Arc<tokio_rustls::rustls::ServerConfig>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (stream, peer) = ums_tls::accept(tcp, config, HANDSHAKE_PATIENCE).await?;
    let opening = receive::accept(stream, node.settings.idle);
    let pending = tokio::time::timeout(HANDSHAKE_PATIENCE, opening)
        .await
        .map_err(|_| format!("`{}` did not say in time what it is for", peer.system))??;
    let id = pending.migration();
    let incoming = match admit(node, id, &pending.permit(), &peer.system) {
        Ok(incoming) => incoming,
        Err(reason) => {
            tracing::warn!(migration = %id, peer = %peer.system, reason, "a data path was refused");
            return Ok(pending.refuse(reason).await?);
        }
    };
    let receiving = Arc::clone(&incoming.receiving).lock_owned().await;
    let (this, of) = (Arc::clone(node), Arc::clone(&incoming));
    let arrival = tokio::task::spawn_blocking(move || Arrival::new(&this, &of, receiving)).await?;
    let arrival = match arrival {
        Ok(arrival) => arrival,
        Err(problem) => return Ok(pending.refuse(&problem.to_string()).await?),
    };
    let memory_bytes_max = incoming.view().memory_bytes_max;
    let limits = Limits {
        // What is here at once is for the store to bound; each round may send all of it again.
        memory_bytes_max: memory_bytes_max.saturating_mul(u64::from(ROUNDS_MAX) + 1),
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
    node: &Node,
    id: MigrationId,
    permit: &[u8; 32],
    system: &SystemName,
) -> Result<Arc<Incoming>, &'static str> {
    let incoming = node
        .migrations
        .incoming(id)
        .map_err(|_| "no such migration is expected here")?;
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
    node: Arc<Node>,
    lazy: bool,
    /// Bytes of pages until the next look at the memory that is left.
    unlooked: u64,
    images: MemoryDir,
    store: Option<PageStore>,
    stored: Option<Stored>,
    info: Option<CheckpointInfo>,
    applier: Applier,
    image: Option<Box<dyn Receiving>>,
    service: ServiceName,
    /// Last, so that it is let go when all else is gone.
    _receiving: OwnedMutexGuard<()>,
}

impl Arrival {
    /// Blocks.
    fn new(
        node: &Arc<Node>,
        incoming: &Incoming,
        receiving: OwnedMutexGuard<()>,
    ) -> Result<Self, Problem> {
        let service = node.host.service(&incoming.service)?;
        let status = service.container.status();
        let status = status.map_err(|error| problem::keeper(&error))?;
        if let Err(error) = service.container.ask(&Request::Prepare) {
            // The restore will take longer.
            tracing::debug!(%error, "the keeper makes nothing ready for the restore");
        }
        let (memory_bytes_max, image_needed) = {
            let view = incoming.view();
            (view.memory_bytes_max, view.image_needed)
        };
        let memory = problem::failed(ProblemKind::Memory, "no memory for arriving pages");
        let mut roots = service.container.trees(&service.specification, &status);
        let id = &service.specification.image;
        let image = image_needed.then(|| node.host.images().receive(id));
        let image = image.transpose()?;
        if let Some(staging) = &image {
            roots.push((RootName::Image, staging.rootfs()));
        }
        let lazy = node.settings.eager_restore.is_none();
        Ok(Self {
            node: Arc::clone(node),
            lazy,
            unlooked: 0,
            images: MemoryDir::new(IMAGES_BYTES_MAX.saturating_add(memory_bytes_max))
                .map_err(|e| memory(&e))?,
            store: Some(PageStore::new(memory_bytes_max, lazy).map_err(|e| memory(&e))?),
            stored: None,
            info: None,
            applier: Applier::new(roots).map_err(|error| {
                problem::failed(ProblemKind::Files, "files can't be received")(&error)
            })?,
            image,
            service: incoming.service.clone(),
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
        let left = self.node.machine.memory_available()?;
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
        if name == TREE_NAME {
            let parents: Parents = serde_json::from_slice(&bytes)?;
            let store = self.store.as_mut().ok_or("processes after the end")?;
            store.set_parents(parents);
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

    /// The image never changes: it is hashed, written to the disk and put into the store while the
    /// service still runs at the source. So is made what takes the image.
    fn settle(&mut self) -> Result<(), SinkError> {
        if let Some(staging) = self.image.take() {
            self.applier.close(&RootName::Image)?;
            staging.commit()?;
        }
        let made = self.node.host.image_is_here(&self.service);
        if let Some(upper) = tokio::runtime::Handle::current().block_on(made)? {
            self.applier.moved(&RootName::Upper, &upper)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        if self.image.is_some() {
            return Err("the root filesystem was not settled before the freeze".into());
        }
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
            .write(INDEX_NAME, &index::encode(&stored.index))?;
        if !stored.away.is_empty() {
            self.images.write(AWAY_NAME, &index::encode(&stored.away))?;
        }
        if stored.shared_bytes > 0 {
            tracing::info!(
                bytes = stored.shared_bytes,
                "memory that processes share is restored before the service runs"
            );
        }
        self.stored = Some(stored);
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
    let pages = u64::from(block.count);
    let Some(content) = block.content else {
        if block.flags & STAYS_AWAY != 0 {
            let flags = block.flags & !STAYS_AWAY;
            return store.keep_place(owner, block.address, flags, pages, images);
        }
        return store.keep(owner, block.address, block.flags, pages, images);
    };
    if block.flags & READ_RUNNING != 0 {
        for (address, page) in block.pages() {
            match page {
                Some(bytes) => store.stage(owner, address, bytes)?,
                None => store.unstage(owner, address, address.saturating_add(PAGE_LEN as u64)),
            }
        }
        return Ok(());
    }
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

#[cfg(test)]
mod test;
