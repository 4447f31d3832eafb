//! What is inside a service's own network namespace: where its packets go while it runs, while it
//! is frozen, and once it has moved. Pure text, as the rules of the system are.
//!
//! ```text
//!              ┌────────── the service's namespace ───────────┐
//!  bridge ── eth0 ──▶ the service's sockets                   │
//!              │  └─ from the freeze on ──▶ ums-out ───────────── Frontman ══▶ the next place
//!              │  ┌─ answers of carried connections ─▶ ums-in ── Frontman ══▶ the place before
//!              └──────────────────────────────────────────────┘
//! ```
//!
//! What a service sends to itself comes by `lo`, and is the keeper's to hold while CRIU is at the
//! sockets (`ums_checkpoint`, module `loopback`).
//!
//! Two devices lead out of it besides `eth0`: `ums-out` to the place that the service moves to, and
//! `ums-in` from the place that it came from. Marks choose between them, before the kernel asks
//! whether an address is its own; so the rules decide alone, and changing them is one transaction. The rules of every
//! [`Policy`] are there from the beginning, in chains of their own; which of them is in force is one rule of two chains, which is
//! changed without a program (`choose`): it is done while clients wait.
//! A packet that is marked for a device that is not there is dropped, never delivered.
//!
//! *Carried* are the connections that came through `ums-in`: their answers go back the same way,
//! whatever their address. *Closing* ones belong to no process any more; their namespace winds them
//! up where they began.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use ums_checkpoint::nf_tables;
use ums_core::specification::Transport;

use super::sockets::Flow;

/// The table, in the service's namespace.
pub(super) const TABLE: &str = "ums";
/// The device towards the place that the service moves to.
pub const OUT_DEVICE: &str = "ums-out";
/// The device from the place that it came from.
pub const IN_DEVICE: &str = "ums-in";

/// Marks, and the routing tables that they choose.
const OUT_MARK: &str = "0x756d7301";
const IN_MARK: &str = "0x756d7302";
const OUT_ROUTES: u32 = 7401;
const IN_ROUTES: u32 = 7402;

/// Connections in one set: more than a service's namespace can have with the usual limit of files.
const SET_SIZE: u32 = 65536;
/// How long a connection that was begun through `ums-in` is remembered after its last packet.
const CARRIED_FOR: &str = "1d";
/// The same for datagrams, which have no connection. Longer than `nf_conntrack_udp_timeout_stream`.
const SEEN_FOR: &str = "5m";

/// What becomes of a service's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They pass.
    Pass,
    /// New connections go to `ums-out`; others pass, so that the service can accept what waits.
    HoldNew,
    /// All that arrives goes to `ums-out`; what the service sends passes.
    Hold,
    /// As [`Hold`](Self::Hold), and it begins no connection to itself: one that it would not come to
    /// accept before the freeze could not move.
    LastMoment,
    /// As [`Hold`](Self::Hold), and nothing of the service's leaves, to itself neither: its kernel
    /// must not speak while it is frozen, or once it is elsewhere.
    Frozen,
    /// Nothing arrives, and only resets leave.
    OnlyResets,
}

impl Policy {
    const ALL: [Self; 6] = [
        Self::Pass,
        Self::HoldNew,
        Self::Hold,
        Self::LastMoment,
        Self::Frozen,
        Self::OnlyResets,
    ];

    fn are_held(self) -> bool {
        matches!(self, Self::Hold | Self::LastMoment | Self::Frozen)
    }

    /// The last part of the names of its chains.
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::HoldNew => "hold-new",
            Self::Hold => "hold",
            Self::LastMoment => "last-moment",
            Self::Frozen => "frozen",
            Self::OnlyResets => "only-resets",
        }
    }
}

/// The chains by which a policy is chosen: each has one rule, which goes on in the policy's own chain.
const CHOOSERS: [&str; 2] = ["arrive", "leave"];

fn chain_of(chooser: &str, policy: Policy) -> String {
    format!("{chooser}-{}", policy.name())
}

