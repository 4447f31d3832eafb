//! A container as a migration needs it, whoever made it: where its parts are on this node, and its
//! keeper, who holds the rest of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::freezer::Freezer;
use ums_checkpoint::keeper::client::{self, Keeper};
use ums_checkpoint::keeper::protocol::{PROTOCOL, Phase, Request, Status};
use ums_core::id::ServiceName;
use ums_core::specification::{FILES, Mount, MountContent, Specification};
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
    /// Where its volumes are.
    pub volumes: Volumes,
    /// What it sees at `/dev/shm`: a path in its keeper's mount namespace.
    pub shm: PathBuf,
    /// Its first process, where somebody else has made the container: it has a keeper only while it
    /// is moved.
    pub given: Option<Given>,
}

/// Where the volumes of a container are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volumes {
    /// In one directory, each below its name.
    Below(PathBuf),
    /// Each somewhere else, by its name.
    At(BTreeMap<String, PathBuf>),
}

impl Volumes {
    /// Where the one of this name is.
    pub fn place(&self, name: &str) -> PathBuf {
        match self {
            Self::Below(directory) => directory.join(name),
            Self::At(places) => places.get(name).cloned().unwrap_or_default(),
        }
    }

    /// Directories that hold all of them.
    pub fn directories(&self) -> Vec<&Path> {
        match self {
            Self::Below(directory) => vec![directory],
            Self::At(places) => places.values().map(PathBuf::as_path).collect(),
        }
    }
}

/// The first process of a container that somebody else has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Its id in the agent's PID namespace.
    pub init: i32,
    /// When it began, in the kernel's ticks since boot (`proc_pid_stat(5)`): by both it is known.
    pub began: u64,
}

impl Given {
    /// The process of this id, if it lives.
    pub fn of(init: i32) -> Option<Self> {
        let began = ums_checkpoint::keeper::adopted::began(init)?;
        Some(Self { init, began })
    }

    /// What a keeper would say of it.
    fn status(self) -> Status {
        let lives = Self::of(self.init) == Some(self);
        Status {
            protocol: PROTOCOL,
            phase: match lives {
                true => Phase::Running,
                // Its end was its engine's to see.
                false => Phase::Dead { code: 0 },
            },
            keeper_pid: 0,
            netns_fd: NO_KEEPER,
            placed: false,
            init_pid: lives.then_some(self.init),
            pages_missing: 0,
            at_risk_us: None,
            depends_on_source: false,
            pages_lost: None,
            frozen_at_ns: None,
            dumped_at_ns: None,
            resumed_at_ns: None,
            restore_us: None,
            spans: Vec::new(),
            lost: Vec::new(),
        }
    }
}

/// In place of a descriptor of a keeper that is not there.
const NO_KEEPER: i32 = -1;

impl ContainerPlan {
    /// Connects to its keeper. Blocks.
    pub fn keeper(&self) -> Result<Keeper, client::Error> {
        Keeper::connect(&self.keeper)
    }

    /// What its keeper says, or would say if it had one. Blocks.
    pub fn status(&self) -> Result<Status, client::Error> {
        match (self.keeper(), self.given) {
            (Err(error), Some(given)) if error.is_gone() => Ok(given.status()),
            (keeper, _) => keeper?.status(),
        }
    }

    fn has_keeper(&self) -> Result<bool, Problem> {
        match self.keeper() {
            Ok(_) => Ok(true),
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(problem::keeper(&error)),
        }
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
        let names = of.volumes.iter().map(|volume| volume.name.clone());
        let volumes = names.chain(files(of)).map(|name| {
            let path = self.volumes.place(name.as_str());
            (RootName::Volume(name), path)
        });
        fixed.into_iter().chain(volumes).collect()
    }

    /// Directories with what it has changed and its volumes.
    pub fn directories(&self) -> Vec<&Path> {
        let volumes = self.volumes.directories();
        std::iter::once(self.upper.as_path())
            .chain(volumes)
            .collect()
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

    /// The same, of a container whose control group is its engine's to remove. Blocks.
    pub fn kill_only(&self) -> Result<(), Problem> {
        Self::kill_in(&self.cgroup)
    }

    /// Kills what the control group of a container holds, wherever the rest of it is. Blocks.
    pub fn kill_in(cgroup: &str) -> Result<(), Problem> {
        let failed = problem::failed(ProblemKind::Cgroup, "the container can't be killed");
        let group = Cgroup::at(cgroup).map_err(|error| failed(&error))?;
        match Freezer::of(&group).and_then(|freezer| freezer.kill()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&error)),
            _ => Ok(()),
        }
    }

    /// Lets a service whose keeper is lost run on: the freeze is the kernel's, so nobody else is
    /// needed to end it. True when there was no keeper to ask, and it was done.
    pub async fn thaw_without_keeper(&self, packets: &dyn Packets) -> Result<bool, Problem> {
        let this = self.clone();
        let orphans = blocking(move || match this.has_keeper()? {
            false => this.group().map(Some),
            true => Ok(None),
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

/// The name of the directory with a service's small files, if it has any.
pub fn files(of: &Specification) -> Option<ServiceName> {
    let is_file = |mount: &Mount| matches!(mount.content, MountContent::File(_));
    let name = of.mounts.iter().any(is_file).then_some(FILES)?;
    name.parse().ok()
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
    if status.netns_fd == NO_KEEPER {
        let init = status.init_pid.unwrap_or_default();
        return PathBuf::from(format!("/proc/{init}/ns/net"));
    }
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
