//! What runc keeps of a container that it has made (libcontainer's `state.json`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Places where engines have runc keep its state, below which each container has a directory of its id.
const USUAL: [&str; 4] = [
    "/run/docker/runtime-runc/moby",
    "/run/containerd/runc/moby",
    "/run/runc",
    "/run/containers/runc",
];

/// The state of a container under runc.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct State {
    /// Its init.
    pub init_process_pid: i32,
    /// CRIU's names of what its standard streams were made.
    #[serde(default)]
    pub external_descriptors: Vec<String>,
    /// Its control groups: directories, by controller; of the unified hierarchy by no name.
    #[serde(default)]
    pub cgroup_paths: BTreeMap<String, PathBuf>,
    /// How it was made.
    pub config: Config,
}

impl State {
    /// The path of its control groups below each hierarchy.
    pub fn cgroup(&self) -> Option<String> {
        let named = self.cgroup_paths.iter().find(|(name, _)| !name.is_empty());
        let (_, directory) = named.or_else(|| self.cgroup_paths.iter().next())?;
        let below = directory.strip_prefix("/sys/fs/cgroup").ok()?;
        let mut parts = below.components();
        // The hierarchies of version 1 have a directory each.
        if named.is_some() {
            parts.next();
        }
        Some(format!("/{}", parts.as_path().display()))
    }
}

/// How runc was told to make a container, as far as we ask.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// Its root filesystem, as the host sees it.
    pub rootfs: PathBuf,
    /// Its capabilities.
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
}

/// A container's capabilities.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Capabilities {
    /// Those that it can ever have, `CAP_…` each.
    pub bounding: Vec<String>,
}

/// The state of a container, where runc has one. `sandbox` is where Docker has its network namespace,
/// which is beside where it has runc keep its state.
pub fn state(id: &str, sandbox: Option<&str>) -> Option<State> {
    places(sandbox).iter().find_map(|place| {
        let text = fs::read_to_string(place.join(id).join("state.json")).ok()?;
        serde_json::from_str(&text).ok()
    })
}

fn places(sandbox: Option<&str>) -> Vec<PathBuf> {
    let above = sandbox.and_then(|path| Path::new(path).parent()?.parent());
    let beside = above.map(|root| root.join("runtime-runc/moby"));
    beside.into_iter().chain(USUAL.map(PathBuf::from)).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_asked_of_a_state() {
        let text = r#"{"id":"x","init_process_pid":7,"external_descriptors":["/dev/null","pipe:[1]","pipe:[2]"],
            "config":{"rootfs":"/r","capabilities":{"Bounding":["CAP_CHOWN"],"Ambient":null}}}"#;
        let state: State = serde_json::from_str(text).unwrap();
        assert_eq!(state.external_descriptors[2], "pipe:[2]");
        assert_eq!(state.cgroup(), None);
        assert_eq!(state.config.capabilities.unwrap().bounding, ["CAP_CHOWN"]);
    }

    #[test]
    fn control_groups_have_one_path_below_all_hierarchies() {
        let of = |paths: &str| {
            let text = format!(
                r#"{{"init_process_pid":7,"cgroup_paths":{paths},"config":{{"rootfs":"/r"}}}}"#
            );
            serde_json::from_str::<State>(&text)
                .unwrap()
                .cgroup()
                .unwrap()
        };
        let v1 =
            r#"{"":"/sys/fs/cgroup/unified/docker/x","memory":"/sys/fs/cgroup/memory/docker/x"}"#;
        assert_eq!(of(v1), "/docker/x");
        assert_eq!(
            of(r#"{"":"/sys/fs/cgroup/system.slice/docker-x.scope"}"#),
            "/system.slice/docker-x.scope"
        );
    }

    #[test]
    fn runc_is_looked_for_beside_the_engine_first() {
        let places = places(Some("/x/exec/netns/7b70"));
        assert_eq!(places[0], Path::new("/x/exec/runtime-runc/moby"));
    }
}
