//! Migrations between two Coordinators over real mutual TLS, with fake agents.

mod support;

use std::time::Duration;

use support::agent::{What, When};
use support::{PATIENCE, SERVICE, Two};
use ums_api::client::{AbortRequest, MigrateRequest, MigrationView, paths};
use ums_api::http::ClientError;
use ums_api::problem::{Problem, ProblemKind};
use ums_core::budget::{Part, Span};
use ums_core::plan::Plan;
use ums_core::preflight::{Refusal, RefusalKind};
use ums_core::report::Outcome;
use ums_core::technique::Technique;

fn problem(error: ClientError) -> Problem {
    error
        .problem()
        .cloned()
        .unwrap_or_else(|| panic!("no problem document: {}", error.chain()))
}

#[tokio::test]
async fn the_happy_path() {
    let two = Two::new().await;
    let id = two.migrate().await;
    let view = two.a.over(id).await;
    let report = &view.report;
    assert_eq!(report.outcome, Outcome::Completed, "{report:#?}");
    two.settled(&view, "happy").await;
    let steps: Vec<u8> = report.steps.iter().map(|step| step.step).collect();
    assert_eq!(steps, (1..=15).collect::<Vec<u8>>());
    assert!(
        report.steps.iter().all(|step| step.ended_ms.is_some()),
        "{report:#?}"
    );
    let (downtime, freeze) = (
        report.downtime_ms.expect("told"),
        report.freeze_ms.expect("told"),
    );
    assert!(
        0.0 < freeze && freeze <= downtime && downtime < 5000.0,
        "{freeze} {downtime}"
    );
    assert_eq!(report.bytes.memory, 4096);
    assert!(
        report
            .endpoint
            .as_deref()
            .is_some_and(|text| text.starts_with("10.0.0.9:"))
    );
    assert_eq!(report.error, None);
    let losses: Vec<&str> = report.losses.iter().map(|loss| &*loss.detail).collect();
    assert_eq!(
        losses,
        ["what was seen before", "what only the restore knows"]
    );
    // Of all who were at work, and it adds up.
    let parts = &report.downtime_parts;
    for (part, us) in [(Part::Dump, 3), (Part::Restore, 5)] {
        assert!(parts.contains(&Span { part, us }), "{parts:?}");
    }
    for part in [Part::Promise, Part::Commit, Part::TakeOn, Part::Resume] {
        assert!(parts.iter().any(|span| span.part == part), "{parts:?}");
    }
    let sum: u64 = parts.iter().map(|span| span.us).sum();
    assert!(sum as f64 / 1000.0 >= downtime, "{parts:?} {downtime}");
    // The destination's history knows it too.
    let there: Vec<MigrationView> = two.b.get(paths::MIGRATIONS).await.expect("a history");
    assert_eq!(there.len(), 1);
    assert_eq!(there[0].report.outcome, Outcome::Completed);
    assert_eq!(there[0].report.endpoint, report.endpoint);
    let told = |report: &ums_core::report::MigrationReport| {
        (report.downtime_ms, report.freeze_ms, report.bytes)
    };
    assert_eq!(told(&there[0].report), told(report));
    assert_eq!(there[0].report.losses, report.losses);
}

#[tokio::test]
async fn the_report_outlives_the_coordinator() {
    let mut two = Two::new().await;
    let id = two.migrate().await;
    let before = two.a.over(id).await;
    two.settled(&before, "before").await;
    two.a.kill().await;
    two.a.start().await;
    let after = two.a.over(id).await;
    assert_eq!(after.report, before.report);
    let history: Vec<MigrationView> = two.a.get(paths::MIGRATIONS).await.expect("a history");
    assert_eq!(
        history.iter().map(|view| &view.report).collect::<Vec<_>>(),
        [&before.report]
    );
}

