//! From an engine's words to what a migration asks of a service. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::{ContainerInspectResponse, HostConfig, MountPoint};
use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind};
use ums_core::id::{NAME_LEN_MAX, ServiceName};
use ums_core::specification::{
    Creation, Health, ImageId, PublishedPort, Restart, Specification, Transport, Volume,
};

use crate::mounts::{self, Mounted};
use crate::runtime::State;

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
        losses: losses(points, &creation, !ports(inspected).is_empty()),
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
        },
    }
}

fn state_is(
    inspected: &ContainerInspectResponse,
    what: impl Fn(&bollard::models::ContainerState) -> Option<bool>,
) -> bool {
    inspected.state.as_ref().and_then(what).unwrap_or_default()
}

/// Volumes and directories of the host alike are volumes of the service, named after where they are in it.
fn volumes(points: &[MountPoint]) -> (Vec<Volume>, BTreeMap<String, String>) {
    let (mut volumes, mut places) = (Vec::new(), BTreeMap::new());
    for point in points {
        let (Some(path), Some(source)) = (&point.destination, &point.source) else {
            continue;
        };
        let Some(name) = free_name(path, &places) else {
            continue;
        };
        places.insert(name.to_string(), source.clone());
        let path = path.clone();
        volumes.push(Volume { name, path });
    }
    (volumes, places)
}

fn free_name(path: &str, taken: &BTreeMap<String, String>) -> Option<ServiceName> {
    let name = service_name(path.trim_start_matches('/'))?;
    let numbered = (2..100).filter_map(|number| {
        let begin: String = name.as_str().chars().take(NAME_LEN_MAX - 3).collect();
        format!("{begin}-{number}").parse().ok()
    });
    std::iter::once(name.clone())
        .chain(numbered)
        .find(|name| !taken.contains_key(name.as_str()))
}

/// Its first address; networks are in order of their names.
fn address(inspected: &ContainerInspectResponse) -> (std::net::Ipv4Addr, u8) {
    let settings = inspected.network_settings.as_ref();
    let networks = settings.and_then(|settings| settings.networks.clone());
    let networks: BTreeMap<_, _> = networks.unwrap_or_default().into_iter().collect();
    let first = networks.values().find_map(|network| {
        let address = network.ip_address.as_ref()?.parse().ok()?;
        let length = network.ip_prefix_len.and_then(|len| u8::try_from(len).ok());
        Some((address, length.unwrap_or(32)))
    });
    first.unwrap_or((std::net::Ipv4Addr::UNSPECIFIED, 0))
}

fn ports(inspected: &ContainerInspectResponse) -> Vec<PublishedPort> {
    let settings = inspected.network_settings.as_ref();
    let bound = settings.and_then(|settings| settings.ports.clone());
    let mut ports = BTreeSet::new();
    for (port, bindings) in bound.unwrap_or_default() {
        let Some((number, transport)) = port.split_once('/') else {
            continue;
        };
        let (Ok(service_port), Some(transport)) = (number.parse(), Transport::from_name(transport))
        else {
            continue;
        };
        let host = bindings.unwrap_or_default().into_iter();
        let host = host.filter_map(|binding| binding.host_port?.parse().ok());
        ports.extend(host.map(|system_port| PublishedPort {
            transport,
            system_port,
            service_port,
        }));
    }
    ports.into_iter().collect()
}

