//! From a Specification to what an engine is asked to make. Pure.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, Mount, MountType, MountVolumeOptions,
    PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use ums_core::specification::{Creation, Health, PublishedPort, Specification};
use ums_standalone::bundle::DEFAULT_CAPABILITIES;

use super::record::Volume;
use crate::making::{MIGRATION_LABEL, RUNTIME};

/// What the engine is asked to make of a service: all that was said of it at its source, but that it is started anew when
/// it ends. `volumes` are the engine's, by the service's names.
pub fn body(
    of: &Specification,
    image: String,
    volumes: &BTreeMap<String, Volume>,
    migration: &str,
) -> ContainerCreateBody {
    let plain = Creation::default();
    let creation = of.creation.as_deref().unwrap_or(&plain);
    let mut labels: HashMap<String, String> = creation.labels.clone().into_iter().collect();
    labels.insert(MIGRATION_LABEL.to_owned(), migration.to_owned());
    let mut command = of.command.iter().cloned();
    let user = match creation.user.as_str() {
        "" => format!("{}:{}", of.uid, of.gid),
        user => user.to_owned(),
    };
    ContainerCreateBody {
        hostname: Some(of.hostname.clone()),
        user: Some(user),
        exposed_ports: Some(of.ports.iter().map(inside).collect()),
        env: Some(of.env.clone()),
        entrypoint: Some(command.by_ref().take(1).collect()),
        cmd: Some(command.collect()),
        healthcheck: creation.health.as_ref().map(health),
        image: Some(image),
        working_dir: Some(of.cwd.clone()),
        labels: Some(labels),
        stop_signal: creation.stop_signal.clone(),
        stop_timeout: creation.stop_seconds,
        host_config: Some(host(of, creation, volumes)),
        ..ContainerCreateBody::default()
    }
}

fn host(of: &Specification, creation: &Creation, volumes: &BTreeMap<String, Volume>) -> HostConfig {
    let no_restart = RestartPolicy {
        name: Some(RestartPolicyNameEnum::NO),
        maximum_retry_count: None,
    };
    let is_usual = of.capabilities.len() == DEFAULT_CAPABILITIES.len()
        && DEFAULT_CAPABILITIES
            .iter()
            .all(|name| of.capabilities.iter().any(|own| own == name));
    let (cap_drop, cap_add) = match is_usual {
        true => (None, None),
        false => (Some(vec!["ALL".to_owned()]), Some(of.capabilities.clone())),
    };
    // Nobody's program gains a privilege by being executed in a service that UMS has started.
    let no_new_privileges = of
        .creation
        .is_none()
        .then(|| "no-new-privileges".to_owned());
    HostConfig {
        memory: of
            .memory_limit_bytes
            .and_then(|bytes| i64::try_from(bytes).ok()),
        nano_cpus: creation.nano_cpus,
        pids_limit: creation.pids_limit,
        port_bindings: Some(bindings(&of.ports)),
        restart_policy: Some(no_restart),
        group_add: Some(creation.groups.clone()).filter(|groups| !groups.is_empty()),
        extra_hosts: Some(creation.hosts.clone()).filter(|hosts| !hosts.is_empty()),
        readonly_rootfs: creation.read_only.then_some(true),
        cap_add,
        cap_drop,
        security_opt: no_new_privileges.map(|it| vec![it]),
        mounts: Some(mounts(of, volumes)),
        runtime: Some(RUNTIME.to_owned()),
        ..HostConfig::default()
    }
}

fn mounts(of: &Specification, volumes: &BTreeMap<String, Volume>) -> Vec<Mount> {
    let mount = |volume: &ums_core::specification::Volume| {
        let options = MountVolumeOptions {
            // What the image has there came with the service, or was removed by it.
            no_copy: Some(true),
            ..MountVolumeOptions::default()
        };
        Some(Mount {
            target: Some(volume.path.clone()),
            source: Some(volumes.get(volume.name.as_str())?.name.clone()),
            typ: Some(MountType::VOLUME),
            volume_options: Some(options),
            ..Mount::default()
        })
    };
    of.volumes.iter().filter_map(mount).collect()
}

/// A port of the service, as engines write it.
fn inside(port: &PublishedPort) -> String {
    format!("{}/{}", port.service_port, port.transport.name())
}

