//! The network driver with real connections, in network namespaces of the test's own.

mod fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fixture::{Echo, Fixture, Outcome, ask, eventually, outcome, skip_unless_root};
use ums_core::specification::{PublishedPort, Transport};
use ums_frontman::control::{Mode, Upstreams};
use ums_node::facts::Port;
use ums_node::packets::{Inside, Policy};
use ums_standalone::network::Address;

#[test]
fn a_published_service_answers_everybody() {
    skip_unless_root!("a_published_service_answers_everybody");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "web");
        let endpoint = f.endpoint(8080);

        let mut remote = f.client.connect(endpoint).await.unwrap();
        assert_eq!(ask(&mut remote, "1").await, "web: 1");
        let mut local = f.system.connect(endpoint).await.unwrap();
        assert_eq!(ask(&mut local, "1").await, "web: 1");
        let mut itself = service.namespace.connect(endpoint).await.unwrap();
        assert_eq!(ask(&mut itself, "1").await, "web: 1");
        let other = f.service_on("other", 6, 9090).await;
        let mut neighbour = other.namespace.connect(endpoint).await.unwrap();
        assert_eq!(ask(&mut neighbour, "1").await, "web: 1");
        // Its own way out, under the system's address.
        let _outside = Echo::start(&f.client, 7, "outside");
        let mut out = service
            .namespace
            .connect(SocketAddrV4::new(fixture::CLIENT, 7))
            .await
            .unwrap();
        assert_eq!(ask(&mut out, "1").await, "outside: 1");
        // The system's own ports are left alone, and so is loopback.
        assert!(f.client.connect(f.endpoint(8081)).await.is_err());
        assert!(
            f.system
                .connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080))
                .await
                .is_err()
        );
        let links = service.namespace.ip("link show dev eth0").await;
        assert!(links.contains("02:75:0a:58:00:05"), "{links}");
    });
}

/// Two services have the same address inside, and neither hears of it.
#[test]
fn a_service_whose_address_is_taken_has_another_on_the_bridge() {
    skip_unless_root!("a_service_whose_address_is_taken_has_another_on_the_bridge");
    Fixture::run(async |f| {
        let first = f.service("web", 5).await;
        let _echo = Echo::start(&first.namespace, 80, "first");
        let second: ums_core::id::ServiceName = "db".parse().unwrap();
        let namespace = fixture::Namespace::create();
        let address = Address {
            on_bridge: Ipv4Addr::new(10, 88, 0, 7),
            inside: first.address,
        };
        for _ in 0..2 {
            let attached = f.driver.attach(&second, &namespace.path(), address).await;
            attached.unwrap();
        }
        let ports = [PublishedPort {
            transport: Transport::Tcp,
            system_port: 9090,
            service_port: 80,
        }];
        let published = f.driver.publish(&second, address.on_bridge, &ports).await;
        published.unwrap();
        // It listens at what it takes for its address, and at no other.
        let _echo = Echo::start_at(&namespace, (address.inside, 80), "second");
        let mut client = f.client.connect(f.endpoint(9090)).await.unwrap();
        assert_eq!(ask(&mut client, "1").await, "second: 1");
        let mut client = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut client, "1").await, "first: 1");
        // Its way out, and to its neighbour by the system's endpoint.
        let _outside = Echo::start(&f.client, 7, "outside");
        let out = SocketAddrV4::new(fixture::CLIENT, 7);
        let mut out = namespace.connect(out).await.unwrap();
        assert_eq!(ask(&mut out, "1").await, "outside: 1");
        assert_eq!(out.local_addr().unwrap().ip(), address.inside);
        let mut neighbour = namespace.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut neighbour, "1").await, "first: 1");
        let known = f.driver.addresses().await.unwrap();
        let wanted = [
            (first.address, first.name.clone()),
            (address.on_bridge, second),
        ];
        assert_eq!(known, wanted.into());
    });
}

