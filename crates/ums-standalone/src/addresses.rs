//! Which addresses and ports of this system are whose.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::ServiceName;
use ums_core::specification::{PublishedPort, Specification};
use ums_node::facts::{Port, listening_ports};
use ums_node::problem;

use crate::network;
use crate::record::Record;
use crate::state::Standalone;

/// Addresses on the bridge and whose they are, those included that are kept for a service that has left.
pub async fn kept(host: &Arc<Standalone>) -> Result<BTreeMap<Ipv4Addr, ServiceName>, Problem> {
    let failed = problem::failed(ProblemKind::Network, "the addresses in use can't be seen");
    host.network.addresses().await.map_err(|e| failed(&e))
}

/// Addresses that other services than `name` have on the bridge.
pub(crate) fn of_others(
    host: &Standalone,
    name: &ServiceName,
    kept: &BTreeMap<Ipv4Addr, ServiceName>,
) -> BTreeSet<Ipv4Addr> {
    let kept = kept.iter().filter(|(_, service)| *service != name);
    let mut in_use: BTreeSet<_> = kept.map(|(address, _)| *address).collect();
    let records = host.all();
    let others = records.iter();
    let others = others.filter(|record| record.specification.name != *name);
    in_use.extend(others.map(Record::on_bridge));
    in_use
}

pub(crate) fn free(
    host: &Standalone,
    name: &ServiceName,
    in_use: &BTreeSet<Ipv4Addr>,
) -> Result<Ipv4Addr, Problem> {
    let (network, system) = (host.settings.network, &host.settings.system);
    network::free_address(network, system, name, in_use).ok_or_else(|| {
        let detail = "every address of the service network is in use: remove a service";
        problem::conflict(ProblemKind::Addresses, "no address is free", detail)
    })
}

/// The address on this system's bridge for a service that arrives, if it is to be another than its own.
/// Where what it left behind at an earlier visit still leads its clients, it is that one's: they know no
/// other.
pub fn for_arrival(
    host: &Standalone,
    specification: &Specification,
    kept: &BTreeMap<Ipv4Addr, ServiceName>,
) -> Result<Option<Ipv4Addr>, Problem> {
    let (name, own) = (&specification.name, specification.address);
    let in_use = of_others(host, name, kept);
    let before = kept.iter().find(|(_, service)| *service == name);
    let on_bridge = match before {
        Some((address, _)) if !in_use.contains(address) => *address,
        _ if in_use.contains(&own) || !is_here(host, own) => free(host, name, &in_use)?,
        _ => own,
    };
    Ok((on_bridge != own).then_some(on_bridge))
}

/// Whether services here can have it as their own on the bridge.
fn is_here(host: &Standalone, address: Ipv4Addr) -> bool {
    host.network.check(address).is_ok()
}

/// Refuses ports that another service or program has.
pub fn free_ports(host: &Standalone, wanted: &Specification) -> Result<(), Problem> {
    let records = host.all();
    let others = records.iter().map(|record| &record.specification);
    let others = others.filter(|other| other.name != wanted.name);
    let taken = network::ports_in_use(others, &listening_ports());
    let is_taken = |port: &&PublishedPort| taken.contains(&Port::of(port));
    match wanted.ports.iter().find(is_taken) {
        Some(port) => {
            let (number, transport) = (port.system_port, port.transport.name());
            let detail = format!(
                "port {number}/{transport} of this system is in use: publish another, or end what has it"
            );
            Err(problem::conflict(
                ProblemKind::PortTaken,
                "the port is taken",
                detail,
            ))
        }
        None => Ok(()),
    }
}
