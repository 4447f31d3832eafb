//! What an outer container has to be given by whoever starts it, looked for before anything is done. What is
//! missing is told by the flag that gives it (of `docker run` and `podman run`, which have the same).

use std::fs;
use std::path::Path;

use ums_core::wrap;

/// Capabilities that engines don't give by themselves, by their numbers (capabilities(7)).
/// SYS_ADMIN has what CHECKPOINT_RESTORE has, which Docker 20.10 does not know by name.
const CAPABILITIES: [(u32, &str); 5] = [
    (12, "NET_ADMIN"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    // The kernel tells nobody else of a process's timer slack (proc_pid_timerslack_ns(5)), nor sets its scheduling.
    (23, "SYS_NICE"),
    // A restored service goes on with its own clocks (time_namespaces(7)).
    (25, "SYS_TIME"),
];
/// Packets of open connections go through it.
const TUN: &str = "/dev/net/tun";

/// What this container can and can't, as the kernel tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Given {
    capabilities: u64,
    filtered: bool,
    label: String,
    has_tun: bool,
    state_is_volume: bool,
    has_pki: bool,
    mounts: Vec<String>,
}

/// All that is missing, a line each; empty when nothing is.
pub(super) fn missing(image_volumes: &[String]) -> Vec<String> {
    told(&look(), image_volumes)
}

fn look() -> Given {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    let mounts = read("/proc/self/mountinfo");
    Given {
        capabilities: u64::from_str_radix(&value("CapEff:"), 16).unwrap_or_default(),
        filtered: value("Seccomp:") == "2",
        label: read("/proc/self/attr/current")
            .trim_end_matches(['\0', '\n'])
            .to_owned(),
        has_tun: Path::new(TUN).exists(),
        state_is_volume: mounted_at(&mounts, wrap::STATE),
        has_pki: ["ca.pem", "cert.pem", "key.pem"]
            .iter()
            .all(|name| Path::new(wrap::PKI).join(name).is_file()),
        mounts: foreign_mounts(&mounts),
    }
}

fn mounted_at(mountinfo: &str, place: &str) -> bool {
    mountinfo
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(place))
}

/// Where somebody has mounted something for the service: not the engine's usual mounts, and not ours. One
/// that an image declares has a volume without a name, of 64 hexadecimal digits, unless a person has named one.
fn foreign_mounts(mountinfo: &str) -> Vec<String> {
    const USUAL: [&str; 6] = [
        "/proc",
        "/sys",
        "/dev",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
    ];
    let is_below = |path: &str, top: &str| path == top || path.starts_with(&format!("{top}/"));
    let usual = |path: &str| {
        path == "/"
            || ["/run/.containerenv", "/run/secrets", wrap::DIRECTORY]
                .iter()
                .chain(&USUAL)
                .any(|top| is_below(path, top))
    };
    let fields = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    let nameless = |root: &str| {
        let hex =
            |part: &str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        root.split('/').any(hex)
    };
    let all = mountinfo.lines().filter_map(fields);
    let foreign = all.filter(|(_, at)| !usual(at));
    foreign
        .map(|(root, at)| match nameless(&root) {
            true => format!("nameless {at}"),
            false => at,
        })
        .collect()
}

fn told(given: &Given, image_volumes: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    let flags: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(number, _)| given.capabilities & (1 << number) == 0)
        .map(|(_, name)| format!("`--cap-add {name}`"))
        .collect();
    if !flags.is_empty() {
        missing.push(format!("capabilities are missing: add {}", flags.join(" ")));
    }
    if given.filtered {
        let why = "a process under a filter of system calls can't be checkpointed";
        missing.push(format!("{why}: add `--security-opt seccomp=unconfined`"));
    }
    if !matches!(
        given.label.as_str(),
        "" | "unconfined" | "unconfined (unconfined)"
    ) {
        missing.push(format!(
            "the container has the label `{}`, which forbids mounts: add `--security-opt apparmor=unconfined` \
             (AppArmor) or `--security-opt label=disable` (SELinux)",
            given.label
        ));
    }
    if !given.has_tun {
        missing.push(format!("{TUN} is missing: add `--device {TUN}`"));
    }
    if !given.state_is_volume {
        let state = wrap::STATE;
        missing.push(format!(
            "{state} is no volume, and an overlay can't lie on an overlay: add `-v {state}`"
        ));
    }
    if !given.has_pki {
        missing.push(format!(
            "the system's certificate is missing: add `-v /var/lib/ums/pki:{}:ro`",
            wrap::PKI
        ));
    }
    for mount in &given.mounts {
        let nameless = mount.strip_prefix("nameless ");
        if nameless.is_some_and(|at| image_volumes.iter().any(|it| it == at)) {
            continue;
        }
        let at = nameless.unwrap_or(mount);
        missing.push(format!(
            "something is mounted at {at}, which the service would not see: leave it out; what the service \
             writes is kept in {}, for which a volume can be named",
            wrap::STATE
        ));
    }
    missing
}

#[cfg(test)]
mod test {
    use super::*;

    fn enough() -> Given {
        Given {
            capabilities: u64::MAX,
            has_tun: true,
            state_is_volume: true,
            has_pki: true,
            ..Given::default()
        }
    }

    #[test]
    fn what_is_missing_is_told_by_the_flag_that_gives_it() {
        assert_eq!(told(&enough(), &[]), [""; 0]);
        let all = told(
            &Given {
                filtered: true,
                label: "docker-default (enforce)".into(),
                ..Given::default()
            },
            &[],
        );
        let all = all.join("\n");
        for flag in [
            "--cap-add NET_ADMIN",
            "--cap-add SYS_ADMIN",
            "--device /dev/net/tun",
            "seccomp=unconfined",
            "apparmor=unconfined",
            "-v /.ums/state",
            "/var/lib/ums/pki:/.ums/pki:ro",
        ] {
            assert!(all.contains(flag), "{flag} in {all}");
        }
    }

    #[test]
    fn a_volume_that_the_service_would_not_see_is_refused_by_name() {
        let hex = "0123456789abcdef".repeat(4);
        let mounts = format!(
            "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /proc rw - proc proc rw\n\
             3 1 8:1 /var/lib/docker/volumes/{hex}/_data /data rw - ext4 x rw\n\
             4 1 8:1 /var/lib/docker/volumes/mine/_data /mine rw - ext4 x rw\n\
             5 1 8:1 /var/lib/docker/containers/{hex}/hosts /etc/hosts rw - ext4 x rw\n\
             6 1 8:1 /srv/run /.ums/run rw - ext4 x rw\n"
        );
        let given = Given {
            mounts: foreign_mounts(&mounts),
            ..enough()
        };
        assert_eq!(given.mounts, ["nameless /data", "/mine"]);
        let declared = ["/data".to_owned()];
        let told_of = told(&given, &declared);
        assert_eq!(told_of.len(), 1, "{told_of:?}");
        assert!(told_of[0].contains("/mine"), "{told_of:?}");
        assert_eq!(told(&given, &[]).len(), 2);
    }
}