/// The bridge goes with a system's last service, also while another one is on its way in.
#[test]
fn a_service_is_attached_although_the_bridge_has_just_gone() {
    skip_unless_root!("a_service_is_attached_although_the_bridge_has_just_gone");
    Fixture::run(async |f| {
        f.driver.ensure_bridge().await.unwrap();
        assert!(f.driver.release().await.unwrap());
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "web");
        let mut client = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut client, "1").await, "web: 1");
    });
}

#[test]
fn repeating_changes_nothing_and_removal_is_exact() {
    skip_unless_root!("repeating_changes_nothing_and_removal_is_exact");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "web");
        let mut open = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut open, "1").await, "web: 1");
        let state = async || (f.table().await, f.system.ip("link show type veth").await);
        let before = state().await;
        f.driver.ensure_bridge().await.unwrap();
        f.driver
            .attach(&service.name, &service.path(), service.address)
            .await
            .unwrap();
        f.driver
            .publish(&service.name, service.address, &service.ports)
            .await
            .unwrap();
        assert_eq!(state().await, before);
        assert_eq!(ask(&mut open, "2").await, "web: 2");

        let other = f.service_on("other", 6, 9090).await;
        assert!(!f.driver.release().await.unwrap(), "services are there");
        f.driver.unpublish(&other.name).await.unwrap();
        f.driver.detach(&other.name).await.unwrap();
        f.driver.detach(&other.name).await.unwrap();
        assert_eq!(f.table().await, before.0);
        assert_eq!(ask(&mut open, "3").await, "web: 3");
        f.driver.unpublish(&service.name).await.unwrap();
        f.driver.detach(&service.name).await.unwrap();
        assert!(f.driver.release().await.unwrap());
        assert!(!f.system.ip("link show").await.contains("ums"));
        assert!(f.driver.release().await.unwrap(), "and again");
    });
}

#[test]
fn an_attachment_that_was_interrupted_is_completed() {
    skip_unless_root!("an_attachment_that_was_interrupted_is_completed");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        service.namespace.ip("addr flush dev eth0").await;
        f.driver
            .attach(&service.name, &service.path(), service.address)
            .await
            .unwrap();
        let _echo = Echo::start(&service.namespace, 80, "web");
        let mut client = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut client, "1").await, "web: 1");
        // Started anew: the same service in another namespace.
        let fresh = fixture::Namespace::create();
        f.driver
            .attach(&service.name, &fresh.path(), service.address)
            .await
            .unwrap();
        let _echo = Echo::start(&fresh, 80, "fresh");
        let mut client = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut client, "1").await, "fresh: 1");
        let gateway = f
            .driver
            .attach(&service.name, &fresh.path(), f.driver.gateway())
            .await;
        assert!(gateway.unwrap_err().to_string().contains("not usable"));
        let nowhere = std::path::Path::new("/proc/self/fd/nothing");
        assert!(
            f.driver
                .attach(&service.name, nowhere, service.address)
                .await
                .is_err()
        );
    });
}

#[test]
fn a_port_has_one_owner() {
    skip_unless_root!("a_port_has_one_owner");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let thief = "thief".parse().unwrap();
        let before = f.table().await;
        let refused = f
            .driver
            .publish(&thief, Ipv4Addr::new(10, 88, 0, 7), &service.ports)
            .await;
        assert!(refused.unwrap_err().to_string().contains("`web`"));
        assert_eq!(f.table().await, before);
    });
}

