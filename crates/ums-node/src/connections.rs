//! What the destination has to know of a service's connections, so that their answers find back.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use ums_core::id::SystemName;
use ums_core::specification::Transport;

use crate::packets::{Connections, Flow, Remembered};

/// Name of the image file that carries [`Moving`]. It is there when connections move along.
pub const NAME: &str = "ums-connections.json";

/// The connections of a service that moves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moving {
    /// Those of the source's own clients.
    direct: BTreeSet<Flow>,
    /// Those that had been carried to the source.
    carried: BTreeSet<Flow>,
    /// From which system.
    carried_from: Option<SystemName>,
}

/// What the destination does with answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sorted {
    /// They go back to the source.
    pub carried: BTreeSet<Flow>,
    /// They don't, though some of their packets come from there: the service has come home, and
    /// these are its old clients' datagrams.
    pub home: BTreeSet<Flow>,
}

impl Moving {
    /// From what the source's namespace has and remembers. Connections that nobody has accepted
    /// count too: they are over, and their clients have to learn it.
    pub fn new(
        connections: &Connections,
        remembered: &Remembered,
        carried_from: Option<SystemName>,
    ) -> Self {
        let tcp = connections.open.union(&connections.unaccepted).copied();
        let (carried, direct) = tcp.partition(|flow| remembered.carried.contains(flow));
        let mut moving = Self {
            direct,
            carried,
            carried_from,
        };
        let datagrams = |flow: &&Flow| flow.transport == Transport::Udp;
        let carried = remembered.carried.iter().filter(datagrams);
        moving.carried.extend(carried);
        let direct = remembered.seen.iter().filter(datagrams);
        let direct = direct.filter(|flow| !remembered.carried.contains(flow));
        moving.direct.extend(direct);
        moving
    }

    /// What the system `here` does with answers.
    pub fn sort(self, here: &SystemName) -> Sorted {
        let mut sorted = Sorted {
            carried: self.direct,
            home: BTreeSet::new(),
        };
        if self.carried_from.as_ref() == Some(here) {
            sorted.home = self.carried;
        } else {
            sorted.carried.extend(self.carried);
        }
        sorted
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn flow(transport: Transport, port: u16) -> Flow {
        Flow {
            transport,
            service: "10.88.0.2:80".parse().unwrap(),
            peer: format!("192.0.2.1:{port}").parse().unwrap(),
        }
    }

    #[test]
    fn a_service_that_comes_home_answers_its_old_clients_itself() {
        let tcp = |port| flow(Transport::Tcp, port);
        let udp = |port| flow(Transport::Udp, port);
        let connections = Connections {
            open: [tcp(1), tcp(2)].into(),
            closing: [tcp(3)].into(),
            unaccepted: [tcp(4)].into(),
            stuck: BTreeSet::new(),
        };
        // `tcp(5)` was carried and is over.
        let remembered = Remembered {
            carried: [tcp(1), tcp(5), udp(1)].into(),
            seen: [udp(1), udp(2)].into(),
        };
        let system = |name: &str| -> SystemName { name.parse().unwrap() };
        let moving = Moving::new(&connections, &remembered, Some(system("paris")));
        let direct = BTreeSet::from([tcp(2), tcp(4), udp(2)]);
        let home = moving.clone().sort(&system("paris"));
        assert_eq!(home.carried, direct);
        assert_eq!(home.home, [tcp(1), udp(1)].into());
        let elsewhere = moving.sort(&system("oslo"));
        assert!(elsewhere.home.is_empty());
        assert_eq!(elsewhere.carried.len(), direct.len() + 2);
    }
}
