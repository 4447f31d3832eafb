//! What of a container stands in the way of a move, and what a move changes.

use bollard::models::{HostConfig, MountPoint};
use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind};
use ums_core::specification::Creation;

use super::{Seen, state_is};
use crate::mounts;

pub(super) fn obstacles(seen: &Seen, host: Option<&HostConfig>) -> Vec<Obstacle> {
    let host = host.cloned().unwrap_or_default();
    let config = seen.inspected.config.clone().unwrap_or_default();
    let mut found = Vec::new();
    let mut add = |kind, detail: &str| found.push(container(kind, detail));
    if state_is(&seen.inspected, |state| state.paused) {
        add(ObstacleKind::Paused, "it is paused");
    } else if !state_is(&seen.inspected, |state| state.running) {
        add(ObstacleKind::Paused, "it is not running");
    }
    if seen.state.is_none() {
        add(ObstacleKind::Runtime, &host.runtime.unwrap_or_default());
    }
    let own = |mode: &str| matches!(mode, "" | "private" | "shareable" | "none");
    let namespaces = [
        ("PID", host.pid_mode.unwrap_or_default()),
        ("IPC", host.ipc_mode.unwrap_or_default()),
        ("UTS", host.uts_mode.unwrap_or_default()),
        ("user", host.userns_mode.unwrap_or_default()),
    ];
    for (name, mode) in namespaces.iter().filter(|(_, mode)| !own(mode)) {
        add(ObstacleKind::SharedNamespace, &format!("{name}: {mode}"));
    }
    let network = host.network_mode.unwrap_or_default();
    if network == "host" || network.starts_with("container:") || network.starts_with("ns:") {
        add(
            ObstacleKind::SharedNamespace,
            &format!("network: {network}"),
        );
    }
    if !mounts::has_own_shared_memory(&seen.mounts) && seen.state.is_some() {
        add(ObstacleKind::SharedNamespace, "/dev/shm is not its own");
    }
    if seen.own_control_groups {
        add(
            ObstacleKind::ContainerMount,
            "it has a cgroup namespace of its own (`--cgroupns host`)",
        );
    }
    if host.privileged == Some(true) {
        add(ObstacleKind::Privileged, "--privileged");
    }
    let devices = host.devices.unwrap_or_default();
    for path in devices
        .iter()
        .filter_map(|device| device.path_on_host.as_ref())
    {
        add(ObstacleKind::Privileged, &format!("--device {path}"));
    }
    if config.tty == Some(true) {
        add(
            ObstacleKind::Terminal,
            "a terminal that its engine holds (`-t`)",
        );
    } else if config.open_stdin == Some(true) {
        add(
            ObstacleKind::Terminal,
            "a standard input that its engine holds (`-i`)",
        );
    }
    if let Some(reason) = mounts::odd_root(&seen.mounts) {
        add(ObstacleKind::Layers, &reason);
    }
    if !seen.label.is_empty() {
        add(ObstacleKind::SecurityLabel, &seen.label);
    }
    found.extend(seen.strangers.iter().map(|pid| Obstacle {
        kind: ObstacleKind::ExecSession,
        pid: *pid,
        detail: "`docker exec`".to_owned(),
    }));
    found
}

pub(super) fn container(kind: ObstacleKind, detail: &str) -> Obstacle {
    Obstacle {
        kind,
        pid: 0,
        detail: detail.to_owned(),
    }
}

/// What is not at the destination of what the engine was told; `networks` are those that it is in.
pub(super) fn losses(
    points: &[MountPoint],
    creation: &Creation,
    networks: &[String],
    published: bool,
) -> Vec<Loss> {
    let mut settings = Vec::new();
    if creation.restart.is_on() {
        settings.push(format!(
            "it is not started again (`--restart {}`)",
            creation.restart.policy
        ));
    }
    if creation.health.is_some() {
        settings.push("its health is not checked".to_owned());
    }
    if creation.pids_limit.is_some() {
        settings.push("its processes are not limited (`--pids-limit`)".to_owned());
    }
    if let Some(signal) = &creation.stop_signal {
        settings.push(format!("it is not stopped by {signal}"));
    }
    let bound = |point: &&MountPoint| {
        let kind = point.typ.as_ref().map(ToString::to_string);
        kind.as_deref() != Some("volume")
    };
    let bound = points.iter().filter(bound).map(|point| {
        let (source, path) = (point.source.as_deref(), point.destination.as_deref());
        let (source, path) = (source.unwrap_or_default(), path.unwrap_or_default());
        (LossKind::HostDirectory, format!("`{source}` at {path}"))
    });
    let settings = settings
        .into_iter()
        .map(|detail| (LossKind::EngineSetting, detail));
    let ends = "nothing answers at its published ports here any more, and open connections end";
    let ports = published.then(|| (LossKind::EnginePorts, ends.to_owned()));
    let told = settings.chain(bound).chain(ports).chain(names(networks));
    let logs = (
        LossKind::EngineRecord,
        "what it has logged until now".to_owned(),
    );
    told.chain([logs])
        .map(|(kind, detail)| Loss {
            kind,
            pid: 0,
            detail,
        })
        .collect()
}

/// Networks in which an engine resolves no names: those that containers are in unless somebody says otherwise.
const WITHOUT_NAMES: [&str; 3] = ["bridge", "podman", "none"];

/// In a network that somebody has made names are the engine's to resolve, those of the world too.
fn names(networks: &[String]) -> impl Iterator<Item = (LossKind, String)> {
    let made = networks
        .iter()
        .filter(|name| !WITHOUT_NAMES.contains(&name.as_str()));
    made.map(|name| {
        let detail = format!(
            "in the network `{name}` its engine tells it all addresses by name, those of other containers too; at the \
             destination nobody does"
        );
        (LossKind::EngineNames, detail)
    })
}