/// What chooses a policy in a namespace that has the [`rules`]; `afresh` forgets which connections were winding up.
pub(super) fn choose(policy: Policy, afresh: bool) -> Vec<nf_tables::Message> {
    let chosen = CHOOSERS.into_iter().flat_map(|chooser| {
        let chain = chain_of(chooser, policy);
        [
            nf_tables::flush_chain(TABLE, chooser),
            nf_tables::goto(TABLE, chooser, &chain),
        ]
    });
    let closing = FAMILIES.map(|(.., family)| format!("{}{family}", Set::Closing.name()));
    let forgotten = closing.iter().filter(|_| afresh);
    let forgotten = forgotten.map(|set| nf_tables::flush_set(TABLE, set));
    forgotten.chain(chosen).collect()
}

/// Rules of policy routing, for `ip -batch`, once for each family. The local table comes after the
/// marks.
pub(super) fn routing() -> String {
    format!(
        "rule add pref 10 fwmark {OUT_MARK} lookup {OUT_ROUTES}\n\
         rule add pref 11 fwmark {IN_MARK} lookup {IN_ROUTES}\n\
         rule add pref 100 lookup local\n\
         rule del pref 0\n"
    )
}

/// Undoes [`routing`].
pub(super) fn no_routing() -> String {
    "rule add pref 0 lookup local\nrule del pref 10\nrule del pref 11\nrule del pref 100\n"
        .to_owned()
}

/// Removes the table, also if it is not there.
pub(super) fn no_rules() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// By which [`routing`] is recognized in a listing of rules.
pub(super) fn is_routed(listing: &str) -> bool {
    listing.contains(&format!("lookup {IN_ROUTES}")) && !listing.starts_with("0:")
}

/// The route of a device.
pub(super) fn route(device: &str, default: &str) -> String {
    let routes = if device == OUT_DEVICE {
        OUT_ROUTES
    } else {
        IN_ROUTES
    };
    format!("route replace {default} dev {device} table {routes}\n")
}

/// A family's words: nftables' name, type of an address, ending of our sets.
const FAMILIES: [(&str, &str, &str); 2] = [("ip", "ipv4_addr", "4"), ("ip6", "ipv6_addr", "6")];

/// The table with the rules of all policies, and this one chosen; repeating it changes nothing, and its sets keep their
/// elements.
pub(super) fn rules(chosen: Policy) -> String {
    let mut text = format!("add table inet {TABLE}\n");
    for (_, address, family) in FAMILIES {
        for (set, flags) in SETS {
            let tuple = format!("{address} . inet_proto . inet_service");
            // Writing to a string can't fail.
            let _ = writeln!(
                text,
                "add set inet {TABLE} {set}{family} {{ type {tuple} . {address} . inet_service; \
                 size {SET_SIZE}; {flags} }}"
            );
        }
    }
    let _ = write!(
        text,
        "\
add chain inet {TABLE} arrive {{ type filter hook prerouting priority -150; policy accept; }}
add chain inet {TABLE} leave {{ type route hook output priority -150; policy accept; }}
add chain inet {TABLE} deliver {{ type filter hook input priority 0; policy accept; }}
add chain inet {TABLE} known
add chain inet {TABLE} carry
"
    );
    for policy in Policy::ALL {
        for chooser in CHOOSERS {
            let chain = chain_of(chooser, policy);
            let _ = writeln!(text, "add chain inet {TABLE} {chain}");
        }
    }
    let _ = writeln!(text, "flush table inet {TABLE}");
    let mut rule = |chain: &str, rule: &str| {
        let _ = writeln!(text, "add rule inet {TABLE} {chain} {rule}");
    };
    always(&mut rule);
    for policy in Policy::ALL {
        of(policy, &mut rule);
    }
    for chooser in CHOOSERS {
        rule(chooser, &format!("goto {}", chain_of(chooser, chosen)));
    }
    text
}

