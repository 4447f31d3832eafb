//! A container as a migration needs it, whoever made it: where its parts are on this node, and its
//! keeper, who holds the rest of it.

use std::path::{Path, PathBuf};

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::freezer::Freezer;
use ums_checkpoint::keeper::client::{self, Keeper};
use ums_checkpoint::keeper::protocol::{Request, Status};
use ums_core::specification::Specification;
use ums_sync::frame::RootName;

use crate::packets::{Packets, Policy};
use crate::problem;
use crate::task::blocking;

/// Where the parts of a container are on this node. Root filesystem, namespaces, standard streams
/// and init are its keeper's, which says in its [`Status`] where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Socket of its keeper.
    pub keeper: PathBuf,
    /// Its control group: the path below each hierarchy.
    pub cgroup: String,
    /// What it changed in its root filesystem.
    pub upper: PathBuf,
    /// One directory for each volume, by its name.
    pub volumes: PathBuf,
    /// What it sees at `/dev/shm`: a path in its keeper's mount namespace.
    pub shm: PathBuf,
}

impl ContainerPlan {
    /// Connects to its keeper. Blocks.
    pub fn keeper(&self) -> Result<Keeper, client::Error> {
        Keeper::connect(&self.keeper)
    }

    /// What its keeper says. Blocks.
    pub fn status(&self) -> Result<Status, client::Error> {
        self.keeper()?.status()
    }

    /// What its keeper says; `None` when it is certain that there is none. Blocks.
    pub fn status_if_any(&self) -> Result<Option<Status>, Problem> {
        match self.status() {
            Ok(status) => Ok(Some(status)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(problem::keeper(&error)),
        }
    }

    /// One request to its keeper, without descriptors. Blocks.
    pub fn ask(&self, request: &Request) -> Result<Status, client::Error> {
        self.keeper()?.call(request, &[])
    }

    /// [`status`](Self::status) from where blocking is not allowed.
    pub async fn status_async(&self) -> Result<Status, Problem> {
        let this = self.clone();
        blocking(move || this.status().map_err(|error| problem::keeper(&error))).await
    }

    /// [`status_if_any`](Self::status_if_any) from where blocking is not allowed.
    pub async fn status_if_any_async(&self) -> Result<Option<Status>, Problem> {
        let this = self.clone();
        blocking(move || this.status_if_any()).await
    }

    /// The file that stands for its network namespace.
    pub async fn netns(&self) -> Result<PathBuf, Problem> {
        Ok(netns_path(&self.status_async().await?))
    }

    /// Its network namespace, also when its keeper is lost; `None` when it has no process either.
    pub async fn remaining_netns(&self) -> Option<PathBuf> {
        match self.netns().await {
            Ok(netns) => Some(netns),
            Err(_) => netns_of(&self.group().ok()?),
        }
    }

    /// Its directories, as the Synchronization module knows them and as the agent reaches them: all
    /// that moves besides its image and its memory.
    pub fn trees(&self, of: &Specification, status: &Status) -> Vec<(RootName, PathBuf)> {
        let shm = keeper_path(status, &self.shm);
        let fixed = [
            (RootName::Upper, self.upper.clone()),
            (RootName::SharedMemory, shm),
        ];
        let volumes = of.volumes.iter().map(|volume| {
            let path = self.volumes.join(volume.name.as_str());
            (RootName::Volume(volume.name.clone()), path)
        });
        fixed.into_iter().chain(volumes).collect()
    }

    /// Kills what its control group holds, when its keeper is lost: there is nobody else to. Blocks.
    pub fn kill(&self) -> Result<(), Problem> {
        let cgroup = self.group()?;
        let killed = match Freezer::of(&cgroup).and_then(|freezer| freezer.kill()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => cgroup.remove(),
        };
        killed.map_err(|error| {
            problem::failed(ProblemKind::Cgroup, "the container can't be killed")(&error)
        })
    }

    /// Lets a service whose keeper is lost run on: the freeze is the kernel's, so nobody else is
    /// needed to end it. True when there was no keeper to ask, and it was done.
    pub async fn thaw_without_keeper(&self, packets: &dyn Packets) -> Result<bool, Problem> {
        let this = self.clone();
        let orphans = blocking(move || match this.status_if_any()? {
            None => this.group().map(Some),
            Some(_) => Ok(None),
        })
        .await?;
        let Some(cgroup) = orphans else {
            return Ok(false);
        };
        let released = match netns_of(&cgroup) {
            Some(netns) => packets.direct(&netns, Policy::Pass).await,
            None => Ok(()),
        };
        blocking(move || release(&cgroup)).await?;
        released.map_err(|error| {
            problem::failed(ProblemKind::Network, "packets can't be released")(&error)
        })?;
        Ok(true)
    }

    /// Lets it run on if it is frozen; whether it was.
    pub fn thaw_if_frozen(&self) -> Result<bool, Problem> {
        let freezer = Freezer::of(&self.group()?);
        let thawed = freezer.and_then(|freezer| match freezer.is_frozen()? {
            true => freezer.thaw().map(|()| true),
            false => Ok(false),
        });
        thawed.map_err(|error| {
            problem::failed(ProblemKind::Cgroup, "the container can't be thawed")(&error)
        })
    }

    fn group(&self) -> Result<Cgroup, Problem> {
        Cgroup::at(&self.cgroup)
            .map_err(|error| problem::failed(ProblemKind::Cgroup, "no control groups")(&error))
    }
}

fn release(cgroup: &Cgroup) -> Result<(), Problem> {
    match Freezer::of(cgroup).and_then(|freezer| freezer.release()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let failed = problem::failed(ProblemKind::Cgroup, "the container can't be thawed");
            Err(failed(&error))
        }
        _ => Ok(()),
    }
}

/// The network namespace of a container without a keeper: where its processes are.
fn netns_of(cgroup: &Cgroup) -> Option<PathBuf> {
    let pid = *cgroup.processes().first()?;
    Some(format!("/proc/{pid}/ns/net").into())
}

/// The file that stands for a container's network namespace, while its keeper lives.
pub fn netns_path(status: &Status) -> PathBuf {
    PathBuf::from(format!(
        "/proc/{}/fd/{}",
        status.keeper_pid, status.netns_fd
    ))
}

/// Where a path in the keeper's mount namespace is reached from ours.
pub fn keeper_path(status: &Status, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", status.keeper_pid));
    root.join(path.strip_prefix("/").unwrap_or(path))
}
