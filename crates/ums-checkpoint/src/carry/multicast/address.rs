//! The structures that the calls about groups take: `sockaddr_storage`, `group_req`, `group_filter`
//! (kernel `include/uapi/linux/in.h`; the same for both versions of IP).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

const ADDRESS_LEN: usize = size_of::<libc::sockaddr_storage>();
/// Where an address begins behind the number of a device.
const GROUP_AT: usize = align_of::<libc::sockaddr_storage>();
const MODE_AT: usize = GROUP_AT + ADDRESS_LEN;
const COUNT_AT: usize = MODE_AT + 4;
const SOURCES_AT: usize = COUNT_AT + 4;

/// `MCAST_EXCLUDE`, `MCAST_INCLUDE`.
const EXCLUDE: u32 = 0;
const INCLUDE: u32 = 1;

/// `IPPROTO_IP` or `IPPROTO_IPV6`.
pub(super) fn level(group: IpAddr) -> i32 {
    match group {
        IpAddr::V4(_) => libc::IPPROTO_IP,
        IpAddr::V6(_) => libc::IPPROTO_IPV6,
    }
}

/// A `sockaddr_storage` with the address alone.
fn sockaddr(address: IpAddr) -> [u8; ADDRESS_LEN] {
    let mut bytes = [0; ADDRESS_LEN];
    match address {
        IpAddr::V4(address) => {
            bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            bytes[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            bytes[8..24].copy_from_slice(&address.octets());
        }
    }
    bytes
}

fn address(sockaddr: &[u8]) -> Option<IpAddr> {
    let family = u16::from_ne_bytes(sockaddr.get(..2)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let bytes: [u8; 4] = sockaddr.get(4..8)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes).into())
        }
        libc::AF_INET6 => {
            let bytes: [u8; 16] = sockaddr.get(8..24)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// A `group_req`.
pub(super) fn join_request(device: i32, group: IpAddr) -> Vec<u8> {
    let mut bytes = vec![0; GROUP_AT];
    bytes[..4].copy_from_slice(&device.to_ne_bytes());
    bytes.extend(sockaddr(group));
    bytes
}

/// A membership's source filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    pub include: bool,
    /// How many sources there are; `sources` has those that there was room for.
    pub count: usize,
    pub sources: Vec<IpAddr>,
}

impl Filter {
    /// A `group_filter` that asks for the filter of a group, with room for so many sources.
    pub(super) fn question(device: i32, group: IpAddr, room: usize) -> Vec<u8> {
        let filter = Self {
            include: false,
            count: room,
            sources: Vec::new(),
        };
        let mut bytes = filter.order(device, group);
        bytes.resize(SOURCES_AT + room * ADDRESS_LEN, 0);
        bytes
    }

    /// A `group_filter` that sets this one.
    pub(super) fn order(&self, device: i32, group: IpAddr) -> Vec<u8> {
        let mut bytes = join_request(device, group);
        let mode = if self.include { INCLUDE } else { EXCLUDE };
        bytes.extend(mode.to_ne_bytes());
        bytes.extend(u32::try_from(self.count).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(self.sources.iter().flat_map(|source| sockaddr(*source)));
        bytes
    }

    /// What the kernel has answered.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let count = usize::try_from(number(COUNT_AT)?).ok()?;
        let all = bytes.get(SOURCES_AT..)?.chunks_exact(ADDRESS_LEN);
        Some(Self {
            include: number(MODE_AT)? == INCLUDE,
            count,
            sources: all.take(count).map(address).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn filters_are_read_as_they_are_written() {
        for group in ["239.1.2.3", "ff12::123"] {
            let group: IpAddr = group.parse().unwrap();
            let filter = Filter {
                include: true,
                count: 2,
                sources: vec![group; 2],
            };
            let bytes = filter.order(3, group);
            assert_eq!(bytes[..4], 3_i32.to_ne_bytes());
            assert_eq!(Filter::read(&bytes), Some(filter));
            assert_eq!(Filter::read(&bytes[..SOURCES_AT - 1]), None);
            let question = Filter::question(3, group, 5);
            assert_eq!(question.len(), SOURCES_AT + 5 * ADDRESS_LEN);
            // Nobody has answered: no addresses.
            assert_eq!(Filter::read(&question), None);
        }
    }
}
