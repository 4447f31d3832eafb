//! Multicast: the groups that sockets are members of with their source filters, and the device that a
//! socket sends to groups by. CRIU carries neither.
//!
//! No call lists a socket's memberships. The namespace lists the groups that any of its sockets is a
//! member of (`/proc/PID/net/igmp`, `igmp6`), and each socket tells of a group on a device whether it is
//! a member (`MCAST_MSFILTER`; kernel `ip_mc_gsfget`, `ip6_mc_msfget`): together they are exact. Devices
//! have other numbers on another host and are known by their names.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use ums_core::facts::LossKind;

use super::Lost;
use super::descriptor::{Place, Reach};
use super::option::Nature;
use super::raw;
use address::Filter;
pub(super) use groups::Groups;
use outlet::Outlet;

mod address;
mod groups;
mod outlet;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;

/// Most sources of one membership: what a socket may keep in memory (`net.core.optmem_max`) bounds it
/// at about so many.
const SOURCES_MAX: usize = 1 << 16;
/// Sources that are asked for at first: most memberships have none.
const SOURCES_USUAL: usize = 4;

/// What one socket has to do with groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Multicast {
    place: Place,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    memberships: Vec<Membership>,
    /// What it sends to groups of IPv4 by, if that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outlet: Option<Outlet>,
}

/// That a socket is a member of a group on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Membership {
    group: IpAddr,
    device: String,
    /// Whether it takes from the sources alone, or from all others.
    include: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sources: Vec<IpAddr>,
}

/// Looks at a socket; `None` when it has nothing to do with groups.
///
/// # Errors
/// It has more sources than can be carried.
pub(super) fn capture(
    socket: &OwnedFd,
    place: Place,
    nature: Nature,
    groups: &Groups,
) -> io::Result<Option<Multicast>> {
    // TCP knows no groups.
    if !nature.is_inet() || nature.is_tcp() {
        return Ok(None);
    }
    let mut memberships = Vec::new();
    for (group, device) in groups.iter().filter(|(group, _)| speaks(nature, *group)) {
        memberships.extend(membership(socket, *group, device)?);
    }
    let outlet = match nature.has_ip() {
        true => Outlet::of(socket, nature)?,
        false => None,
    };
    let found = !memberships.is_empty() || outlet.is_some();
    Ok(found.then_some(Multicast {
        place,
        memberships,
        outlet,
    }))
}

/// Whether a socket can be a member of a group of this family.
fn speaks(nature: Nature, group: IpAddr) -> bool {
    match group {
        IpAddr::V4(_) => nature.has_ip(),
        IpAddr::V6(_) => nature.is_inet6(),
    }
}

/// The membership of a socket in this group; `None` when it is none.
fn membership(socket: &OwnedFd, group: IpAddr, device: &str) -> io::Result<Option<Membership>> {
    let index = raw::device_index(socket, device)?;
    let mut room = SOURCES_USUAL;
    loop {
        let mut buffer = Filter::question(index, group, room);
        match raw::get(socket, address::level(group), MCAST_MSFILTER, &mut buffer) {
            Ok(_) => {}
            // It is no member. (EINVAL: a socket that can't be one.)
            Err(error) if is_not_there(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let filter = Filter::read(&buffer).ok_or(io::ErrorKind::InvalidData)?;
        if filter.count > SOURCES_MAX {
            return Err(io::Error::other("a multicast group with too many sources"));
        }
        if filter.count > room {
            room = filter.count;
            continue;
        }
        return Ok(Some(Membership {
            group,
            device: device.to_owned(),
            include: filter.include,
            sources: filter.sources,
        }));
    }
}

fn is_not_there(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let known = [Errno::EADDRNOTAVAIL, Errno::EINVAL, Errno::ENODEV];
    known
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

impl Membership {
    /// Makes a socket that is no member of the group one.
    fn join(&self, socket: &OwnedFd) -> io::Result<()> {
        let index = raw::device_index(socket, &self.device)?;
        let level = address::level(self.group);
        let request = address::join_request(index, self.group);
        raw::set(socket, level, MCAST_JOIN_GROUP, &request)?;
        if !self.include && self.sources.is_empty() {
            return Ok(());
        }
        let filter = Filter {
            include: self.include,
            count: self.sources.len(),
            sources: self.sources.clone(),
        };
        let order = filter.order(index, self.group);
        raw::set(socket, level, MCAST_MSFILTER, &order)
    }
}

impl Multicast {
    /// Makes a restored socket what this one was; returns what did not succeed.
    fn set(&self, socket: &OwnedFd) -> Vec<String> {
        let mut lost = Vec::new();
        for membership in &self.memberships {
            if let Err(error) = membership.join(socket) {
                let Membership { group, device, .. } = membership;
                lost.push(format!("its membership in {group} on {device}: {error}"));
            }
        }
        let sent_by = self.outlet.as_ref().map(|outlet| outlet.set(socket));
        if let Some(Err(error)) = sent_by {
            lost.push(format!("IP_MULTICAST_IF: {error}"));
        }
        lost
    }
}

/// Makes restored sockets what they were.
pub(super) fn apply(all: &[Multicast], reach: &Reach) -> Vec<Lost> {
    let mut lost = Vec::new();
    for multicast in all {
        let place = multicast.place;
        let failed = match reach.get(place) {
            Ok(socket) => multicast.set(&socket),
            Err(error) => vec![error.to_string()],
        };
        let detail = |what| format!("the socket behind descriptor {}: {what}", place.fd);
        lost.extend(
            failed
                .into_iter()
                .map(|what| Lost::new(LossKind::Multicast, place.pid, detail(what))),
        );
    }
    lost
}

/// A group that nobody is a member of (MCAST-TEST-NET, RFC 6676): the way to it is asked for, and nothing
/// is sent.
const NOBODYS_GROUP: Ipv4Addr = Ipv4Addr::new(233, 252, 0, 1);

#[cfg(test)]
mod test;
