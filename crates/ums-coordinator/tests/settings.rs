//! Settings that change while a Coordinator runs: they count for what begins from then on, and cut
//! nothing off.

mod support;

use support::agent::{What, When};
use support::{PATIENCE, SERVICE, Two, system};
use ums_api::agent::{RunRequest, ServiceView};
use ums_api::client::{MigrationView, PeerView, paths};
use ums_api::problem::ProblemKind;
use ums_core::report::Outcome;

/// Where a migration stands still while settings change, and on which side.
const STANDSTILLS: [(&str, Side); 6] = [
    ("open", Side::Source),
    ("checkpoint", Side::Source),
    ("delete-source", Side::Source),
    ("create", Side::Destination),
    ("restore", Side::Destination),
    ("run", Side::Destination),
];

#[derive(Debug, Clone, Copy)]
enum Side {
    Source,
    Destination,
}

#[tokio::test]
async fn a_migration_goes_to_its_end_with_a_peer_that_is_forgotten_meanwhile() {
    for (operation, side) in STANDSTILLS {
        let mut two = Two::new().await;
        let agent = match side {
            Side::Source => &two.a.agent,
            Side::Destination => &two.b.agent,
        };
        let agent = std::sync::Arc::clone(agent);
        agent.fault(operation, When::Before, What::Hang, 1);
        let id = two.migrate().await;
        agent.is_reached().await;
        two.a.take_up(|config| config.peers.clear());
        two.b.take_up(|config| config.peers.clear());
        // Nobody is known any more to who asks for something new.
        let error = two.a.migrate(SERVICE, "b").await.expect_err("unknown");
        let kind = error.problem().map(|problem| problem.kind.clone());
        assert_eq!(kind, Some(ProblemKind::PeerUnknown), "{operation}");
        agent.release();
        let view = two.a.over(id).await;
        let report = &view.report;
        assert_eq!(
            report.outcome,
            Outcome::Completed,
            "{operation}: {report:#?}"
        );
        two.settled(&view, operation).await;
    }
}

#[tokio::test]
async fn what_runs_and_who_watches_is_not_cut_off_when_peers_come_and_go() {
    let mut two = Two::new().await;
    two.a.agent.fault("run-service", When::After, What::Hang, 1);
    let request = RunRequest {
        name: "web".parse().expect("a name"),
        rootfs: "/image".to_owned(),
        image: None,
        command: vec!["/bin/web".to_owned()],
        entrypoint: None,
        user: None,
        nano_cpus: None,
        labels: Default::default(),
        env: Vec::new(),
        cwd: String::new(),
        uid: 0,
        gid: 0,
        memory_limit_bytes: None,
        volumes: Vec::new(),
        ports: Vec::new(),
        address: None,
    };
    let client = two.a.client();
    let run = tokio::spawn(async move {
        let answer = client.post::<ServiceView>(paths::SERVICES, &request, PATIENCE);
        answer.await
    });
    two.a.agent.is_reached().await;
    let known = two.a.config.peers[&system("b")].clone();
    for round in 0..5 {
        two.a.take_up(|config| {
            config
                .peers
                .insert(system(&format!("c{round}")), known.clone());
        });
        let listed: Vec<PeerView> = two.a.get(paths::PEERS).await.expect("a list");
        assert_eq!(listed.len(), round + 2);
    }
    two.a.take_up(|config| config.peers.clear());
    let listed: Vec<PeerView> = two.a.get(paths::PEERS).await.expect("a list");
    assert!(listed.is_empty(), "{listed:#?}");
    two.a.agent.release();
    let view = run.await.expect("it ends").expect("it was not cut off");
    assert_eq!(view.specification.name.as_str(), "web");
}

#[tokio::test]
async fn a_peer_that_is_added_can_be_used_at_once_and_one_without_permission_no_more() {
    let mut two = Two::with(|a, b| {
        a.peers.clear();
        b.peers.clear();
    })
    .await;
    let (a, b) = (two.a.link.address(), two.b.link.address());
    let allow = support::both();
    let peer = |address| ums_coordinator::PeerConfig {
        address,
        allow: allow.clone(),
    };
    two.a
        .take_up(|config| drop(config.peers.insert(system("b"), peer(b))));
    two.b
        .take_up(|config| drop(config.peers.insert(system("a"), peer(a))));
    let id = two.migrate().await;
    let view: MigrationView = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
    two.b.take_up(|config| config.limits.outgoing_max = 0);
    let error = two.b.migrate(SERVICE, "a").await.expect_err("too many");
    let kind = error.problem().map(|problem| problem.kind.clone());
    assert_eq!(kind, Some(ProblemKind::TooManyMigrations));
    two.b.take_up(|config| {
        config.limits.outgoing_max = 1;
        for peer in config.peers.values_mut() {
            peer.allow.clear();
        }
    });
    let id = two.b.migrate(SERVICE, "a").await.expect("admitted");
    let view = two.b.over(id.report.migration_id).await;
    assert_eq!(view.report.outcome, Outcome::Refused, "{view:#?}");
}

/// A peer that was forgotten is heard about its own migration, and about nothing else.
#[tokio::test]
async fn who_was_forgotten_begins_nothing() {
    let mut two = Two::new().await;
    two.b.agent.fault("create", When::Before, What::Hang, 1);
    let id = two.migrate().await;
    two.b.agent.is_reached().await;
    two.b.take_up(|config| config.peers.clear());
    two.add("other");
    let second = two.a.migrate("other", "b").await.expect("admitted");
    let second = two.a.over(second.report.migration_id).await;
    assert_eq!(second.report.outcome, Outcome::Refused, "{second:#?}");
    assert_eq!(
        second.refusals.first().map(|refusal| refusal.kind),
        Some(ums_core::preflight::RefusalKind::PeerDenied)
    );
    two.b.agent.release();
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
}
