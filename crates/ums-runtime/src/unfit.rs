//! Containers that a service can't arrive in: what the engine wants of them would silently not be so.

use std::os::unix::fs::MetadataExt;

use serde_json::Value;

/// Namespaces that a service has of its own, and that a checkpoint brings.
const OWN: [&str; 5] = ["pid", "ipc", "uts", "mount", "network"];

/// Why a service can't arrive in the container of this `config.json`; `None` when it can. `is_hosts` tells of a file
/// whether it is the host's network namespace: engines name that, too.
pub(crate) fn reason(config: &Value, is_hosts: impl Fn(&str) -> bool) -> Option<String> {
    let namespaces = config
        .pointer("/linux/namespaces")
        .and_then(Value::as_array);
    let namespaces = namespaces.map_or(&[][..], Vec::as_slice);
    let of = |kind: &str| namespaces.iter().find(|it| it["type"] == kind);
    let path = |kind: &str| of(kind)?["path"].as_str().filter(|path| !path.is_empty());
    if of("user").is_some() {
        return Some(cant(
            "has a user namespace",
            "create it without one (Docker: `--userns host`)",
        ));
    }
    let is_network_of_host = |kind: &str| kind == "network" && path(kind).is_some_and(&is_hosts);
    let of_host = |kind: &str| of(kind).is_none() || is_network_of_host(kind);
    if let Some(kind) = OWN.iter().find(|kind| of_host(kind)) {
        let what = format!("has the {kind} namespace of its host");
        return Some(cant(&what, "create it with one of its own"));
    }
    // A network may be made by the engine beforehand; the others come with the processes.
    if let Some(kind) = OWN
        .iter()
        .find(|kind| **kind != "network" && path(kind).is_some())
    {
        let what = format!("shares the {kind} namespace of another one");
        return Some(cant(&what, "create it with one of its own"));
    }
    if config.pointer("/process/terminal") == Some(&Value::Bool(true)) {
        return Some(cant(
            "has a terminal",
            "create it without one (`--tty=false`)",
        ));
    }
    None
}

/// Whether this file is the network namespace that this process is in: its engine's, who has the host's.
pub(crate) fn is_own_network(path: &str) -> bool {
    let number = |path: &str| {
        std::fs::metadata(path)
            .map(|file| (file.dev(), file.ino()))
            .ok()
    };
    number(path).is_some_and(|it| number("/proc/self/ns/net") == Some(it))
}

fn cant(what: &str, remedy: &str) -> String {
    format!("no service can arrive in a container that {what}: {remedy}")
}

#[cfg(test)]
mod test {
    use serde_json::json;

    use super::*;

    fn config(terminal: bool, namespaces: &[(&str, &str)]) -> Value {
        let namespaces = namespaces.iter().map(|(kind, path)| match path.is_empty() {
            true => json!({ "type": kind }),
            false => json!({ "type": kind, "path": path }),
        });
        json!({
            "process": { "terminal": terminal },
            "linux": { "namespaces": namespaces.collect::<Vec<_>>() },
        })
    }

    fn fit(config: &Value) -> Option<String> {
        reason(config, |path| path == "/run/netns/host")
    }

    const ALL: [(&str, &str); 6] = [
        ("mount", ""),
        ("network", ""),
        ("uts", ""),
        ("pid", ""),
        ("ipc", ""),
        ("cgroup", ""),
    ];

    #[test]
    fn the_network_of_this_process_is_known() {
        assert!(is_own_network("/proc/self/ns/net") && !is_own_network("/proc/self/ns/pid"));
        assert!(!is_own_network("/nonexistent"));
    }

    #[test]
    fn what_engines_make_by_default_fits() {
        assert_eq!(fit(&config(false, &ALL)), None);
        let mut all = ALL;
        all[1] = ("network", "/run/netns/x");
        assert_eq!(fit(&config(false, &all)), None);
    }

    #[test]
    fn what_would_silently_not_be_so_is_refused() {
        let mut user = ALL.to_vec();
        user.push(("user", ""));
        assert!(
            fit(&config(false, &user))
                .unwrap()
                .contains("user namespace")
        );
        assert!(fit(&config(true, &ALL)).unwrap().contains("terminal"));
        for (lacking, (kind, _)) in ALL.iter().enumerate().take(5) {
            let mut fewer = ALL.to_vec();
            fewer.remove(lacking);
            let why = fit(&config(false, &fewer)).unwrap();
            assert!(why.contains(kind) && why.contains("of its host"), "{why}");
        }
        let mut all = ALL;
        all[1].1 = "/run/netns/host";
        assert!(fit(&config(false, &all)).unwrap().contains("of its host"));
        for shared in [0, 2, 3, 4] {
            let mut all = ALL;
            all[shared].1 = "/proc/7/ns/x";
            let why = fit(&config(false, &all)).unwrap();
            assert!(why.contains("of another one"), "{why}");
        }
        assert!(fit(&json!({})).is_some());
    }
}