#[test]
fn taken_then_led_elsewhere() {
    skip_unless_root!("taken_then_led_elsewhere");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "old");
        let mut old = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut old, "1").await, "old: 1");

        let frontman = f.frontman().await;
        f.driver
            .take(&service.name, &frontman.listeners())
            .await
            .unwrap();
        f.driver
            .take(&service.name, &frontman.listeners())
            .await
            .unwrap();
        let mut held = f.client.connect(f.endpoint(8080)).await.unwrap();
        let mut local = f.system.connect(f.endpoint(8080)).await.unwrap();
        eventually(async || frontman.counts().await.holding == 2).await;
        assert_eq!(ask(&mut old, "2").await, "old: 2");

        let _there = Echo::start(&f.elsewhere, 8080, "new");
        let there = SocketAddrV4::new(fixture::ELSEWHERE, 8080);
        frontman
            .client
            .lead(Upstreams::from([(8080, there.into())]))
            .await
            .unwrap();
        assert_eq!(ask(&mut held, "1").await, "new: 1");
        assert_eq!(ask(&mut local, "1").await, "new: 1");
        let mut new = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut new, "1").await, "new: 1");
        assert_eq!(ask(&mut old, "3").await, "old: 3");

        // The source is deleted; the Frontman stays, and is found in the kernel's table.
        f.driver
            .drop_connections(&service.name, service.address, Some(&service.path()))
            .await
            .unwrap();
        assert_eq!(outcome(&mut old).await, Outcome::Reset);
        f.driver.detach(&service.name).await.unwrap();
        assert_eq!(ask(&mut new, "2").await, "new: 2");
        assert!(f.driver.table().await.unwrap().endpoints[&Port::tcp(8080)].taken);
        assert!(!f.driver.release().await.unwrap());

        // It retires: nothing answers any more, and nothing is left.
        f.driver.unpublish(&service.name).await.unwrap();
        frontman.client.retire(Duration::ZERO).await.unwrap();
        frontman.wait_gone().await;
        assert!(f.client.connect(f.endpoint(8080)).await.is_err());
        drop((held, local, new, old));
        eventually(async || f.driver.release().await.unwrap()).await;
    });
}

#[test]
fn abandoned_the_held_go_to_the_service() {
    skip_unless_root!("abandoned_the_held_go_to_the_service");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "home");
        let before = f.table().await;
        let frontman = f.frontman().await;
        f.driver
            .take(&service.name, &frontman.listeners())
            .await
            .unwrap();
        let mut held = f.client.connect(f.endpoint(8080)).await.unwrap();
        eventually(async || frontman.counts().await.holding == 1).await;

        let home = f.driver.table().await.unwrap().endpoints[&Port::tcp(8080)]
            .home
            .unwrap();
        frontman
            .client
            .lead(Upstreams::from([(8080, home.into())]))
            .await
            .unwrap();
        f.driver.give_back(&service.name).await.unwrap();
        f.driver.give_back(&service.name).await.unwrap();
        let retiring = frontman
            .client
            .retire(Duration::from_secs(30))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(retiring.phase, Mode::Retiring);
        assert_eq!(ask(&mut held, "1").await, "home: 1");
        let mut direct = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut direct, "1").await, "home: 1");
        assert_eq!(f.table().await, before);
        drop(held);
        frontman.wait_gone().await;
        assert_eq!(ask(&mut direct, "2").await, "home: 2");
    });
}

/// Clients connect without a pause while the endpoint goes to and fro: each gets an answer.
#[test]
fn no_connection_is_lost_while_the_endpoint_changes_hands() {
    skip_unless_root!("no_connection_is_lost_while_the_endpoint_changes_hands");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "web");
        let frontman = f.frontman().await;
        let home = SocketAddrV4::new(service.address, 80);
        frontman
            .client
            .lead(Upstreams::from([(8080, home.into())]))
            .await
            .unwrap();
        let (stop, clients) = f.clients_without_pause(f.endpoint(8080), "web");
        for _ in 0..20 {
            f.driver
                .take(&service.name, &frontman.listeners())
                .await
                .unwrap();
            f.driver.give_back(&service.name).await.unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let answered = tokio::task::spawn_blocking(|| clients.join().unwrap())
            .await
            .unwrap();
        assert!(answered.unwrap() > 20);
        assert!(
            frontman.counts().await.accepted > 0,
            "the Frontman never had the endpoint"
        );
    });
}

