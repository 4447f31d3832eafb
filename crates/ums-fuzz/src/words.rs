//! JSON: the messages of the three APIs, and the Specification that a peer sends.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ums_api::{agent, client, peer, problem};
use ums_core::facts::{NodeFacts, ServiceFacts};
use ums_core::plan::{self, Route};
use ums_core::preflight::{self, Estimates, MigrateOptions};
use ums_core::specification::Specification;
use ums_standalone::bundle::{self, Places};

/// A Specification that is accepted makes a bundle; what a peer says of a service and of nodes is
/// judged and planned for.
pub(crate) fn specification(data: &[u8]) -> bool {
    let specification = serde_json::from_slice::<Specification>(data);
    if let Ok(specification) = &specification {
        makes_a_bundle(specification);
    }
    let asked = serde_json::from_slice::<peer::ReserveRequest>(data);
    if let Ok(peer::ReserveRequest {
        source, service, ..
    }) = &asked
    {
        makes_a_bundle(&service.specification);
        judged(source, service);
    }
    specification.is_ok() || asked.is_ok()
}

fn makes_a_bundle(specification: &Specification) {
    let places = Places {
        rootfs: Path::new("/r"),
        netns: Path::new("/n"),
        volumes: Path::new("/v"),
        shm: Path::new("/s"),
        cgroup: "/ums/a/b",
    };
    let checked = bundle::check(specification);
    let made = bundle::config(specification, &places, (1024, 4096));
    assert_eq!(checked.is_ok(), made.is_ok());
    if made.is_ok() {
        // What is mounted from this node is below what was given.
        for mount in bundle::external_mounts(specification, &places) {
            assert!(mount.source.starts_with("/v") || mount.source == Path::new("/s"));
            let mut parts = mount.source.components();
            assert!(parts.all(|part| part != std::path::Component::ParentDir));
        }
    }
}

fn judged(node: &NodeFacts, service: &ServiceFacts) {
    let (options, estimates) = (MigrateOptions::default(), Estimates::default());
    let _ = preflight::judge_local(node, service, &options);
    let _ = preflight::judge(node, service, Some(node), &options, &estimates);
    let route = Route {
        source: "a".parse().expect("a name"),
        destination: "b".parse().expect("a name"),
    };
    let _ = plan::make(route, node, service, Some(node), &options, &estimates);
}

/// Every type that travels: what is read can be written, and is then read again.
pub(crate) fn messages(data: &[u8]) -> bool {
    let read = [
        again::<client::Hello>,
        again::<client::MigrateRequest>,
        again::<client::AbortRequest>,
        again::<client::HistoryQuery>,
        again::<client::WatchQuery>,
        again::<client::MigrationView>,
        again::<client::ServiceDetail>,
        again::<client::PeerView>,
        again::<peer::Hello>,
        again::<peer::ReserveRequest>,
        again::<peer::ReserveAnswer>,
        again::<peer::CreateAnswer>,
        again::<peer::RestoreRequest>,
        again::<peer::RestoreAnswer>,
        again::<peer::CommitAnswer>,
        again::<peer::View>,
        again::<peer::DecisionAnswer>,
        again::<peer::Empty>,
        again::<agent::RunRequest>,
        again::<agent::ServiceView>,
        again::<agent::OfService>,
        again::<agent::OpenRequest>,
        again::<agent::CheckpointRequest>,
        again::<agent::Checkpointed>,
        again::<agent::LeadRequest>,
        again::<agent::CreateRequest>,
        again::<agent::Created>,
        again::<agent::Restored>,
        again::<agent::Running>,
        again::<agent::MigrationState>,
        again::<problem::Problem>,
    ];
    // Each type reads it, whether or not another one could.
    read.iter().filter(|read| read(data)).count() > 0
}

fn again<T: DeserializeOwned + Serialize>(data: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(data) else {
        return false;
    };
    let text = serde_json::to_vec(&value).expect("what was read can be written");
    // Not compared: the last digit of a fraction may differ.
    serde_json::from_slice::<T>(&text).expect("what was written can be read");
    true
}
