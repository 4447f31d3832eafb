use std::path::Path;

use ums_core::specification::{ImageId, PublishedPort, Specification, Transport, Volume};

use super::*;

pub(super) fn specification() -> Specification {
    Specification {
        name: "web".parse().unwrap(),
        image: ImageId::try_from("0".repeat(64)).unwrap(),
        command: vec!["/bin/sleep".into(), "60".into()],
        env: vec!["PATH=/bin".into()],
        cwd: String::new(),
        uid: 0,
        gid: 0,
        memory_limit_bytes: Some(64 << 20),
        volumes: vec![Volume {
            name: "data".parse().unwrap(),
            path: "/srv/data".into(),
        }],
        address: [10, 88, 0, 2].into(),
        prefix_len: 16,
        ports: vec![],
        mounts: Vec::new(),
        creation: None,
        engine: None,
        capabilities: DEFAULT_CAPABILITIES.map(String::from).to_vec(),
        hostname: "web".into(),
    }
}

fn places() -> Places<'static> {
    Places {
        rootfs: Path::new("/s/merged"),
        netns: Path::new("/run/netns/web"),
        volumes: Path::new("/s/volumes"),
        shm: Path::new("/s/shm"),
        cgroup: "/ums/a/web",
    }
}

#[test]
fn no_mount_holds_files_that_would_be_dumped_in_the_freeze() {
    let config = config(&specification(), &places(), (1024, 4096)).unwrap();
    for mount in config["mounts"].as_array().unwrap() {
        assert!(
            !matches!(mount["type"].as_str(), Some("tmpfs" | "cgroup")),
            "{mount}"
        );
        assert_ne!(mount["destination"], "/dev");
    }
    let kinds: Vec<_> = config["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "network"]);
    assert_eq!(config["process"]["cwd"], "/");
    assert_eq!(config["linux"]["resources"]["memory"]["limit"], 64 << 20);
}

#[test]
fn every_bind_mount_is_external() {
    let mut specification = specification();
    let inner = Volume {
        name: "inner".parse().unwrap(),
        path: "/srv/data/inner".into(),
    };
    specification.volumes.insert(0, inner);
    let external = external_mounts(&specification, &places());
    let config = config(&specification, &places(), (1024, 4096)).unwrap();
    let binds: Vec<_> = config["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|mount| mount["type"] == "bind")
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    assert_eq!(binds.len(), external.len());
    assert!(
        external
            .iter()
            .all(|mount| binds.contains(&mount.mountpoint.as_str()))
    );
    // The outer volume first, or it would hide the inner one.
    let place = |path| binds.iter().position(|bind| *bind == path).unwrap();
    assert!(place("/srv/data") < place("/srv/data/inner"));
}

#[test]
fn a_volume_can_not_take_the_key_of_shared_memory() {
    let mut specification = specification();
    specification.volumes[0].name = "shm".parse().unwrap();
    let keys: Vec<_> = external_mounts(&specification, &places())
        .into_iter()
        .map(|mount| mount.key)
        .collect();
    assert_eq!(keys, ["shm", "volume-shm"]);
}

#[test]
fn the_soft_limit_never_exceeds_the_hard_one() {
    let config = config(&specification(), &places(), (9000, 4096)).unwrap();
    assert_eq!(config["process"]["rlimits"][0]["soft"], 4096);
}

#[test]
fn what_can_not_be_made_is_refused_by_name() {
    type Change = fn(&mut Specification);
    let cases: [(Change, &str); 15] = [
        (|s| s.command.clear(), "command is empty"),
        (|s| s.command[1] = "a\0b".into(), "argument number 1"),
        (|s| s.env.push("=x".into()), "entry number 1"),
        (|s| s.env.push("PATH".into()), "entry number 1"),
        (|s| s.cwd = "srv".into(), "working directory"),
        (|s| s.cwd = "/srv/../..".into(), "working directory"),
        (|s| s.capabilities.push("CAP_FLY".into()), "CAP_FLY"),
        (
            |s| s.volumes[0].path = "/proc/x".into(),
            "belong to the runtime",
        ),
        (|s| s.volumes[0].path = "/a]:b".into(), "brackets"),
        (|s| s.volumes[0].path = "/".into(), "absolute path below"),
        (|s| s.volumes.push(s.volumes[0].clone()), "another volume"),
        (|s| s.hostname = String::new(), "host name"),
        (|s| s.prefix_len = 31, "prefix length"),
        (|s| s.memory_limit_bytes = Some(0), "memory limit"),
        (
            |s| {
                let port = |transport, service_port| PublishedPort {
                    system_port: 53,
                    service_port,
                    transport,
                };
                let (tcp, udp) = (Transport::Tcp, Transport::Udp);
                s.ports = vec![port(tcp, 53), port(udp, 53), port(udp, 54)];
            },
            "53/udp of the system is published twice",
        ),
    ];
    check(&specification()).unwrap();
    for (change, word) in cases {
        let mut changed = specification();
        change(&mut changed);
        let error = check(&changed).unwrap_err().to_string();
        assert!(error.contains(word), "{error} should say {word}");
    }
}
