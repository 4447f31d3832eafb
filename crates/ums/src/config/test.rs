use std::ffi::OsString;

use clap::Parser;
use tempfile::TempDir;
use ums_api::client::Permission;

use super::*;

fn variables(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> {
    move |name| {
        pairs
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.into())
    }
}

/// Loads a file with this text, under an environment and no flags.
fn load(text: &str, pairs: &'static [(&'static str, &'static str)]) -> Result<Config, String> {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("ums.toml");
    std::fs::write(&path, text).expect("the file is written");
    let variable = variables(pairs);
    let sources = Sources {
        flags: Layer::default(),
        file: Some(path.clone()),
        variable: &variable,
    };
    Config::load(sources).map_err(|error| {
        error
            .to_string()
            .replace(&path.display().to_string(), "FILE")
    })
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = load("", &[]).expect("defaults");
    assert_eq!(config.state_dir, Path::new("/var/lib/ums"));
    assert_eq!(config.socket(), Path::new("/run/ums/ums.sock"));
    assert_eq!(config.cert, Path::new("/var/lib/ums/pki/cert.pem"));
    assert_eq!(config.listen.to_string(), "0.0.0.0:7443");
    assert_eq!(config.service_network.to_string(), "10.88.0.0/16");
    assert_eq!(config.limits.outgoing_max, 4);
    assert_eq!(config.bandwidth_limit, None);
}

#[test]
fn a_full_file_is_read() {
    let text = r#"
        system = "a"
        state_dir = "/srv/ums"
        listen = "10.77.0.1:7000"
        advertise = "10.77.0.1"
        data_port = 30000
        service_network = "10.99.0.0/24"
        key = "/etc/ums/key.pem"
        bandwidth_limit = "800mbit"
        lease = "30s"
        log_format = "json"
        restore = "eager"

        [limits]
        outgoing = 1
        hold_connections = 10
        hold_seconds = 5
        keep_images_seconds = 60
        idle_seconds = 120
        freeze_seconds = 9

        [engines]
        docker = "/run/docker.sock"
        [peers.b]
        address = "10.77.0.2:7000"
        allow = ["send", "receive"]
    "#;
    let config = load(text, &[]).expect("a good file");
    assert_eq!(config.system().expect("set").as_str(), "a");
    assert_eq!(config.ca, Path::new("/srv/ums/pki/ca.pem"));
    assert_eq!(config.key, Path::new("/etc/ums/key.pem"));
    assert_eq!(config.bandwidth_limit, Some(100_000_000));
    let engines: Vec<_> = config
        .engines
        .iter()
        .map(|(name, at)| (name.as_str(), at))
        .collect();
    assert_eq!(engines, [("docker", &"/run/docker.sock".into())]);
    assert_eq!(config.lease, Duration::from_secs(30));
    assert_eq!(
        (config.limits.outgoing_max, config.limits.hold_seconds_max),
        (1, 5)
    );
    assert_eq!(
        (
            config.limits.keep_images_seconds,
            config.limits.idle_seconds,
            config.limits.freeze_seconds
        ),
        (60, 120, 9)
    );
    assert_eq!(config.restore, Restore::Eager);
    let b = "b".parse().expect("a name");
    let peer = config
        .peers()
        .all()
        .expect("readable")
        .remove(&b)
        .expect("known");
    assert_eq!(peer.allow, [Permission::Send, Permission::Receive]);
}

#[test]
fn a_bad_value_in_the_file_is_named_with_line_and_column() {
    let cases = [
        (
            "system = \"a\"\nlisten = \"here\"\n",
            "FILE:2:10: invalid socket address syntax",
        ),
        ("sistem = \"a\"\n", "FILE:1:1: unknown field `sistem`"),
        (
            "lease = \"1s\"\n",
            "FILE:1:9: `1s` is not a lease of 5s to 24h, such as 60s",
        ),
        (
            "[limits]\noutgoing = 0\n",
            "FILE:2:12: `0` is not a whole number from 1 to 64",
        ),
        ("[limits]\nhold = 1\n", "FILE:2:1: unknown field `hold`"),
        (
            "system = \"A_b\"\n",
            "FILE:1:10: `A_b` is not a usable system name",
        ),
        (
            "[peers.b]\naddress = \"10.0.0.2\"\n",
            "FILE:2:11: invalid socket address syntax",
        ),
        ("[peers.b]\n", "FILE:1:1: missing field `address`"),
        (
            "[peers.b]\naddress = \"10.0.0.2:1\"\nallow = [\"all\"]\n",
            "FILE:3:10: unknown variant `all`, expected `send` or `receive`",
        ),
        ("system = \"a\nlisten = 1\n", "FILE:1:"),
        (
            "service_network = \"10.88.0.1/16\"\n",
            "FILE:1:19: `10.88.0.1/16` is not an IPv4 network",
        ),
    ];
    for (text, wanted) in cases {
        let error = load(text, &[]).expect_err(text);
        assert!(error.starts_with(wanted), "{text:?} gave {error:?}");
    }
}