/// What holds under every policy. Neither chain is left without a verdict for what it is about.
fn always(rule: &mut impl FnMut(&str, &str)) {
    rule("known", "iifname \"lo\" accept");
    // The neighbours' questions are answered whatever happens: the address stays here.
    rule("known", &format!("{NEIGHBOURS} accept"));
    // Answers from the next place, on their way to whoever asked.
    rule("known", &format!("iifname \"{OUT_DEVICE}\" goto carry"));
    for (ip, _, family) in FAMILIES {
        let flow = arriving(ip);
        let from_in = format!("iifname \"{IN_DEVICE}\"");
        let learn = format!("update @carried{family} {{ {flow} timeout {CARRIED_FOR} }}");
        let new = format!("@learned{family} {{ {flow} timeout {CARRIED_FOR} }}");
        rule("known", &format!("{from_in} {NEW} update {new}"));
        let again = format!("{from_in} {flow} @learned{family} update {new}");
        rule("known", &again);
        // It was held on its way while its client's own way changed: that counts from now on.
        let forget = format!("delete @learned{family} {{ {flow} }}");
        rule("known", &format!("iifname \"eth0\" {NEW} {forget}"));
        let stranger = format!("meta l4proto udp {flow} != @home{family}");
        rule("known", &format!("{from_in} {stranger} {learn}"));
        let seen = format!("update @seen{family} {{ {flow} timeout {SEEN_FOR} }}");
        rule(
            "known",
            &format!("iifname \"eth0\" meta l4proto udp {seen}"),
        );
        let answer = leaving(ip);
        for set in ["carried", "learned"] {
            let mark = format!("{answer} @{set}{family} meta mark set {IN_MARK} accept");
            rule("carry", &mark);
        }
    }
    rule("carry", "accept");
    rule("deliver", &format!("meta mark {OUT_MARK} drop"));
}

/// The chains of a policy.
fn of(policy: Policy, rule: &mut impl FnMut(&str, &str)) {
    let [arrive, leave] = CHOOSERS.map(|chooser| chain_of(chooser, policy));
    if policy == Policy::LastMoment {
        rule(&arrive, &format!("iifname \"lo\" {NEW} drop"));
    }
    rule(&arrive, "jump known");
    for (ip, _, family) in FAMILIES {
        if policy.are_held() {
            let flow = arriving(ip);
            rule(&arrive, &format!("{flow} @closing{family} accept"));
        }
        if policy == Policy::Frozen {
            let answer = leaving(ip);
            rule(&leave, &format!("{answer} @closing{family} goto carry"));
        }
    }
    let to_next = format!("meta mark set {OUT_MARK}");
    match policy {
        Policy::Pass => {}
        Policy::HoldNew => rule(&arrive, &format!("{NEW} {to_next}")),
        Policy::Hold | Policy::LastMoment => rule(&arrive, &to_next),
        Policy::Frozen => {
            rule(&arrive, &to_next);
            rule(&leave, &format!("{NEIGHBOURS} accept"));
            rule(&leave, "drop");
        }
        Policy::OnlyResets => {
            rule(&arrive, "drop");
            rule(&leave, "tcp flags & rst == rst goto carry");
            rule(&leave, "drop");
        }
    }
    rule(&leave, "goto carry");
}

const SETS: [(&str, &str); 5] = [
    ("learned", "flags dynamic,timeout;"),
    ("carried", "flags dynamic,timeout;"),
    ("seen", "flags dynamic,timeout;"),
    ("home", ""),
    ("closing", ""),
];

/// Neighbour discovery (RFC 4861), which is to IPv6 what ARP is to IPv4.
const NEIGHBOURS: &str =
    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert }";

/// A TCP connection's first packet.
const NEW: &str = "tcp flags & (syn | ack) == syn";

fn arriving(ip: &str) -> String {
    format!("{ip} daddr . meta l4proto . th dport . {ip} saddr . th sport")
}

fn leaving(ip: &str) -> String {
    format!("{ip} saddr . meta l4proto . th sport . {ip} daddr . th dport")
}

/// Sets of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// See the module.
    Carried,
    /// Connections that were begun through `ums-in`; carried as well, until their client is seen
    /// on `eth0`.
    Learned,
    /// Datagrams that reached the service through `eth0`.
    Seen,
    /// Datagrams that reach it through `eth0` although some of them come from `ums-in`: those of
    /// this system's own clients, when it has come home.
    Home,
    /// See the module.
    Closing,
}

impl Set {
    fn name(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Learned => "learned",
            Self::Seen => "seen",
            Self::Home => "home",
            Self::Closing => "closing",
        }
    }
}

