//! The groups of a namespace, as `/proc/PID/net/igmp` and `igmp6` list them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Groups on devices that a socket may be a member of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in super::super) struct Groups(Vec<(IpAddr, String)>);

impl Groups {
    /// Those of the namespace that a process is in. Without IPv6 there is one file less.
    pub(in super::super) fn of(pid: i32) -> io::Result<Self> {
        let read = |name: &str| match fs::read(format!("/proc/{pid}/net/{name}")) {
            Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error),
        };
        let mut found = parse_v4(&read("igmp")?);
        found.extend(parse_v6(&read("igmp6")?));
        Ok(Self(found))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(IpAddr, String)> {
        self.0.iter()
    }
}

/// A line for each device, `Idx Device : Count Querier`, and one for each of its groups, further in:
/// `Group Users Timer Reporter`, the group as a number in network byte order.
fn parse_v4(text: &str) -> Vec<(IpAddr, String)> {
    let mut device = None;
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        if !line.starts_with(char::is_whitespace) {
            device = words.nth(1).map(|name| name.trim_end_matches(':'));
            continue;
        }
        let group = words
            .next()
            .and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let users = words.next().and_then(|users| users.parse::<u32>().ok());
        let (Some(group), Some(users), Some(device)) = (group, users, device) else {
            continue;
        };
        let group = IpAddr::V4(Ipv4Addr::from(group.to_ne_bytes()));
        if !is_the_kernels_alone(group, users) {
            found.push((group, device.to_owned()));
        }
    }
    found
}

/// A line for each group: `Idx Device Group Users Flags Timer`.
fn parse_v6(text: &str) -> Vec<(IpAddr, String)> {
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, device, group, users, ..] = words[..] else {
            return None;
        };
        let group = Ipv6Addr::from(u128::from_str_radix(group, 16).ok()?);
        let users = users.parse().ok()?;
        (!is_the_kernels_alone(group.into(), users)).then(|| (group.into(), device.to_owned()))
    };
    text.lines().filter_map(of).collect()
}

/// Whether a group is one that the kernel itself is a member of on every device, and nobody else is.
fn is_the_kernels_alone(group: IpAddr, users: u32) -> bool {
    let own = match group {
        IpAddr::V4(group) => group == Ipv4Addr::new(224, 0, 0, 1),
        IpAddr::V6(group) => {
            let pieces = group.segments();
            // All nodes, all routers, and those that ask for one of our addresses.
            matches!(pieces, [0xff01 | 0xff02 | 0xff05, 0, 0, 0, 0, 0, 0, 1 | 2])
                || matches!(pieces, [0xff02, 0, 0, 0, 0, 1, last, _] if last >> 8 == 0xff)
        }
    };
    own && users <= 1
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn groups_by_device() {
        let igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
             1\tlo        :     2      V3\n\
             \t\t\t\t030201EF     1 0:00000000\t\t0\n\
             \t\t\t\t010000E0     1 0:00000000\t\t0\n\
             2\teth0      :     1      V3\n\
             \t\t\t\t010000E0     2 0:00000000\t\t0\n\
             \t\t\t\tnonsense\n";
        let lo = ("239.1.2.3".parse().unwrap(), "lo".to_owned());
        let eth0 = ("224.0.0.1".parse().unwrap(), "eth0".to_owned());
        // As on a machine of the other byte order, where the number is written otherwise.
        let igmp = match cfg!(target_endian = "big") {
            true => igmp
                .replace("030201EF", "EF010203")
                .replace("010000E0", "E0000001"),
            false => igmp.to_owned(),
        };
        assert_eq!(parse_v4(&igmp), [lo, eth0]);
    }

    #[test]
    fn groups_of_ipv6() {
        let igmp6 = "1    lo              ff120000000000000000000000000123     1 0000000C 0\n\
             1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
             2    eth0            ff0200000000000000000001ff000002     1 00000004 0\n\
             2    eth0            ff0200000000000000000001ff000003     2 00000004 0\n\
             2    eth0            ff01\n";
        let found = parse_v6(igmp6);
        let found: Vec<String> = found
            .iter()
            .map(|(group, on)| format!("{group} {on}"))
            .collect();
        assert_eq!(found, ["ff12::123 lo", "ff02::1:ff00:3 eth0"]);
    }

    #[test]
    fn this_process_has_a_namespace() {
        assert!(Groups::of(std::process::id().cast_signed()).is_ok());
    }
}