#[test]
fn clients_of_a_service_that_has_moved_are_told() {
    skip_unless_root!("clients_of_a_service_that_has_moved_are_told");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let echo = Echo::start(&service.namespace, 80, "web");
        let mut waiting = f.client.connect(f.endpoint(8080)).await.unwrap();
        let mut asking = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut waiting, "1").await, "web: 1");
        assert_eq!(ask(&mut asking, "1").await, "web: 1");
        let _outside = Echo::start(&f.client, 7, "outside");
        let mut out = service
            .namespace
            .connect(SocketAddrV4::new(fixture::CLIENT, 7))
            .await
            .unwrap();
        assert_eq!(ask(&mut out, "1").await, "outside: 1");

        // As in a migration: its packets have been held since the freeze.
        let netns = service.path();
        f.inside.direct(&netns, Policy::Frozen).await.unwrap();
        f.driver
            .drop_connections(&service.name, service.address, Some(&service.path()))
            .await
            .unwrap();
        assert_eq!(outcome(&mut waiting).await, Outcome::Reset);
        assert_eq!(outcome(&mut asking).await, Outcome::Reset);
        f.driver
            .drop_connections(&service.name, service.address, Some(&service.path()))
            .await
            .unwrap();

        // Back again: the address works as before.
        drop(echo);
        let netns = service.path();
        f.inside.direct(&netns, Policy::Pass).await.unwrap();
        f.driver
            .publish(&service.name, service.address, &service.ports)
            .await
            .unwrap();
        let _echo = Echo::start(&service.namespace, 80, "back");
        let mut client = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut client, "1").await, "back: 1");
    });
}

/// The namespace went before anybody could reset its connections: whoever sends is told.
#[test]
fn a_late_packet_is_answered_by_a_reset() {
    skip_unless_root!("a_late_packet_is_answered_by_a_reset");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "web");
        let mut remote = f.client.connect(f.endpoint(8080)).await.unwrap();
        let mut local = f.system.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut remote, "1").await, "web: 1");
        assert_eq!(ask(&mut local, "1").await, "web: 1");
        let frontman = f.frontman().await;
        f.driver
            .take(&service.name, &frontman.listeners())
            .await
            .unwrap();
        f.driver.detach(&service.name).await.unwrap();
        f.driver
            .drop_connections(&service.name, service.address, None)
            .await
            .unwrap();
        assert_eq!(fixture::send_until_told(&mut remote).await, Outcome::Reset);
        assert_eq!(fixture::send_until_told(&mut local).await, Outcome::Reset);
        frontman.client.retire(Duration::ZERO).await.unwrap();
        frontman.wait_gone().await;
    });
}

#[test]
fn held_packets_arrive_after_all() {
    skip_unless_root!("held_packets_arrive_after_all");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "web");
        let mut client = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut client, "1").await, "web: 1");
        for _ in 0..2 {
            let netns = service.path();
            f.inside.direct(&netns, Policy::Hold).await.unwrap();
        }
        let asked = tokio::spawn(async move { ask(&mut client, "2").await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!asked.is_finished(), "a packet passed");
        for _ in 0..2 {
            let netns = service.path();
            f.inside.direct(&netns, Policy::Pass).await.unwrap();
        }
        assert_eq!(asked.await.unwrap(), "web: 2");
    });
}

/// While clients wait no program is started; and where the rules are not there, a program makes them.
#[test]
fn a_policy_is_chosen_without_a_program() {
    skip_unless_root!("a_policy_is_chosen_without_a_program");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "web");
        let (netns, nobody) = (service.path(), BTreeSet::new());
        let broken = tempfile::tempdir().unwrap();
        for tool in ["nft", "ip"] {
            let tool = broken.path().join(tool);
            std::fs::write(&tool, "#!/bin/false\n").unwrap();
            std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let without = Inside::new(Some(broken.path().to_owned()));
        let mut client = f.client.connect(f.endpoint(8080)).await.unwrap();
        for policy in [
            Policy::HoldNew,
            Policy::Pass,
            Policy::LastMoment,
            Policy::Pass,
        ] {
            without.direct(&netns, policy).await.unwrap();
        }
        assert_eq!(ask(&mut client, "1").await, "web: 1");
        without.freeze(&netns, &nobody).await.unwrap();
        let asked = tokio::spawn(async move { ask(&mut client, "2").await });
        let mut chain = service.namespace.nft("list chain inet ums arrive").await;
        assert!(chain.contains("goto arrive-frozen"), "{chain}");
        assert!(!asked.is_finished(), "a packet passed");
        // As an older release has made them.
        service.namespace.nft("flush table inet ums").await;
        service
            .namespace
            .nft("delete chain inet ums arrive-pass")
            .await;
        let refused = without.direct(&netns, Policy::Pass).await.unwrap_err();
        assert!(refused.to_string().contains("nft"), "{refused}");
        f.inside.direct(&netns, Policy::Pass).await.unwrap();
        chain = service.namespace.nft("list chain inet ums arrive").await;
        assert!(chain.contains("goto arrive-pass"), "{chain}");
        assert_eq!(asked.await.unwrap(), "web: 2");
    });
}

