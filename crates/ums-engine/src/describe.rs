//! From an engine's words to what a migration asks of a service. Pure.

mod creation;
mod objections;
mod place;

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::ContainerInspectResponse;
use ums_core::facts::{Loss, Obstacle, ObstacleKind};
use ums_core::id::{NAME_LEN_MAX, ServiceName};
use ums_core::specification::{ImageId, Specification};

use crate::mounts::{self, Mounted};
use crate::runtime::State;
use creation::creation;
pub(crate) use creation::restart_of;
use objections::{container, losses, obstacles};
use place::{address, networks, ports, volumes};

/// What was seen of a container.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What its engine tells.
    pub inspected: ContainerInspectResponse,
    /// What runc keeps of it.
    pub state: Option<State>,
    /// What is mounted in it.
    pub mounts: Vec<Mounted>,
    /// Paths of those that are empty.
    pub empty: BTreeSet<String>,
    /// User and group of its init.
    pub user: (u32, u32),
    /// The label that its init is confined by; empty where none is.
    pub label: String,
    /// Whether it has a namespace of control groups of its own.
    pub own_control_groups: bool,
    /// Ids, in the agent's PID namespace, of processes that were started in it from outside.
    pub strangers: Vec<i32>,
    /// Whether its place in the network stays for its clients once it has left.
    pub place_stays: bool,
}

/// A container as a migration needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// What it is.
    pub specification: Specification,
    /// Where its volumes are on this host, by their names.
    pub volumes: BTreeMap<String, String>,
    /// Whether its engine holds it still.
    pub paused: bool,
    /// What stands in the way.
    pub obstacles: Vec<Obstacle>,
    /// What a move changes.
    pub losses: Vec<Loss>,
}

/// The name of a service for a container of this name: the nearest that a service can have.
pub fn service_name(container: &str) -> Option<ServiceName> {
    let letter = |letter: char| match letter.to_ascii_lowercase() {
        letter if letter.is_ascii_alphanumeric() => letter,
        _ => '-',
    };
    let name: String = container.chars().map(letter).take(NAME_LEN_MAX).collect();
    name.trim_matches('-').parse().ok()
}

/// Describes a container under this name and with this image.
pub fn describe(name: ServiceName, image: ImageId, seen: &Seen) -> Described {
    let inspected = &seen.inspected;
    let (points, host) = (
        inspected.mounts.as_deref().unwrap_or_default(),
        inspected.host_config.as_ref(),
    );
    let (volumes, places) = volumes(points);
    let paths = volumes.iter().map(|volume| volume.path.clone()).collect();
    let sorted = mounts::sort(&seen.mounts, &paths, |path| seen.empty.contains(path));
    let config = inspected.config.clone().unwrap_or_default();
    let (address, prefix_len) = address(inspected);
    let creation = creation(inspected);
    let (uid, gid) = seen.user;
    let capabilities = seen
        .state
        .as_ref()
        .and_then(|it| it.config.capabilities.clone());
    let program = inspected.path.iter().chain(inspected.args.iter().flatten());
    let mut obstacles = obstacles(seen, host);
    let foreign = sorted
        .foreign
        .iter()
        .map(|path| container(ObstacleKind::ContainerMount, path));
    obstacles.extend(foreign);
    Described {
        volumes: places,
        paused: state_is(inspected, |state| state.paused),
        obstacles,
        losses: losses(
            points,
            &creation,
            &networks(inspected),
            !seen.place_stays && !ports(inspected).is_empty(),
        ),
        specification: Specification {
            name,
            image,
            command: program.cloned().collect(),
            env: config.env.unwrap_or_default(),
            cwd: config
                .working_dir
                .filter(|dir| !dir.is_empty())
                .unwrap_or("/".to_owned()),
            uid,
            gid,
            memory_limit_bytes: host
                .and_then(|host| host.memory)
                .and_then(|bytes| u64::try_from(bytes).ok())
                .filter(|bytes| *bytes > 0),
            volumes,
            address,
            prefix_len,
            ports: ports(inspected),
            capabilities: capabilities.unwrap_or_default().bounding,
            hostname: config.hostname.unwrap_or_default(),
            mounts: sorted.mounts,
            creation: Some(Box::new(creation)),
            engine: None,
        },
    }
}

fn state_is(
    inspected: &ContainerInspectResponse,
    what: impl Fn(&bollard::models::ContainerState) -> Option<bool>,
) -> bool {
    inspected.state.as_ref().and_then(what).unwrap_or_default()
}

#[cfg(test)]
mod test;