#[tokio::test]
async fn a_service_has_one_migration_and_no_control_meanwhile() {
    let two = Two::new().await;
    two.a.agent.fault("open", When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.a.agent.is_reached().await;
    let second = problem(
        two.a
            .migrate(SERVICE, "b")
            .await
            .expect_err("one at a time"),
    );
    assert_eq!((second.status, second.kind.as_str()), (409, "migrating"));
    assert!(second.detail.contains(&id.to_string()), "{second}");
    let path = paths::service(&SERVICE.parse().expect("a name"));
    for side in [&two.a, &two.b] {
        let delete = side
            .client()
            .delete::<serde_json::Value>(&path, PATIENCE)
            .await;
        let delete = problem(delete.expect_err("blocked"));
        assert_eq!((delete.status, delete.kind.as_str()), (409, "migrating"));
        assert!(delete.detail.contains(&id.to_string()), "{delete}");
    }
    // It can be aborted, and is then as if nothing had been asked.
    let request = AbortRequest {
        reason: Some("a change of mind".to_owned()),
    };
    let _: MigrationView = two
        .a
        .client()
        .post(&paths::abort(id), &request, PATIENCE)
        .await
        .expect("accepted");
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned);
    assert_eq!(
        view.report.error.as_deref(),
        Some("aborted on request: a change of mind")
    );
    two.settled(&view, "aborted").await;
    let late = two
        .a
        .client()
        .post::<MigrationView>(&paths::abort(id), &request, PATIENCE)
        .await;
    assert_eq!(problem(late.expect_err("too late")).status, 409);
    // And moved after all.
    let id = two.migrate().await;
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Completed, "{view:#?}");
    two.settled(&view, "after the abort").await;
}

#[tokio::test]
async fn an_abort_after_the_commit_is_too_late() {
    let two = Two::new().await;
    two.b.agent.fault("run", When::Before, What::Hang, 1);
    let id = two.migrate().await;
    two.b.agent.is_reached().await;
    let request = AbortRequest::default();
    let late = two
        .a
        .client()
        .post::<MigrationView>(&paths::abort(id), &request, PATIENCE)
        .await;
    assert_eq!(
        problem(late.expect_err("too late")).kind,
        ProblemKind::TooLate
    );
}

#[tokio::test]
async fn the_number_of_migrations_is_bounded() {
    let two = Two::with(|a, _| a.limits.outgoing_max = 1).await;
    two.add("other");
    two.a.agent.fault("open", When::Before, What::Hang, 1);
    two.migrate().await;
    two.a.agent.is_reached().await;
    let second = problem(two.a.migrate("other", "b").await.expect_err("bounded"));
    assert_eq!(
        (second.status, second.kind.as_str()),
        (429, "too-many-migrations")
    );
}

#[tokio::test]
async fn who_is_unknown_is_named() {
    let two = Two::new().await;
    let peer = problem(two.a.migrate(SERVICE, "nobody").await.expect_err("unknown"));
    assert_eq!((peer.status, peer.kind.as_str()), (404, "peer-unknown"));
    assert!(peer.detail.contains("known: b"), "{peer}");
    let service = problem(two.a.migrate("nothing", "b").await.expect_err("unknown"));
    assert_eq!(
        (service.status, service.kind.as_str()),
        (404, "service-unknown")
    );
}

/// Every refusal comes before anything is frozen, and names its kind.
async fn refused(two: &Two, kind: RefusalKind) {
    let id = two.migrate().await;
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Refused);
    let kinds: Vec<RefusalKind> = view.refusals.iter().map(|refusal| refusal.kind).collect();
    assert_eq!(kinds, [kind], "{view:#?}");
    assert!(view.report.error.is_some());
    let history: Vec<MigrationView> = two.a.get(paths::MIGRATIONS).await.expect("a history");
    assert_eq!(
        history[0].refusals, view.refusals,
        "the history says why, too"
    );
    two.settled(&view, "refused").await;
    let log = two.world.look().log.clone();
    assert!(
        !log.iter()
            .any(|line| line.contains("block") || line.contains("create")),
        "{log:?}"
    );
}

#[tokio::test]
async fn what_no_policy_allows_is_refused() {
    refused(
        &Two::with(|a, _| allow_nothing(a)).await,
        RefusalKind::PeerDenied,
    )
    .await;
    refused(
        &Two::with(|_, b| allow_nothing(b)).await,
        RefusalKind::PeerDenied,
    )
    .await;
    refused(
        &Two::with(|_, b| b.peers.clear()).await,
        RefusalKind::PeerDenied,
    )
    .await;
}

fn allow_nothing(config: &mut ums_coordinator::Config) {
    for peer in config.peers.values_mut() {
        peer.allow.clear();
    }
}

