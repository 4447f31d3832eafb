//! A service in a network namespace that somebody else has connected: a container engine.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::Value;
use ums_node::packets::{has_v6, set, within};

use super::links::json;
use super::{Address, Driver, NetworkError, translation};

impl Driver {
    /// Gives a namespace the address that its service knows as its own, beside the one that it has on the network of
    /// whoever made it, which is told: `eth0` translates between the two, as where another service has the address on
    /// our bridge. `None` where it is not connected yet.
    ///
    /// What is told to be held there passes again afterwards.
    pub async fn house(
        &self,
        netns: &Path,
        inside: Ipv4Addr,
    ) -> Result<Option<Ipv4Addr>, NetworkError> {
        self.inside.prepare(netns).await?;
        let settings = || set("net/ipv4/tcp_mtu_probing", "1");
        within(netns, settings).await??;
        let own = format!("link set dev lo up\naddr replace {inside}/32 dev lo\n");
        self.batch(&["-batch", "-"], &own, Some(netns)).await?;
        if has_v6() {
            let settings = || set("net/ipv6/conf/lo/disable_ipv6", "0");
            within(netns, settings).await??;
            let (own, _) = self.v6(inside);
            let own = format!("addr replace {own}/128 dev lo nodad\n");
            self.batch(&["-batch", "-"], &own, Some(netns)).await?;
        }
        let Some(on_bridge) = self.address_on_eth0(netns).await? else {
            return Ok(None);
        };
        let address = Address { on_bridge, inside };
        self.nft(&translation::rules(address), Some(netns)).await?;
        let routes = self
            .ip("-4 -j route show dev eth0", Some(netns))
            .await
            .and_then(|text| json(&text))?;
        let routes = sourced(&routes, inside);
        self.batch(&["-batch", "-"], &routes, Some(netns)).await?;
        Ok(Some(on_bridge))
    }

    async fn address_on_eth0(&self, netns: &Path) -> Result<Option<Ipv4Addr>, NetworkError> {
        let links = json(&self.ip("-4 -j addr show", Some(netns)).await?)?;
        let mut links = links.as_array().into_iter().flatten();
        let eth0 = links.find(|link| link["ifname"] == "eth0");
        let first = eth0.and_then(|link| link["addr_info"][0]["local"].as_str()?.parse().ok());
        Ok(first)
    }
}

/// Commands that make the service's own packets come from its own address.
fn sourced(routes: &Value, inside: Ipv4Addr) -> String {
    let routes = routes.as_array().into_iter().flatten();
    let route = |route: &Value| {
        let to = route["dst"].as_str()?;
        let way = match route["gateway"].as_str() {
            Some(gateway) => format!("via {gateway}"),
            None => "scope link".to_owned(),
        };
        Some(format!("route replace {to} {way} dev eth0 src {inside}\n"))
    };
    routes.filter_map(route).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_a_service_sends_comes_from_its_own_address() {
        let routes = serde_json::json!([
            { "dst": "default", "gateway": "172.17.0.1", "flags": [] },
            { "dst": "172.17.0.0/16", "protocol": "kernel", "scope": "link", "prefsrc": "172.17.0.2" },
        ]);
        assert_eq!(
            sourced(&routes, "10.88.0.2".parse().unwrap()),
            "route replace default via 172.17.0.1 dev eth0 src 10.88.0.2\n\
             route replace 172.17.0.0/16 scope link dev eth0 src 10.88.0.2\n"
        );
    }
}
