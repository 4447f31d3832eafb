use ums_core::facts::LossKind;

use super::place::free_name;
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
        place_stays: true,
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
    let grave = |of: &Described| {
        let mut losses = of.losses.iter();
        losses.any(|loss| loss.kind.needs_consent())
    };
    assert!(!grave(&of), "{:?}", of.losses);
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
    let image = ImageId::try_from("0".repeat(64)).unwrap();
    let leaves = Seen {
        place_stays: false,
        ..seen(PLAIN)
    };
    assert!(grave(&describe("web".parse().unwrap(), image, &leaves)));
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
    let joined = described(&PLAIN.replace(r#""Networks":{"bridge""#, r#""Networks":{"backend""#));
    let names = grave(joined).unwrap();
    assert_eq!(names.kind, LossKind::EngineNames);
    assert!(names.detail.contains("`backend`"), "{}", names.detail);
}

#[test]
fn names_of_containers_become_names_of_services() {
    assert_eq!(service_name("My_Web.1").unwrap().as_str(), "my-web-1");
    assert_eq!(service_name("__"), None);
    let taken = BTreeMap::from([("data".to_owned(), String::new())]);
    assert_eq!(free_name("/data", &taken).unwrap().as_str(), "data-2");
}