/// Adds connections to a set that [`rules`] has made.
pub(super) fn add(set: Set, flows: &BTreeSet<Flow>) -> String {
    let mut text = String::new();
    for flow in flows {
        let family = if flow.service.is_ipv4() { 4 } else { 6 };
        let transport = flow.transport.name();
        let (service, peer) = (flow.service, flow.peer);
        let _ = writeln!(
            text,
            "add element inet {TABLE} {}{family} {{ {} . {transport} . {} . {} . {} }}",
            set.name(),
            service.ip(),
            service.port(),
            peer.ip(),
            peer.port()
        );
    }
    text
}

/// Forgets which connections a set had.
pub(super) fn empty(set: Set) -> String {
    let name = set.name();
    format!("flush set inet {TABLE} {name}4\nflush set inet {TABLE} {name}6\n")
}

/// The connections of a set, from what `nft -j list table` prints.
pub(super) fn flows(listing: &Value, set: Set) -> BTreeSet<Flow> {
    let names = [4, 6].map(|family| format!("{}{family}", set.name()));
    let items = listing["nftables"].as_array().into_iter().flatten();
    let sets = items.map(|item| &item["set"]);
    let ours = sets.filter(|set| names.iter().any(|name| set["name"] == name.as_str()));
    ours.flat_map(|set| set["elem"].as_array().into_iter().flatten())
        .filter_map(flow)
        .collect()
}

/// An element, which is wrapped once more where it has a timeout.
fn flow(element: &Value) -> Option<Flow> {
    let parts = match &element["elem"]["val"]["concat"] {
        Value::Null => &element["concat"],
        wrapped => wrapped,
    };
    let transport = Transport::from_name(parts[1].as_str()?)?;
    let end = |at: usize, port: usize| -> Option<SocketAddr> {
        let ip: IpAddr = parts[at].as_str()?.parse().ok()?;
        Some(SocketAddr::new(
            ip,
            u16::try_from(parts[port].as_u64()?).ok()?,
        ))
    };
    Some(Flow {
        transport,
        service: end(0, 2)?,
        peer: end(3, 4)?,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_connection_to_itself_begins_at_every_time_but_the_last_moment() {
        let rules = rules(Policy::Pass);
        for policy in Policy::ALL {
            let ends = format!("{} iifname \"lo\" tcp flags", chain_of("arrive", policy));
            assert_eq!(rules.contains(&ends), policy == Policy::LastMoment);
            let chain = format!("add chain inet ums {}\n", chain_of("leave", policy));
            assert!(rules.contains(&chain), "{policy:?}");
        }
    }

    #[test]
    fn the_keeper_knows_our_devices() {
        assert_eq!(ums_checkpoint::carry::OWN_DEVICES, [OUT_DEVICE, IN_DEVICE]);
    }

    #[test]
    fn elements_come_back_as_they_went() {
        let flow = |transport, service: &str, peer: &str| Flow {
            transport,
            service: service.parse().unwrap(),
            peer: peer.parse().unwrap(),
        };
        let flows_in = BTreeSet::from([
            flow(Transport::Tcp, "10.88.0.2:80", "192.0.2.1:4000"),
            flow(Transport::Udp, "[fd00::2]:53", "[2001:db8::1]:4000"),
        ]);
        assert_eq!(
            add(Set::Carried, &flows_in),
            "add element inet ums carried4 { 10.88.0.2 . tcp . 80 . 192.0.2.1 . 4000 }\n\
             add element inet ums carried6 { fd00::2 . udp . 53 . 2001:db8::1 . 4000 }\n"
        );
        let listing = serde_json::json!({"nftables": [
            {"set": {"name": "carried4", "elem": [
                {"concat": ["10.88.0.2", "tcp", 80, "192.0.2.1", 4000]}]}},
            {"set": {"name": "carried6", "elem": [
                {"elem": {"val": {"concat": ["fd00::2", "udp", 53, "2001:db8::1", 4000]}, "timeout": 1}}]}},
            {"set": {"name": "closing4", "elem": [
                {"concat": ["10.88.0.2", "tcp", 80, "192.0.2.1", 4001]}, {"concat": ["x"]}]}}]});
        assert_eq!(flows(&listing, Set::Carried), flows_in);
        assert_eq!(flows(&listing, Set::Closing).len(), 1);
        assert!(flows(&Value::Null, Set::Seen).is_empty());
    }
}
