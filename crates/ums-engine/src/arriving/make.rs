//! The container of a service whose image is here: made and started by its engine, and waiting for its processes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::placing::RUNTIME_PATIENCE;
use ums_checkpoint::offers::Offer;
use ums_core::id::ServiceName;
use ums_node::container::ContainerPlan;
use ums_node::host::Images;
use ums_node::packets::{IN_DEVICE, Policy};
use ums_node::problem;
use ums_node::task::blocking;

use super::body::body;
use super::files;
use super::record::{Coming, Made, Stage};
use crate::client::{Client, EngineError};
use crate::host::{Inner, refused};
use crate::making::RUNTIME;

/// How often is looked whether the runtime has the container ready.
const LOOK: Duration = Duration::from_millis(20);

/// Makes it, while the service still runs at its source; where what the service changes belongs from now on. `None` where
/// that is known already.
pub(crate) async fn image_is_here(
    inner: &Arc<Inner>,
    name: &ServiceName,
) -> Result<Option<PathBuf>, Problem> {
    let Some(mut of) = inner.coming(name).filter(|of| of.stage == Stage::Coming) else {
        return Ok(None);
    };
    if of.made.is_some() {
        return Ok(None);
    }
    let client = inner.client(&of.engine).await?;
    let image = image(inner, &client, &of).await?;
    let migration = of.from.migration.to_string();
    let asked = body(&of.specification, image, &of.volumes, &migration);
    let id = client.create(name.as_str(), asked).await;
    let id = id.map_err(|error| refused(&error))?;
    let upper = upper(&client, &id).await?;
    of.made = Some(Made {
        id: id.clone(),
        upper: upper.clone(),
        address: None,
    });
    let (this, written, to) = (Arc::clone(inner), of.clone(), upper.clone());
    blocking(move || {
        let name = written.specification.name.clone();
        this.keep_coming(written)?;
        files::move_all(&this.staging(&name), &to).map_err(|error| {
            let title = "the service's files can't be put into its container";
            Problem::failed(
                ProblemKind::Files,
                title,
                format!("{}: {error}", to.display()),
            )
        })
    })
    .await?;
    let address = start(inner, &client, &of, &id).await?;
    if let Some(made) = &mut of.made {
        made.address = address;
    }
    inner.keep_coming(of)?;
    Ok(Some(upper))
}

/// The engine's name of the image, which it is given if it has it not.
async fn image(inner: &Arc<Inner>, client: &Client, of: &Coming) -> Result<String, Problem> {
    let (id, creation) = (
        &of.specification.image,
        of.specification.creation.as_deref(),
    );
    let known = client.image(id, creation).await;
    if let Some(known) = known.map_err(|error| refused(&error))? {
        return Ok(known);
    }
    let rootfs = inner.images.rootfs(id);
    let tar = inner.settings.bundle_bin.join("tar");
    let name = of.specification.name.as_str();
    let imported = client.import(id, name, &rootfs, &tar).await;
    imported.map_err(|error| refused(&error))
}

/// The layer of a container's root filesystem that is its own.
async fn upper(client: &Client, id: &str) -> Result<PathBuf, Problem> {
    let inspected = client.inspect(id).await.map_err(|error| refused(&error))?;
    let inspected = inspected.unwrap_or_default();
    let runtime = inspected.host_config.and_then(|host| host.runtime);
    if runtime.as_deref() != Some(RUNTIME) {
        // Under another one it would be started anew, while it runs at its source.
        let detail = format!("its runtime is `{}`", runtime.unwrap_or_default());
        let title = "the engine does not make the container as it was asked to";
        return Err(Problem::failed(ProblemKind::Container, title, detail));
    }
    let driver = inspected.graph_driver;
    let upper = driver.and_then(|driver| driver.data.get("UpperDir").cloned());
    upper.map(PathBuf::from).ok_or_else(|| {
        let detail = "use its storage driver overlay2 (Podman: overlay)";
        let title = "the engine does not keep what a container changes in a layer of its own";
        Problem::failed(ProblemKind::Container, title, detail)
    })
}

/// Has it started, and waits until it waits; its address on the engine's network.
async fn start(
    inner: &Arc<Inner>,
    client: &Client,
    of: &Coming,
    id: &str,
) -> Result<Option<std::net::Ipv4Addr>, Problem> {
    let container = inner.seen_coming(of).container;
    let own = container.netns().await?;
    let keeper = container.keeper.clone();
    inner
        .offers()
        .offer(id, &Offer { keeper })
        .map_err(|error| {
            problem::failed(ProblemKind::Container, "the container can't be reserved")(&error)
        })?;
    let (told, started) = oneshot::channel();
    let (asking, this, of_id) = (client.clone(), Arc::clone(inner), id.to_owned());
    let name = of.specification.name.clone();
    // It takes as long as the service takes to come.
    tokio::spawn(async move {
        let started = asking.start(&of_id).await;
        let is_coming = |of: &Coming| of.made.as_ref().is_some_and(|made| made.id == of_id);
        if let Err(error) = &started
            && this.coming(&name).as_ref().is_some_and(is_coming)
        {
            this.state().unmade.insert(name, problem::chain(error));
        }
        // Who has heard enough is told by the keeper.
        let _ = told.send(started);
    });
    placed(inner, &container, id, started).await?;
    let netns = container.netns().await?;
    let failed = problem::failed(
        ProblemKind::Network,
        "the container's network can't be made ready",
    );
    let inside = of.specification.address;
    let housed = inner.standalone.network.house(&netns, inside).await;
    let address = housed.map_err(|error| failed(&error))?;
    let packets = &inner.inside;
    let held = packets.direct(&netns, Policy::Hold).await;
    held.map_err(|error| failed(&error))?;
    if number(&own) != number(&netns) {
        // The engine has brought a network of its own, and the tunnel ends in the one that was there before.
        let moved = packets.move_device(IN_DEVICE, &own, &netns).await;
        moved.map_err(|error| failed(&error))?;
    }
    Ok(address)
}

/// Which namespace a file stands for.
fn number(netns: &Path) -> Option<u64> {
    std::fs::metadata(netns).ok().map(|file| file.ino())
}

/// Waits until the container's runtime waits for the service.
async fn placed(
    inner: &Inner,
    container: &ContainerPlan,
    id: &str,
    mut started: oneshot::Receiver<Result<(), EngineError>>,
) -> Result<(), Problem> {
    let end = Instant::now() + RUNTIME_PATIENCE;
    while Instant::now() < end {
        if container.status_async().await?.placed {
            return Ok(());
        }
        match tokio::time::timeout(LOOK, &mut started).await {
            Err(_) => {}
            Ok(Ok(Err(error))) => return Err(not_made(inner, id, &error)),
            Ok(_) => {
                let title = "the engine has started the container without the service";
                let detail = "is its runtime `ums` the one of this release (`ums host install`)?";
                return Err(Problem::failed(ProblemKind::Container, title, detail));
            }
        }
    }
    let detail = format!("for {} s: see its log", RUNTIME_PATIENCE.as_secs());
    let title = "the engine has not made the container";
    Err(Problem::failed(ProblemKind::Container, title, detail))
}

/// What the engine says, and what its runtime has written down.
fn not_made(inner: &Inner, id: &str, error: &EngineError) -> Problem {
    let why = inner.offers().place(id).ok();
    let why = why.and_then(|place| std::fs::read_to_string(place.join("why")).ok());
    let mut problem = refused(error);
    if let Some(why) = why {
        problem.detail = format!("{}: {why}", problem.detail);
    }
    problem
}