fn creation(inspected: &ContainerInspectResponse) -> Creation {
    let config = inspected.config.clone().unwrap_or_default();
    let host = inspected.host_config.clone().unwrap_or_default();
    let restart = host.restart_policy.unwrap_or_default();
    let health = config.healthcheck.filter(|check| {
        let test = check.test.as_deref().unwrap_or_default();
        !matches!(test, []) && test[0] != "NONE"
    });
    let id = inspected.image.clone().unwrap_or_default();
    Creation {
        image: config.image.unwrap_or_default(),
        image_id: id.trim_start_matches("sha256:").to_owned(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        restart: Restart {
            policy: restart
                .name
                .map(|name| name.to_string())
                .unwrap_or_default(),
            times: restart.maximum_retry_count.unwrap_or_default(),
        },
        groups: host.group_add.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        stop_signal: config
            .stop_signal
            .filter(|signal| signal != "SIGTERM" && signal != "15"),
        stop_seconds: config
            .stop_timeout
            .filter(|seconds| *seconds != DEFAULT_STOP_SECONDS),
        read_only: host.readonly_rootfs.unwrap_or_default(),
        nano_cpus: host.nano_cpus.filter(|cpus| *cpus > 0),
        pids_limit: host.pids_limit.filter(|limit| *limit > 0),
        health: health.map(|check| Health {
            test: check.test.unwrap_or_default(),
            interval_ns: check.interval.unwrap_or_default(),
            timeout_ns: check.timeout.unwrap_or_default(),
            retries: check.retries.unwrap_or_default(),
            start_period_ns: check.start_period.unwrap_or_default(),
        }),
    }
}

/// What engines give a container to stop unless they are told otherwise, seconds.
const DEFAULT_STOP_SECONDS: i64 = 10;

fn obstacles(seen: &Seen, host: Option<&HostConfig>) -> Vec<Obstacle> {
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

fn container(kind: ObstacleKind, detail: &str) -> Obstacle {
    Obstacle {
        kind,
        pid: 0,
        detail: detail.to_owned(),
    }
}

/// What the standalone host does not do of what the engine was told.
fn losses(points: &[MountPoint], creation: &Creation, published: bool) -> Vec<Loss> {
    let mut settings = Vec::new();
    if published {
        let ends = "nothing answers at its published ports here any more, and open connections end";
        settings.push(ends.to_owned());
    }
    if creation.restart.is_on() {
        settings.push(format!(
            "it is not started again (`--restart {}`)",
            creation.restart.policy
        ));
    }
    if creation.health.is_some() {
        settings.push("its health is not checked".to_owned());
    }
    if creation.nano_cpus.is_some() {
        settings.push("its processors are not limited (`--cpus`)".to_owned());
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
    let told = settings.chain(bound);
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

#[cfg(test)]
mod test {
    use super::*;

    fn seen(text: &str) -> Seen {
        Seen {
            inspected: serde_json::from_str(text).unwrap(),
            state: serde_json::from_str(r#"{"init_process_pid":7,"config":{"rootfs":"/r"}}"#).ok(),
            mounts: mounts::read(
                "73 47 0:39 / / rw - overlay overlay rw,lowerdir=/l\n\
                 89 75 0:47 / /dev/shm rw - tmpfs shm rw\n\
                 90 73 254:0 /v /data rw - ext4 /dev/vda rw\n",
            ),
            ..Seen::default()
        }
    }

    /// As Docker 20.10 tells it, shortened.
    const PLAIN: &str = r#"{"Path":"/bin/redis-server","Args":["--port","6379"],"Image":"sha256:31",
        "State":{"Running":true,"Paused":false},
        "HostConfig":{"NetworkMode":"default","IpcMode":"private","RestartPolicy":{"Name":"no"},"Memory":0},
        "Mounts":[{"Type":"volume","Name":"mydata","Source":"/v/mydata/_data","Destination":"/data","RW":true}],
        "Config":{"Hostname":"f9","Env":["A=b"],"WorkingDir":"","Image":"redis:7","Labels":{"x":"y"}},
        "NetworkSettings":{"Ports":{"6379/tcp":[{"HostIp":"0.0.0.0","HostPort":"16379"},{"HostIp":"::","HostPort":"16379"}],
          "80/tcp":null},
          "Networks":{"bridge":{"IPAddress":"172.17.0.2","IPPrefixLen":16}}}}"#;

    fn described(text: &str) -> Described {
        let image = ImageId::try_from("0".repeat(64)).unwrap();
        describe("web".parse().unwrap(), image, &seen(text))
    }

    #[test]
    fn an_ordinary_container_has_nothing_in_the_way() {
        let of = described(PLAIN);
        assert_eq!(of.obstacles, []);
        let grave = of.losses.iter().filter(|loss| loss.kind.needs_consent());
        // That its place is not kept.
        assert_eq!(grave.count(), 1, "{:?}", of.losses);
        let specification = of.specification;
        assert_eq!(
            specification.command,
            ["/bin/redis-server", "--port", "6379"]
        );
        assert_eq!(specification.address.to_string(), "172.17.0.2");
        assert_eq!(specification.ports.len(), 1);
        assert_eq!(specification.volumes[0].name.as_str(), "data");
        assert_eq!(of.volumes["data"], "/v/mydata/_data");
        assert_eq!(specification.mounts, []);
        assert_eq!(specification.creation.unwrap().image, "redis:7");
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let cases = [
            (
                r#""Paused":false"#,
                r#""Paused":true"#,
                ObstacleKind::Paused,
            ),
            (
                r#""IpcMode":"private""#,
                r#""IpcMode":"host""#,
                ObstacleKind::SharedNamespace,
            ),
            (
                r#""NetworkMode":"default""#,
                r#""NetworkMode":"host""#,
                ObstacleKind::SharedNamespace,
            ),
            (
                r#""Memory":0"#,
                r#""Memory":0,"Privileged":true"#,
                ObstacleKind::Privileged,
            ),
            (
                r#""Hostname":"f9""#,
                r#""Hostname":"f9","Tty":true"#,
                ObstacleKind::Terminal,
            ),
        ];
        for (from, to, kind) in cases {
            let of = described(&PLAIN.replace(from, to));
            assert_eq!(
                of.obstacles.iter().map(|o| o.kind).collect::<Vec<_>>(),
                [kind]
            );
        }
        let mut seen = seen(PLAIN);
        seen.state = None;
        seen.strangers = vec![99];
        let image = ImageId::try_from("0".repeat(64)).unwrap();
        let of = describe("web".parse().unwrap(), image, &seen);
        let kinds: Vec<_> = of.obstacles.iter().map(|o| o.kind).collect();
        assert_eq!(kinds, [ObstacleKind::Runtime, ObstacleKind::ExecSession]);
    }

    #[test]
    fn what_is_not_kept_has_to_be_accepted() {
        let restart = described(&PLAIN.replace(r#""Name":"no""#, r#""Name":"always""#));
        let grave = |of: Described| {
            of.losses
                .into_iter()
                .rfind(|loss| loss.kind.needs_consent())
        };
        assert_eq!(grave(restart).unwrap().kind, LossKind::EngineSetting);
        let bound = described(&PLAIN.replace(r#""Type":"volume""#, r#""Type":"bind""#));
        assert_eq!(grave(bound).unwrap().kind, LossKind::HostDirectory);
    }

    #[test]
    fn names_of_containers_become_names_of_services() {
        assert_eq!(service_name("My_Web.1").unwrap().as_str(), "my-web-1");
        assert_eq!(service_name("__"), None);
        let taken = BTreeMap::from([("data".to_owned(), String::new())]);
        assert_eq!(free_name("/data", &taken).unwrap().as_str(), "data-2");
    }
}
