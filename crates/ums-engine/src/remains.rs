//! Containers whose service has moved, and that their engine keeps for its clients: each is an init that is frozen,
//! has no memory and no program to be started by, and holds the container's address and published ports in the engine's network until
//! the Frontman retires. Then its engine removes it.
//!
//! The engine knows nothing of that: to it the container runs. So none of it gives the address or a port to another
//! container meanwhile, and what it has of connections (`docker-proxy`, translations of addresses, names) stays.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::freezer::Freezer;
use ums_checkpoint::keeper::client::Error;
use ums_checkpoint::keeper::protocol::Request;
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::PublishedPort;
use ums_node::container::{ContainerPlan, Given};
use ums_node::host::Service;
use ums_node::task::blocking;
use ums_node::{durable, frontman, problem, tunnel};

use crate::host::{Hosts, Inner};
use crate::program;
use crate::record::Record;
use crate::stored::{self, Stored, VERSION};

/// How often the Frontman of one has to be missing before it is over: a standby takes a moment to go on.
const MISSES: u32 = 2;

/// What the agent remembers of one, across its own restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remains {
    version: u32,
    /// The engine.
    pub(crate) engine: String,
    /// The engine's id of it.
    pub(crate) id: String,
    /// The service that has left.
    pub(crate) service: ServiceName,
    /// By this migration.
    pub(crate) migration: MigrationId,
    /// Its init, and when that began.
    init: (i32, u64),
    /// Its control group: the path below each hierarchy.
    cgroup: String,
    /// Ports of the system that lead to it.
    pub(crate) ports: Vec<PublishedPort>,
}

impl Remains {
    fn of(record: &Record, migration: MigrationId) -> Self {
        Self {
            version: VERSION,
            engine: record.engine.clone(),
            id: record.id.clone(),
            service: record.specification.name.clone(),
            migration,
            init: record.init,
            cgroup: record.cgroup.clone(),
            ports: record.specification.ports.clone(),
        }
    }

    fn given(&self) -> Given {
        let (init, began) = self.init;
        Given { init, began }
    }

    fn lives(&self) -> bool {
        Given::of(self.init.0) == Some(self.given())
    }

    /// Whether somebody has told it to end, which it can't hear.
    fn is_told_to_end(&self) -> bool {
        !crate::leaving::ending(self.init.0).is_empty()
    }
}

/// All of a directory, by their engines' ids.
pub(crate) fn read_all(directory: &Path) -> BTreeMap<String, Remains> {
    let all = stored::read_all::<Remains>(directory).into_iter();
    all.map(|remains| (remains.id.clone(), remains)).collect()
}

impl Stored for Remains {
    fn version(&self) -> u32 {
        self.version
    }
}

fn path(inner: &Inner, id: &str) -> PathBuf {
    inner.remains_dir().join(format!("{id}.json"))
}

/// Has the container of a service that has moved stay with its engine; whether it does. It can't when it has ended.
/// Repeating it is harmless.
pub(crate) async fn stay(
    inner: &Arc<Inner>,
    record: &Record,
    service: &Service,
) -> Result<bool, Problem> {
    let Some(migration) = record.gate.filter(|_| record.netns().is_some()) else {
        return Ok(false);
    };
    let remains = Remains::of(record, migration);
    let (this, container, of) = (Arc::clone(inner), service.container.clone(), record.clone());
    let stays = blocking(move || {
        // Before anything is done: whoever comes after this agent finds it.
        durable::write(&path(&this, &remains.id), &remains).map_err(|error| {
            problem::failed(ProblemKind::Record, "a record can't be written")(&error)
        })?;
        if !vacate(&container)? || !remains.lives() {
            return Ok(None);
        }
        if let Err(error) = program::remove(&of.root, &of.specification) {
            tracing::warn!(service = %remains.service, %error, "somebody could start the container again until it is removed");
        }
        Ok(Some(remains))
    })
    .await?;
    let Some(remains) = stays else {
        let _ = fs::remove_file(path(inner, &record.id));
        return Ok(false);
    };
    tracing::info!(service = %remains.service, engine = remains.engine, "the container stays for its clients");
    inner.state().remains.insert(remains.id.clone(), remains);
    Ok(true)
}

/// Frees what a frozen container has; whether it is frozen. Blocks.
fn vacate(container: &ContainerPlan) -> Result<bool, Problem> {
    match container.ask(&Request::Vacate) {
        Ok(_) => Ok(true),
        // Its freeze is the kernel's: it lasts without a keeper.
        Err(error) if error.is_gone() => is_frozen(container),
        Err(Error::Failed { .. }) if !is_frozen(container)? => Ok(false),
        Err(error) => Err(problem::keeper(&error)),
    }
}

fn is_frozen(container: &ContainerPlan) -> Result<bool, Problem> {
    let failed = problem::failed(ProblemKind::Cgroup, "the container can't be looked at");
    let group = Cgroup::at(&container.cgroup).map_err(|error| failed(&error))?;
    let frozen = Freezer::of(&group).and_then(|freezer| freezer.is_frozen());
    match frozen {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&error)),
        frozen => Ok(frozen.unwrap_or(false)),
    }
}

/// Removes those whose time is over, for ever.
pub async fn run(hosts: Hosts) {
    let inner = hosts.inner();
    let mut missed: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        tokio::time::sleep(tunnel::ROUND).await;
        let all: Vec<Remains> = inner.state().remains.values().cloned().collect();
        missed.retain(|id, _| all.iter().any(|remains| remains.id == *id));
        for remains in all {
            let is_led = tunnel::stands(
                &inner.standalone.frontmen,
                remains.migration,
                &remains.service,
            );
            let misses = missed.entry(remains.id.clone()).or_default();
            *misses = if is_led { 0 } else { misses.saturating_add(1) };
            if *misses < MISSES && remains.lives() && !remains.is_told_to_end() {
                continue;
            }
            if let Err(error) = remove(&inner, &remains, is_led).await {
                tracing::warn!(service = %remains.service, %error, "the container that has stayed can't be removed");
            }
        }
    }
}

/// The engine removes it, and its Frontman has nobody to lead any more.
async fn remove(inner: &Arc<Inner>, remains: &Remains, is_led: bool) -> Result<(), Problem> {
    let (cgroup, lives) = (remains.cgroup.clone(), remains.lives());
    if lives {
        // Frozen by version 1 it hears nothing of its engine's.
        if let Err(error) = blocking(move || ContainerPlan::kill_in(&cgroup)).await {
            // Where it is paused too its engine can do it.
            tracing::info!(service = %remains.service, %error, "it is left to its engine");
        }
    }
    let client = inner.client(&remains.engine).await?;
    let removed = client.remove(&remains.id).await;
    removed.map_err(|error| crate::host::refused(&error))?;
    if is_led {
        let frontmen = &inner.standalone.frontmen;
        frontman::retire(frontmen, &remains.service, None, Duration::ZERO).await?;
    }
    let _ = fs::remove_file(path(inner, &remains.id));
    inner.state().remains.remove(&remains.id);
    Ok(())
}
