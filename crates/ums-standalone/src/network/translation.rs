//! A service that has another address on the bridge than its own.

use super::{Address, address};

/// The table that translates addresses, which the rules of the other one don't know of.
const TRANSLATION: &str = "ums-address";

/// Translates between a service's own address and the one that it has on the bridge, at the very edge
/// of its namespace: before and after all that is said here, and without remembering connections (so
/// that one is led on as it came, at whichever place). Errors that routers report of its packets name
/// an address that the service does not know: TCP finds out by itself how large packets may be
/// (`tcp_mtu_probing`).
pub(super) fn rules(address: Address) -> String {
    let Address { on_bridge, inside } = address;
    let (on_bridge_v6, inside_v6) = (address::v6(on_bridge), address::v6(inside));
    let table = format!("inet {TRANSLATION}");
    format!(
        "\
add table {table}
add chain {table} in {{ type filter hook prerouting priority -300; policy accept; }}
add chain {table} out {{ type filter hook postrouting priority 300; policy accept; }}
flush table {table}
add rule {table} in iifname \"eth0\" ip daddr {on_bridge} ip daddr set {inside}
add rule {table} in iifname \"eth0\" ip6 daddr {on_bridge_v6} ip6 daddr set {inside_v6}
add rule {table} out oifname \"eth0\" ip saddr {inside} ip saddr set {on_bridge}
add rule {table} out oifname \"eth0\" ip6 saddr {inside_v6} ip6 saddr set {on_bridge_v6}
"
    )
}