#[tokio::test]
async fn an_untrusted_peer_is_refused() {
    let (other, _) = ums_tls::ca::Authority::new("another").expect("a CA");
    let stranger = support::issue(&other, "b");
    let two = Two::with(|_, b| b.identity = stranger).await;
    refused(&two, RefusalKind::PeerUntrusted).await;
    // Of our CA, but another system than the one that should be there.
    let two = Two::with(|_, b| {
        b.identity = support::identity("c");
        b.system = support::system("c");
    })
    .await;
    refused(&two, RefusalKind::PeerUntrusted).await;
}

#[tokio::test]
async fn an_absent_peer_is_refused() {
    let mut two = Two::new().await;
    two.b.kill().await;
    refused(&two, RefusalKind::PeerUnreachable).await;
}

#[tokio::test]
async fn a_peer_of_another_version_is_refused() {
    let mut two = Two::new().await;
    two.b.kill().await;
    let hello = r#"{"versions":[7],"system":"b","program":"9.0","you_may_send":true,"facts":null}"#;
    let address = canned(hello).await;
    two.b.link.lead_to(address);
    refused(&two, RefusalKind::PeerVersion).await;
}

/// A server with `b`'s certificate that answers everything with this body.
async fn canned(body: &'static str) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let config = ums_tls::server_config(&support::identity("b"), &[ums_api::peer::ALPN]);
    let config = config.expect("a configuration");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok((mut stream, _)) = ums_tls::accept(tcp, config.clone(), PATIENCE).await else {
                continue;
            };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.flush().await;
        }
    });
    address
}