fn bindings(ports: &[PublishedPort]) -> HashMap<String, Option<Vec<PortBinding>>> {
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in ports {
        let binding = PortBinding {
            host_ip: None,
            host_port: Some(port.system_port.to_string()),
        };
        let of = bindings.entry(inside(port)).or_default();
        of.get_or_insert_default().push(binding);
    }
    bindings
}

fn health(of: &Health) -> HealthConfig {
    let told = |nanoseconds: i64| (nanoseconds != 0).then_some(nanoseconds);
    HealthConfig {
        test: Some(of.test.clone()),
        interval: told(of.interval_ns),
        timeout: told(of.timeout_ns),
        retries: told(of.retries),
        start_period: told(of.start_period_ns),
        ..HealthConfig::default()
    }
}

#[cfg(test)]
mod test {
    use ums_core::specification::{ImageId, Restart, Transport, Volume as Of};

    use super::*;

    fn specification() -> Specification {
        Specification {
            name: "web".parse().unwrap(),
            image: ImageId::try_from("0".repeat(64)).unwrap(),
            command: ["/bin/web", "-a", "b"].map(str::to_owned).to_vec(),
            env: vec!["A=b".to_owned()],
            cwd: "/srv".to_owned(),
            uid: 7,
            gid: 8,
            memory_limit_bytes: Some(1 << 20),
            volumes: vec![Of {
                name: "data".parse().unwrap(),
                path: "/data".to_owned(),
            }],
            address: "10.88.0.2".parse().unwrap(),
            prefix_len: 16,
            ports: [80, 81]
                .map(|system_port| PublishedPort {
                    transport: Transport::Tcp,
                    system_port,
                    service_port: 8080,
                })
                .to_vec(),
            capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
            hostname: "web".to_owned(),
            mounts: Vec::new(),
            creation: None,
            engine: None,
        }
    }

    fn asked(of: &Specification) -> serde_json::Value {
        let volume = Volume {
            name: "web-data".to_owned(),
            path: "/v".into(),
        };
        let volumes = BTreeMap::from([("data".to_owned(), volume)]);
        serde_json::to_value(body(of, "i:1".to_owned(), &volumes, "m")).unwrap()
    }

    #[test]
    fn a_service_of_ums_becomes_a_container() {
        let asked = asked(&specification());
        assert_eq!(asked["Entrypoint"], serde_json::json!(["/bin/web"]));
        assert_eq!(asked["Cmd"], serde_json::json!(["-a", "b"]));
        assert_eq!(asked["User"], "7:8");
        let host = &asked["HostConfig"];
        assert_eq!(host["Runtime"], "ums");
        assert_eq!(host["Memory"], 1 << 20);
        assert_eq!(host["SecurityOpt"][0], "no-new-privileges");
        assert!(host["CapDrop"].is_null(), "they are the usual ones");
        let bindings = host["PortBindings"]["8080/tcp"].as_array().unwrap();
        assert_eq!(bindings.len(), 2);
        assert_eq!(bindings[1]["HostPort"], "81");
        assert_eq!(host["Mounts"][0]["Source"], "web-data");
        assert_eq!(host["Mounts"][0]["VolumeOptions"]["NoCopy"], true);
    }

    #[test]
    fn what_another_engine_was_told_is_told_again_but_the_restart() {
        let mut of = specification();
        of.capabilities = vec!["CAP_CHOWN".to_owned()];
        of.creation = Some(Box::new(Creation {
            labels: BTreeMap::from([("x".to_owned(), "y".to_owned())]),
            restart: Restart {
                policy: "always".to_owned(),
                times: 0,
            },
            user: "redis".to_owned(),
            stop_signal: Some("SIGQUIT".to_owned()),
            groups: vec!["5".to_owned()],
            hosts: vec!["db:192.0.2.1".to_owned()],
            read_only: true,
            ..Creation::default()
        }));
        let asked = asked(&of);
        assert_eq!(asked["User"], "redis");
        assert_eq!(asked["Labels"]["x"], "y");
        assert_eq!(asked["StopSignal"], "SIGQUIT");
        let host = &asked["HostConfig"];
        assert_eq!(host["RestartPolicy"]["Name"], "no");
        assert_eq!(host["CapDrop"][0], "ALL");
        assert_eq!(host["CapAdd"][0], "CAP_CHOWN");
        assert_eq!(host["GroupAdd"][0], "5");
        assert_eq!(host["ExtraHosts"][0], "db:192.0.2.1");
        assert_eq!(host["ReadonlyRootfs"], true);
        assert!(host["SecurityOpt"].is_null());
    }
}