/// DESIGN section 6: data that a frozen service's kernel acknowledged would be in no image, and the
/// client would believe it delivered. Early demultiplexing must not lead it past the rules either.
#[test]
fn nothing_is_acknowledged_on_behalf_of_a_frozen_service() {
    skip_unless_root!("nothing_is_acknowledged_on_behalf_of_a_frozen_service");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let _echo = Echo::start(&service.namespace, 80, "web");
        let mut client = f.client.connect(f.endpoint(8080)).await.unwrap();
        assert_eq!(ask(&mut client, "1").await, "web: 1");
        let port = client.local_addr().unwrap().port();
        for packets in [Policy::Hold, Policy::Frozen] {
            let netns = service.path();
            f.inside.direct(&netns, packets).await.unwrap();
            let mut asking = client.try_clone().unwrap();
            let asked = tokio::spawn(async move { ask(&mut asking, "2").await });
            // Sent again and again, and not acknowledged.
            eventually(async || f.client.queue(port).await.retransmits >= 2).await;
            assert_ne!(f.client.queue(port).await.unacknowledged, 0);
            f.inside.direct(&netns, Policy::Pass).await.unwrap();
            assert_eq!(asked.await.unwrap(), "web: 2");
            eventually(async || f.client.queue(port).await.unacknowledged == 0).await;
        }
    });
}

/// A service that has closed a connection has no descriptor of it that could move. What it wrote
/// last arrives all the same, from where it was written.
#[test]
fn a_connection_that_the_service_has_closed_is_wound_up_where_it_was() {
    skip_unless_root!("a_connection_that_the_service_has_closed_is_wound_up_where_it_was");
    Fixture::run(async |f| {
        let service = f.service("web", 5).await;
        let netns = service.path();
        let (client, written) = fixture::closed_with_last_words(f, &service).await;
        let connections = f.inside.connections(&netns).await.unwrap();
        assert_eq!(
            (connections.open.len(), connections.closing.len()),
            (0, 1),
            "{connections:?}"
        );
        f.inside.freeze(&netns, &connections.closing).await.unwrap();
        assert_eq!(fixture::read_all(client).await, written);
    });
}

/// Endpoints of a Frontman here for a service that was never here: the map says whose they are.
#[test]
fn a_frontman_without_a_service_gives_nothing_back() {
    skip_unless_root!("a_frontman_without_a_service_gives_nothing_back");
    Fixture::run(async |f| {
        let name = "guest".parse().unwrap();
        let listeners = BTreeMap::from([(8080, SocketAddrV4::new(f.driver.gateway(), 4000))]);
        f.driver.take(&name, &listeners).await.unwrap();
        let table = f.driver.table().await.unwrap();
        assert_eq!(
            (
                table.endpoints[&Port::tcp(8080)].taken,
                table.endpoints[&Port::tcp(8080)].home
            ),
            (true, None)
        );
        f.driver.give_back(&name).await.unwrap();
        assert!(f.driver.table().await.unwrap().is_empty());
        f.driver.cleanup_all().await.unwrap();
        assert!(!f.system.ip("link show").await.contains("ums"));
        f.driver.cleanup_all().await.unwrap();
    });
}