#[tokio::test]
async fn a_service_that_exits_by_itself_ends_its_migration() {
    for operation in ["open", "checkpoint"] {
        let two = Two::new().await;
        two.a.agent.fault(operation, When::Before, What::Exit, 1);
        let id = two.migrate().await;
        let view = two.a.over(id).await;
        assert_eq!(view.report.outcome, Outcome::Abandoned);
        let error = view.report.error.expect("told");
        assert!(error.contains("exited by itself with status 3"), "{error}");
        let until = std::time::Instant::now() + PATIENCE;
        while !two.world.look().node("b").held.is_empty() {
            assert!(
                std::time::Instant::now() < until,
                "the destination holds on"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut world = two.world.look();
        let node = world.node("a");
        assert!(node.gates.is_empty() && node.frontmen.is_empty() && node.held.is_empty());
        assert!(world.node("b").services.is_empty());
    }
}

/// The source thaws at once; the destination, cut off, is told when it can be.
#[tokio::test]
async fn an_unreachable_destination_does_not_hold_up_the_source() {
    let two = Two::with(|_, b| b.limits.lease = Duration::from_secs(3600)).await;
    two.a.agent.fault("checkpoint", When::After, What::Hang, 1);
    let id = two.migrate().await;
    two.a.agent.is_reached().await;
    let b = two.b.link.cut().expect("it led to b");
    let _: MigrationView = two
        .a
        .client()
        .post(&paths::abort(id), &AbortRequest::default(), PATIENCE)
        .await
        .expect("accepted");
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned);
    let error = view.report.error.clone().expect("told");
    assert!(
        error.contains("the destination still has to be told"),
        "{error}"
    );
    assert!(view.report.freeze_ms.is_some(), "{view:#?}");
    {
        let mut world = two.world.look();
        assert_eq!(
            world.node("a").services[SERVICE].state,
            support::world::Life::Executing
        );
        assert!(!world.node("b").held.is_empty(), "b can't know yet");
    }
    two.b.link.lead_to(b);
    two.settled(&view, "reconnected").await;
}

#[tokio::test]
async fn a_silent_source_loses_its_reservation() {
    let mut two = Two::new().await;
    two.a.agent.fault("open", When::Before, What::Hang, 1);
    let id = two.migrate().await;
    two.a.agent.is_reached().await;
    two.a.kill().await;
    let until = std::time::Instant::now() + PATIENCE;
    while !two.world.look().node("b").held.is_empty() {
        assert!(std::time::Instant::now() < until, "the lease does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    two.a.start().await;
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Abandoned);
    two.settled(&view, "after the lease").await;
}

#[tokio::test]
async fn a_compensation_that_keeps_failing_is_stuck_and_visible() {
    let mut two = Two::new().await;
    two.a.agent.fault("checkpoint", When::After, What::Fail, 1);
    two.a.agent.fault("thaw", When::Before, What::Fail, 100_000);
    let id = two.migrate().await;
    let view = two.a.over(id).await;
    assert_eq!(view.report.outcome, Outcome::Stuck, "{view:#?}");
    assert!(
        view.report
            .error
            .as_deref()
            .is_some_and(|text| text.contains("step 8")),
        "{view:#?}"
    );
    two.a.kill().await;
    two.a.start().await;
    let again = two.a.over(id).await;
    assert_eq!(again.report.outcome, Outcome::Stuck, "it stays visible");
    two.a.agent.heal();
    let until = std::time::Instant::now() + PATIENCE;
    let view = loop {
        let view = two.a.over(id).await;
        if view.report.outcome == Outcome::Abandoned {
            break view;
        }
        assert!(std::time::Instant::now() < until, "it is not tried again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    two.settled(&view, "healed").await;
}

/// A system that speaks only the first version of the peer API, at either end.
async fn with_a_twin_of_the_first(at_source: bool) -> Two {
    let twin = |config: &mut ums_coordinator::Config| config.peer_versions = vec![1];
    Two::with(|a, b| twin(if at_source { a } else { b })).await
}

#[tokio::test]
async fn systems_of_two_versions_move_services_to_each_other() {
    for at_source in [true, false] {
        let mut two = with_a_twin_of_the_first(at_source).await;
        two.b.agent.fault("restore", When::Before, What::Hang, 1);
        let id = two.migrate().await;
        two.b.agent.is_reached().await;
        // The twin is updated meanwhile: the migration goes on in the version that it began in.
        let twin = if at_source { &mut two.a } else { &mut two.b };
        if !at_source {
            twin.kill().await;
            twin.config.peer_versions = vec![1, 2];
            twin.start().await;
        } else {
            two.b.agent.release();
        }
        let view = two.a.over(id).await;
        let report = &view.report;
        let context = format!("at the source: {at_source}");
        two.settled(&view, &context).await;
        assert_eq!(report.outcome, Outcome::Completed, "{context}: {report:#?}");
        // What the first version has no word for is not told, and nothing else is missing.
        let there: Vec<MigrationView> = two.b.get(paths::MIGRATIONS).await.expect("a history");
        assert_eq!(there[0].report.technique, None);
        assert_eq!(there[0].report.downtime_ms, None);
        let losses: Vec<&str> = report.losses.iter().map(|loss| &*loss.detail).collect();
        assert_eq!(losses, ["what was seen before"]);
    }
}

/// What the destination's version has no word for is refused before anything is asked of either agent.
#[tokio::test]
async fn what_an_earlier_version_has_no_word_for_is_refused() {
    let two = with_a_twin_of_the_first(false).await;
    let request = MigrateRequest {
        service: SERVICE.parse().expect("a name"),
        destination: support::system("b"),
        approach: None,
        technique: Some(Technique::PostCopy),
        max_downtime_ms: None,
        accept_loss: false,
        engine: None,
        measure: false,
    };
    let plan: Plan = two
        .a
        .client()
        .post(paths::PLANS, &request, PATIENCE)
        .await
        .expect("a plan");
    let kinds = |refusals: &[Refusal]| refusals.iter().map(|it| it.kind).collect::<Vec<_>>();
    assert_eq!(
        kinds(&plan.refusals),
        [RefusalKind::PeerVersion],
        "{plan:#?}"
    );
    let view: MigrationView = two
        .a
        .client()
        .post(paths::MIGRATIONS, &request, PATIENCE)
        .await
        .expect("admitted");
    let view = two.a.over(view.report.migration_id).await;
    assert_eq!(view.report.outcome, Outcome::Refused, "{view:#?}");
    assert_eq!(
        kinds(&view.refusals),
        [RefusalKind::PeerVersion],
        "{view:#?}"
    );
    two.settled(&view, "refused").await;
}

#[tokio::test]
async fn the_destination_knows_how_a_service_came() {
    let two = Two::new().await;
    let view = two.a.over(two.migrate().await).await;
    let there: Vec<MigrationView> = two.b.get(paths::MIGRATIONS).await.expect("a history");
    assert!(view.report.technique.is_some());
    assert_eq!(there[0].report.technique, view.report.technique);
    assert_eq!(there[0].report.approach, view.report.approach);
}
