use ums_core::specification::Transport;

use super::*;

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn port(system_port: u16, service_port: u16) -> PublishedPort {
    PublishedPort {
        transport: Transport::Tcp,
        system_port,
        service_port,
    }
}

const WEB: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);

/// What the kernel would hold after the change, which it would refuse if something was not there to be
/// removed, or there already.
fn after(table: &Table, change: &Change) -> Table {
    let mut left = table.clone();
    for (port, _) in &change.remove {
        let removed = left.endpoints.remove(port);
        assert!(removed.is_some(), "removes {port:?}, which isn't there");
    }
    for address in &change.stay {
        let removed = left.moved.remove(address);
        assert!(removed.is_some(), "removes {address}, which isn't there");
    }
    let twice = change
        .add
        .keys()
        .find(|port| left.endpoints.contains_key(port));
    assert_eq!(twice, None, "added twice");
    let twice = change
        .away
        .keys()
        .find(|address| left.moved.contains_key(address));
    assert_eq!(twice, None, "added twice");
    table.after(change)
}

fn published() -> Table {
    let table = Table::default();
    let change = table
        .publish(&name("web"), WEB, &[port(8080, 80), port(8443, 443)])
        .unwrap();
    after(&table, &change)
}

fn listeners() -> BTreeMap<u16, SocketAddrV4> {
    [(8080, "10.88.0.1:4000"), (8443, "10.88.0.1:4001")]
        .map(|(port, at)| (port, at.parse().unwrap()))
        .into()
}

#[test]
fn the_rules_read_as_the_kernel_wants_them() {
    let text = base("10.88.3.4/16".parse().unwrap());
    assert!(
        text.contains("ip saddr 10.88.0.0/16 oifname != { \"ums0\", \"lo\" } masquerade"),
        "{text}"
    );
    let change = published().take(&name("web"), &listeners()).unwrap();
    assert_eq!(
        change.text(),
        "delete element ip ums endpoints { tcp . 8080 }\n\
         delete element ip ums endpoints { tcp . 8443 }\n\
         add element ip ums endpoints { tcp . 8080 comment \"web frontman 10.88.0.5:80\" : 10.88.0.1 . 4000 }\n\
         add element ip ums endpoints { tcp . 8443 comment \"web frontman 10.88.0.5:443\" : 10.88.0.1 . 4001 }\n"
    );
    let change = Table::default().moved_away(&name("web"), WEB);
    assert_eq!(
        change.text(),
        "add element ip ums moved { 10.88.0.5 comment \"web\" }\n"
    );
}

#[test]
fn what_is_taken_is_given_back_as_it_was() {
    let before = published();
    let taken = after(&before, &before.take(&name("web"), &listeners()).unwrap());
    assert!(taken.endpoints.values().all(|endpoint| endpoint.taken));
    // Taken once more, by a Frontman that was started anew: home is still known.
    let again = after(&taken, &taken.take(&name("web"), &listeners()).unwrap());
    assert_eq!(again, taken);
    let back = after(&again, &again.give_back(&name("web")));
    assert_eq!(back, before);
    assert_eq!(back.give_back(&name("web")), Change::default());
}

#[test]
fn a_service_that_returns_has_its_endpoints_and_its_address_again() {
    let table = published();
    let table = after(&table, &table.take(&name("web"), &listeners()).unwrap());
    let away = after(&table, &table.moved_away(&name("web"), WEB));
    assert_eq!(away.moved_away(&name("web"), WEB), Change::default());
    let ports = [port(8080, 80), port(8443, 443)];
    let back = after(&away, &away.publish(&name("web"), WEB, &ports).unwrap());
    assert_eq!(back, published());
    // The address is free for another service too, should the first one never return.
    let other = after(
        &away,
        &away.publish(&name("db"), WEB, &[port(5432, 5432)]).unwrap(),
    );
    assert!(other.moved.is_empty());
    assert!(after(&away, &away.unpublish(&name("web"))).is_empty());
}

#[test]
fn a_foreign_port_is_refused_by_name() {
    let table = published();
    let refused = table.publish(&name("db"), Ipv4Addr::new(10, 88, 0, 6), &[port(8443, 1)]);
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("8443") && text.contains("`web`"), "{text}");
    assert!(table.take(&name("db"), &listeners()).is_err());
    assert_eq!(table.unpublish(&name("db")), Change::default());
}

#[test]
fn comments_come_back_as_they_went() {
    let to: SocketAddrV4 = "10.88.0.1:4000".parse().unwrap();
    let homes = [None, Some("10.88.0.5:80".parse().unwrap())];
    for (taken, home) in [(false, None), (true, homes[0]), (true, homes[1])] {
        let service = name(&"x".repeat(63));
        let endpoint = Endpoint {
            service,
            to,
            taken,
            home,
        };
        let comment = endpoint.comment();
        assert!(comment.len() < 128, "the kernel keeps no more of {comment}");
        assert_eq!(Endpoint::from_comment(&comment, to), Some(endpoint));
    }
    for foreign in ["", "Web", "web other", "web frontman nowhere"] {
        assert_eq!(Endpoint::from_comment(foreign, to), None, "{foreign}");
    }
}

#[test]
fn a_listing_is_read_and_what_is_foreign_left_out() {
    let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "ip", "name": "ums", "handle": 1}},
        {"map": {"name": "endpoints", "elem": [
            [{"elem": {"val": {"concat": ["tcp", 8080]}, "comment": "web"}}, {"concat": ["10.88.0.5", 80]}],
            [9090, {"concat": ["10.88.0.7", 80]}],
            [{"elem": {"val": {"concat": ["tcp", 70000]}, "comment": "web"}}, {"concat": ["10.88.0.5", 80]}]]}},
        {"set": {"name": "moved", "elem": [
            {"elem": {"val": "10.88.0.6", "comment": "db"}}, "10.88.0.8"]}}]}"#;
    let table = parse(listing).unwrap();
    assert_eq!(
        table.endpoints.keys().collect::<Vec<_>>(),
        [&Port::tcp(8080)]
    );
    assert_eq!(
        table.moved,
        [(Ipv4Addr::new(10, 88, 0, 6), name("db"))].into()
    );
    assert!(parse("nft: command not found").is_err());
}