#[test]
fn a_bad_variable_is_named() {
    let error = load("", &[("UMS_LISTEN", "here")]).expect_err("not an address");
    assert_eq!(
        error,
        "environment variable UMS_LISTEN: `here` can't be used: invalid socket address syntax"
    );
    let error = load("", &[("UMS_SYSTEM", "")]).expect_err("empty");
    assert!(
        error.starts_with("environment variable UMS_SYSTEM: it is empty"),
        "{error}"
    );
}

#[test]
fn a_named_file_must_exist() {
    let variable = variables(&[("UMS_CONFIG", "/nonexistent/ums.toml")]);
    let sources = Sources {
        flags: Layer::default(),
        file: None,
        variable: &variable,
    };
    let error = Config::load(sources)
        .expect_err("there is no such file")
        .to_string();
    assert_eq!(
        error,
        "the configuration file /nonexistent/ums.toml can't be read"
    );
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    layer: Layer,
}

#[test]
fn a_flag_beats_a_variable_and_a_variable_beats_the_file() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("ums.toml");
    let text = "system = \"file\"\nrun_dir = \"/file\"\nstate_dir = \"/file\"\n";
    std::fs::write(&path, text).expect("the file is written");
    let variable = variables(&[("UMS_RUN_DIR", "/variable"), ("UMS_STATE_DIR", "/variable")]);
    let flags = Flags::try_parse_from(["ums", "--state-dir", "/flag"]).expect("good flags");
    let sources = Sources {
        flags: flags.layer,
        file: Some(path),
        variable: &variable,
    };
    let config = Config::load(sources).expect("good layers");
    assert_eq!(config.system().expect("set").as_str(), "file");
    assert_eq!(config.run_dir, Path::new("/variable"));
    assert_eq!(config.state_dir, Path::new("/flag"));
}

#[test]
fn a_bad_flag_is_named() {
    let error = Flags::try_parse_from(["ums", "--lease", "1s"])
        .err()
        .expect("too short");
    let text = error.to_string();
    assert!(
        text.contains("'--lease <TIME>'") && text.contains("a lease of 5s to 24h"),
        "{text}"
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn peers_are_added_seen_at_once_and_removed() {
    let directory = TempDir::new().expect("a directory");
    let peers = Peers::new(BTreeMap::new(), directory.path().join("peers.d"));
    let name: SystemName = "b".parse().expect("a name");
    assert_eq!(peers.all().expect("none yet"), BTreeMap::new());
    assert!(matches!(peers.remove(&name), Err(PeersError::Unknown(_))));

    let peer = Peer {
        address: "10.77.0.2:7070".parse().expect("an address"),
        allow: vec![Permission::Receive],
    };
    let same = peers.clone();
    let path = peers.add(&name, &peer).expect("added");
    assert_eq!(same.all().expect("readable").get(&name), Some(&peer));
    assert_eq!(same.all().expect("readable").len(), 1);

    std::fs::write(&path, "address = 7\n").expect("spoilt");
    let error = same.all().expect_err("not an address").to_string();
    assert!(error.contains("b.toml:1:11: "), "{error}");
    peers.remove(&name).expect("removed");
    assert_eq!(same.all().expect("readable"), BTreeMap::new());
}

#[test]
fn configured_peers_are_not_changed_by_the_command() {
    let directory = TempDir::new().expect("a directory");
    let name: SystemName = "b".parse().expect("a name");
    let peer = Peer {
        address: "10.77.0.2:7070".parse().expect("an address"),
        allow: Vec::new(),
    };
    let configured = BTreeMap::from([(name.clone(), peer.clone())]);
    let peers = Peers::new(configured, directory.path().to_owned());
    assert!(matches!(
        peers.add(&name, &peer),
        Err(PeersError::Configured(_))
    ));
    assert!(matches!(
        peers.remove(&name),
        Err(PeersError::Configured(_))
    ));
}
