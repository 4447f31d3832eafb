//! Where a container has its files and is in the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use bollard::models::{ContainerInspectResponse, MountPoint};
use ums_core::id::{NAME_LEN_MAX, ServiceName};
use ums_core::specification::{PublishedPort, Transport, Volume};

use super::service_name;

/// Volumes and directories of the host alike are volumes of the service, named after where they are in it.
pub(super) fn volumes(points: &[MountPoint]) -> (Vec<Volume>, BTreeMap<String, String>) {
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

pub(super) fn free_name(path: &str, taken: &BTreeMap<String, String>) -> Option<ServiceName> {
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
pub(super) fn address(inspected: &ContainerInspectResponse) -> (Ipv4Addr, u8) {
    let settings = inspected.network_settings.as_ref();
    let networks = settings.and_then(|settings| settings.networks.clone());
    let networks: BTreeMap<_, _> = networks.unwrap_or_default().into_iter().collect();
    let first = networks.values().find_map(|network| {
        let address = network.ip_address.as_ref()?.parse().ok()?;
        let length = network.ip_prefix_len.and_then(|len| u8::try_from(len).ok());
        Some((address, length.unwrap_or(32)))
    });
    first.unwrap_or((Ipv4Addr::UNSPECIFIED, 0))
}

/// Names of the networks that it is in, in their order.
pub(super) fn networks(inspected: &ContainerInspectResponse) -> Vec<String> {
    let settings = inspected.network_settings.as_ref();
    let networks = settings.and_then(|settings| settings.networks.clone());
    let names: BTreeSet<String> = networks.unwrap_or_default().into_keys().collect();
    names.into_iter().collect()
}

pub(super) fn ports(inspected: &ContainerInspectResponse) -> Vec<PublishedPort> {
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
