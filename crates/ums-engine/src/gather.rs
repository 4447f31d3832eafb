//! Reads what is known of a container: from its engine's answer, from runc's state and from `/proc`. Blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use bollard::models::ContainerInspectResponse;
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::keeper::adopted::began;
use ums_core::id::ServiceName;
use ums_core::specification::{ImageId, MountContent};

use crate::describe::{Described, Seen, describe};
use crate::record::Record;
use crate::{mounts, runtime, stored};

/// What is known of a container under this name; `None` once it has ended. `image_of` says which image the layers are,
/// `place_stays` whether its place in the network stays for its clients.
pub fn record(
    engine: &str,
    name: ServiceName,
    inspected: ContainerInspectResponse,
    image_of: impl Fn(&str) -> Option<ImageId>,
    place_stays: bool,
) -> Option<Record> {
    let id = inspected.id.clone()?;
    let pid = inspected.state.as_ref()?.pid?;
    let init = i32::try_from(pid).ok().filter(|pid| *pid > 0)?;
    let began = began(init)?;
    let sandbox = inspected.network_settings.as_ref();
    let sandbox = sandbox.and_then(|settings| settings.sandbox_key.as_deref());
    let state = runtime::state(&id, sandbox).filter(|state| state.init_process_pid == init);
    let cgroup = state
        .as_ref()
        .and_then(runtime::State::cgroup)
        .unwrap_or_default();
    let layers = layers(&inspected);
    let image = image_of(&layers.0).or_else(|| provisional(&inspected))?;
    let mounts = mounts::read(&fs::read_to_string(proc(init, "mountinfo")).ok()?);
    let seen = Seen {
        empty: empty(init, &mounts),
        mounts,
        user: user(init),
        label: label(init),
        own_control_groups: own_control_groups(init),
        strangers: strangers(init, &cgroup),
        place_stays,
        state,
        inspected,
    };
    let Described {
        specification,
        volumes,
        paused,
        obstacles,
        losses,
    } = describe(name, image, &seen);
    let specification = ums_core::specification::Specification {
        engine: Some(engine.to_owned()),
        ..specification
    };
    let files = files(&seen, &specification.mounts);
    let state = seen.state;
    let stdio = state
        .as_ref()
        .map(|state| state.external_descriptors.clone());
    let stdio = stdio.unwrap_or_default();
    let stream = |at: usize| stdio.get(at).cloned().unwrap_or_default();
    Some(Record {
        version: stored::VERSION,
        engine: engine.to_owned(),
        id,
        restart: specification
            .creation
            .as_ref()
            .map(|it| it.restart.clone())
            .unwrap_or_default(),
        specification,
        init: (init, began),
        root: state.map(|state| state.config.rootfs).unwrap_or_default(),
        cgroup,
        lower: layers.0,
        upper: layers.1,
        volumes: volumes
            .into_iter()
            .map(|(name, path)| (name, path.into()))
            .collect(),
        files,
        stdio: [stream(1), stream(2)],
        gate: None,
        network: BTreeMap::new(),
        paused,
        obstacles,
        losses,
    })
}

/// Until its layers were read the engine's id of the image stands for it.
fn provisional(inspected: &ContainerInspectResponse) -> Option<ImageId> {
    let id = inspected.image.clone()?;
    ImageId::try_from(id.trim_start_matches("sha256:").to_owned()).ok()
}

/// The layers of its image, and what it has changed.
fn layers(inspected: &ContainerInspectResponse) -> (String, PathBuf) {
    let data = inspected.graph_driver.as_ref().map(|driver| &driver.data);
    let of = |key: &str| {
        data.and_then(|data| data.get(key).cloned())
            .unwrap_or_default()
    };
    (of("LowerDir"), of("UpperDir").into())
}

fn files(seen: &Seen, mounts: &[ums_core::specification::Mount]) -> BTreeMap<String, PathBuf> {
    let inspected = &seen.inspected;
    let resolv = inspected.resolv_conf_path.clone().unwrap_or_default();
    let beside = Path::new(&resolv).parent().unwrap_or(Path::new("/"));
    let place = |name: &str| match name {
        "hosts" => inspected.hosts_path.clone().map(PathBuf::from),
        "hostname" => inspected.hostname_path.clone().map(PathBuf::from),
        "resolv.conf" => Some(PathBuf::from(&resolv)),
        _ => Some(beside.join(format!(".{name}"))),
    };
    let named = mounts.iter().filter_map(|mount| match &mount.content {
        MountContent::File(name) => Some((name.clone(), place(name)?)),
        _ => None,
    });
    named.collect()
}

fn proc(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn empty(init: i32, mounts: &[mounts::Mounted]) -> BTreeSet<String> {
    let paths = mounts.iter().map(|mount| &mount.path);
    let hidden = paths.filter(|path| path.starts_with("/proc/") || path.starts_with("/sys/"));
    let is_empty = |path: &&String| {
        let entries = fs::read_dir(proc(init, "root").join(path.trim_start_matches('/')));
        entries.is_ok_and(|mut entries| entries.next().is_none())
    };
    hidden.filter(is_empty).cloned().collect()
}

fn user(init: i32) -> (u32, u32) {
    let status = fs::read_to_string(proc(init, "status")).unwrap_or_default();
    let id = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
    };
    (id("Uid:").unwrap_or(0), id("Gid:").unwrap_or(0))
}

/// The label of a security module, where one confines the process.
fn label(init: i32) -> String {
    let label = fs::read_to_string(proc(init, "attr/current")).unwrap_or_default();
    let label = label.trim_end_matches(['\0', '\n']);
    match label {
        "unconfined" | "kernel" => String::new(),
        label => label.to_owned(),
    }
}

fn own_control_groups(init: i32) -> bool {
    let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/cgroup")).ok();
    of(&init.to_string()) != of("self")
}

/// Processes in its control group that do not descend from its init: started by its engine later.
fn strangers(init: i32, cgroup: &str) -> Vec<i32> {
    let Ok(group) = Cgroup::at(cgroup) else {
        return Vec::new();
    };
    let members: BTreeSet<i32> = group.processes().into_iter().collect();
    let parent = |pid: i32| {
        let status = fs::read_to_string(proc(pid, "status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        line.trim().parse::<i32>().ok()
    };
    let is_stranger = |pid: &i32| {
        let above = parent(*pid);
        *pid != init && above.is_some_and(|above| !members.contains(&above))
    };
    members.iter().copied().filter(is_stranger).collect()
}
